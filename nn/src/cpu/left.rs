//! Left factors of products: rows as they stand, or windows of pictures, gathered as the product reads them.
//!
//! ```text
//! M  rows    K  summed axis    B  pictures    H, W  rows and columns of pixels    C  channels    S  side of a window
//! ```
//!
//! A block of windows is copied to where the micro-kernel reads, and nowhere else: nine times a picture never goes through memory.
//! In bf16 a picture is rounded once, before its pixels are copied nine times.
#![allow(unsafe_code, reason = "tasks write disjoint parts of the words")]

use std::ops::Range;

use super::{
    Buffer, Cpu, Precision,
    check::check_matrix,
    machine::{Kernel, Machine},
    parallel::{self, Shared},
    precision::pack_row,
};
use crate::device::ConvWindow;

/// The left factor `[M, K]` of a product.
#[derive(Clone, Copy, Debug)]
pub enum Left<'a> {
    /// Rows, and the distance between their starts, at least K.
    Rows(&'a [f32], usize),
    /// The windows of pictures, one a row.
    Windows(Pictures<'a>),
}

/// Pictures, and the windows in which a product sees them: M is B H' W', K is S S C.
#[derive(Clone, Copy, Debug)]
pub struct Pictures<'a> {
    /// What an output pixel sees.
    pub window: ConvWindow,
    /// H and W of a picture.
    pub size: (usize, usize),
    /// C.
    pub channels: usize,
    /// `[B, H, W, C]`.
    pub values: &'a [f32],
}

impl Left<'_> {
    /// Panics if it has fewer rows or another summed axis.
    pub(super) fn check(&self, m: usize, k: usize) {
        match self {
            Self::Rows(x, stride) => check_matrix("x", x.len(), m, k, *stride),
            Self::Windows(pictures) => pictures.check(m, k),
        }
    }

    /// As a matrix of this precision reads it: pictures in bf16 become words, which `words` keeps.
    pub(super) fn source<'s>(
        &'s self,
        cpu: &Cpu,
        precision: Precision,
        words: &'s mut Option<Buffer>,
    ) -> Source<'s> {
        match *self {
            Self::Rows(x, stride) => Source::Rows(x, stride),
            Self::Windows(p) if precision == Precision::Bf16 && p.channels.is_multiple_of(2) => {
                let values = &**words.insert(rounded(cpu, p.values));
                Source::Words(Pictures { values, channels: p.channels / 2, ..p })
            }
            Self::Windows(pictures) => Source::Windows(pictures),
        }
    }
}

impl Pictures<'_> {
    fn check(&self, m: usize, k: usize) {
        let (side, (height, width)) = (self.window.side(), self.size);
        assert_eq!(k, side * side * self.channels, "values of a window");
        let outputs = (self.window.output(height) * self.window.output(width)).max(1);
        assert!(m.is_multiple_of(outputs), "{m} rows of pictures with {outputs} windows each");
        let wanted = m / outputs * height * width * self.channels;
        assert!(self.values.len() >= wanted, "{} values for {wanted} of pictures", self.values.len());
    }

    /// Calls `write(window, to)` for windows `rows`, one after the other, with the chunks of `to`.
    #[inline(always)]
    fn each(
        &self,
        rows: Range<usize>,
        to: &mut [f32],
        stride: usize,
        write: impl Fn(Window<'_>, &mut [f32]),
    ) {
        let (height, width) = (self.window.output(self.size.0), self.window.output(self.size.1));
        let picture = self.size.0 * self.size.1 * self.channels;
        let (mut sample, pixel) = (rows.start / (height * width), rows.start % (height * width));
        let (mut y, mut x) = (pixel / width, pixel % width);
        for to in to.chunks_exact_mut(stride).take(rows.len()) {
            write(Window { of: self, values: &self.values[sample * picture..][..picture], y, x }, to);
            x += 1;
            if x == width {
                (x, y) = (0, y + 1);
                if y == height {
                    (y, sample) = (0, sample + 1);
                }
            }
        }
    }
}

/// The window of one output pixel.
#[derive(Clone, Copy)]
struct Window<'a> {
    of: &'a Pictures<'a>,
    /// `[H, W, C]` of its picture.
    values: &'a [f32],
    y: usize,
    x: usize,
}

impl Window<'_> {
    /// Copies its terms from `first` on.
    #[inline(always)]
    fn copy(self, first: usize, mut to: &mut [f32]) {
        let Pictures { window, size: (height, width), channels, .. } = *self.of;
        let side = window.side();
        let (mut tap, mut skipped) = (first / channels, first % channels);
        while !to.is_empty() {
            let (run, rest) = to.split_at_mut(to.len().min(channels - skipped));
            let row = window.source(self.y, tap / side, height);
            match row.zip(window.source(self.x, tap % side, width)) {
                Some((y, x)) => copy(&self.values[(y * width + x) * channels + skipped..][..run.len()], run),
                None => run.fill(0.0),
            }
            (to, tap, skipped) = (rest, tap + 1, 0);
        }
    }
}

/// Vector by vector: a call of the library's copy costs more than the few lines of a pixel.
#[inline(always)]
fn copy(from: &[f32], to: &mut [f32]) {
    let (from, from_rest) = from.as_chunks::<16>();
    let (to, to_rest) = to.as_chunks_mut::<16>();
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
    for (to, from) in to_rest.iter_mut().zip(from_rest) {
        *to = *from;
    }
}

/// A left factor as the tasks of a product read it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source<'a> {
    Rows(&'a [f32], usize),
    Windows(Pictures<'a>),
    /// Pictures of words, each with two neighbouring channels.
    Words(Pictures<'a>),
}

impl<'a> Source<'a> {
    /// Where rows from `row` on stand as the micro-kernel wants them, one `distance` after the other, if they do.
    #[inline(always)]
    pub(super) fn in_place(self, pairs: bool, distance: usize, row: usize) -> Option<&'a [f32]> {
        match self {
            Self::Rows(x, stride) if !pairs && stride == distance => Some(&x[row * stride..]),
            _ => None,
        }
    }

    /// Copies `words` words of rows, from word `first` on, to rows that stand `DISTANCE` apart; `k` is K.
    #[inline(always)]
    pub(super) fn copy<const DISTANCE: usize>(
        self,
        rows: Range<usize>,
        (first, words): (usize, usize),
        (k, pairs): (usize, bool),
        to: &mut [f32],
    ) {
        let terms = if pairs { 2 * first..k.min(2 * (first + words)) } else { first..first + words };
        match self {
            Self::Rows(x, stride) => {
                for (to, row) in to.chunks_exact_mut(DISTANCE).zip(rows) {
                    let from = &x[row * stride..][..k];
                    if pairs {
                        pack_row(&from[terms.clone()], to);
                    } else {
                        to[..words].copy_from_slice(&from[terms.clone()]);
                    }
                }
            }
            Self::Windows(pictures) if pairs => pictures.each(rows, to, DISTANCE, |window, to| {
                let mut values = [[0.0; DISTANCE]; 2];
                let values = &mut values.as_flattened_mut()[..terms.len()];
                window.copy(terms.start, values);
                pack_row(values, to);
            }),
            Self::Windows(pictures) | Self::Words(pictures) => {
                pictures.each(rows, to, DISTANCE, |window, to| window.copy(first, &mut to[..words]));
            }
        }
    }
}

/// Values in a task.
const TASK: usize = 1 << 14;

/// Values as words of bf16, two neighbours in each.
fn rounded(cpu: &Cpu, values: &[f32]) -> Buffer {
    let mut words = cpu.buffers().take(values.len() / 2);
    let tasks = values.len().div_ceil(TASK);
    let to = Shared::new(&mut words);
    parallel::for_each(cpu, 8 * values.len(), tasks, |task| {
        let range = task * TASK..values.len().min((task + 1) * TASK);
        // SAFETY: a task has words of its own.
        let to = unsafe { to.part(range.start / 2, range.len() / 2) };
        cpu.run(Round { from: &values[range], to });
    });
    words
}

struct Round<'a> {
    from: &'a [f32],
    to: &'a mut [f32],
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine, const N: usize>(self, _: M) {
        pack_row(self.from, self.to);
    }
}
