//! The product of activations and packed weights, with the LoRA branch and the bias.
//!
//! ```text
//! M  rows (tokens)    K  summed axis    N  columns of the result
//! ```
//!
//! All matrices are row-major; a stride is the distance between the starts of two rows, in values.
//! Each element of a result is one chain of fused multiply-adds in the order of the summed axis. So its bits
//! depend on its row of `x` and its column of the weight only: not on the number of rows, the position of the
//! row, the number of threads, or the instruction set.

#![allow(unsafe_code, reason = "tasks write disjoint tiles of the result")]

use std::ops::Range;

use super::{
    Cpu, Left, Packed, Precision,
    check::check_matrix,
    left::Source,
    machine::{Kernel, Machine},
    parallel::{self, Shared},
    product::{Product, Start, product},
    scratch::with_scratch,
};

/// `out = start + x * weight + extra`, where `start` is `out`, the bias or zero.
///
/// The extra product continues in the accumulators once the base product is complete, so that an extra product of
/// zero leaves the bits of the base product. Rows of `x` are rounded to the precision that their matrix has.
#[derive(Debug)]
pub struct Gemm<'a> {
    /// Number of rows M of `x` and `out`.
    pub m: usize,
    /// `[M, K]`.
    pub x: Left<'a>,
    /// `[K, N]`.
    pub weight: &'a Packed,
    /// A second product to add.
    pub extra: Option<Extra<'a>>,
    /// `[N]`; only without `accumulate`.
    pub bias: Option<&'a [f32]>,
    /// Whether to add to what `out` holds.
    pub accumulate: bool,
    /// `[M, N]`.
    pub out: &'a mut [f32],
    /// Stride of the rows of `out`, at least N.
    pub out_stride: usize,
}

/// A second product of a [`Gemm`]: `h [M, R]` and a matrix `[R, N]`.
pub type Extra<'a> = (Left<'a>, &'a Packed);

/// Words of the sum in one run of the micro-kernel: a panel's share stays in the first cache. Rows of `x` are copied to
/// stand so far apart, which the micro-kernel knows as a constant.
const TERMS: usize = 256;
/// Most rows in one task: their share of `x` stays in the second cache.
const TASK_ROWS: usize = 192;
/// Most columns in one task: the task's part of the result stays in the second cache, too, while the sum's runs pass.
const TASK_COLUMNS: usize = 512;

/// Computes a [`Gemm`].
///
/// # Panics
/// If a slice is too short for its shape, or a matrix was packed for another shape or instruction set.
pub fn gemm(cpu: &Cpu, call: Gemm<'_>) {
    let Gemm { m, x, weight, extra, bias, accumulate, out, out_stride } = call;
    let n = weight.n();
    assert!(!(accumulate && bias.is_some()), "a bias and `accumulate` exclude each other");
    assert!(bias.is_none_or(|b| b.len() == n), "a bias for {n} columns");
    check_matrix("out", out.len(), m, n, out_stride);
    for (x, weight) in [(x, weight)].into_iter().chain(extra) {
        x.check(m, weight.k());
        assert_eq!(weight.n(), n, "columns of the extra product");
        assert_eq!(weight.isa(), cpu.isa(), "the matrix is packed for another instruction set");
    }
    if m == 0 || n == 0 {
        return;
    }
    let (tile_rows, width) = cpu.tile();
    let terms = weight.k() + extra.map_or(0, |(_, w)| w.k());
    let panels = n.div_ceil(width);
    // Enough tasks for every thread to have a few. A panel that is fetched should serve many rows, so where
    // there are few rows the panels are divided instead.
    let wanted = 4 * cpu.threads();
    let rows = m.div_ceil(wanted).clamp(TASK_ROWS / 2, TASK_ROWS).next_multiple_of(tile_rows);
    let row_tasks = m.div_ceil(rows);
    let columns = panels.div_ceil((wanted / row_tasks).clamp(1, panels)).min(TASK_COLUMNS / width);
    let column_tasks = panels.div_ceil(columns);
    let mut words = [None, None];
    let [base_words, extra_words] = &mut words;
    let base = (x.source(cpu, weight.precision(), base_words), weight);
    let extra = extra.as_ref().map(|(x, weight)| (x.source(cpu, weight.precision(), extra_words), *weight));
    let out = Shared::new(out);
    parallel::for_each(cpu, 2 * m * n * terms, row_tasks * column_tasks, |task| {
        let (row, column) = (task / column_tasks * rows, task % column_tasks * columns);
        let rows = row..m.min(row + rows);
        with_scratch([rows.len() * TERMS], |[copy]| {
            cpu.run(GemmTask {
                rows,
                panels: column..panels.min(column + columns),
                base,
                extra,
                bias,
                accumulate,
                out,
                out_stride,
                copy,
            });
        });
    });
}

/// One task of a [`Gemm`]: some rows by some panels.
struct GemmTask<'a> {
    rows: Range<usize>,
    panels: Range<usize>,
    base: (Source<'a>, &'a Packed),
    extra: Option<(Source<'a>, &'a Packed)>,
    bias: Option<&'a [f32]>,
    accumulate: bool,
    out: Shared<'a>,
    out_stride: usize,
    copy: &'a mut [f32],
}

impl Kernel for GemmTask<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine, const N: usize>(self, machine: M) {
        let width = M::TILE_COLUMNS;
        let first_column = self.panels.start * width;
        let columns = (self.panels.end * width).min(self.base.1.n()) - first_column;
        let mut start = match self.bias {
            _ if self.accumulate => Start::Result,
            Some(bias) => Start::Row(bias[first_column..].as_ptr()),
            None => Start::Zero,
        };
        for (x, weight) in [self.base].into_iter().chain(self.extra) {
            let pairs = weight.precision() == Precision::Bf16;
            // Rows that already stand as the micro-kernel wants them are read where they are.
            let in_place = x.in_place(pairs, TERMS, self.rows.start);
            for (first, words) in blocks(weight.words()) {
                let a = match in_place {
                    Some(x) => x[first..].as_ptr(),
                    None => {
                        let k = (weight.k(), pairs);
                        x.copy::<TERMS>(self.rows.clone(), (first, words), k, self.copy);
                        self.copy.as_ptr()
                    }
                };
                let block = Product {
                    rows: self.rows.len(),
                    columns,
                    k: words,
                    a,
                    a_stride: 0,
                    panels: weight.panel(self.panels.start, first).as_ptr(),
                    panel_row: width,
                    panel_stride: weight.words() * width,
                    start,
                    c: self.out.at(self.rows.start * self.out_stride + first_column),
                    c_stride: self.out_stride,
                };
                // SAFETY: `gemm` has checked all slices against their shapes; these rows and columns of `out`
                // are this task's alone.
                unsafe {
                    if pairs {
                        product::<M, TERMS, true>(machine, &block);
                    } else {
                        product::<M, TERMS, false>(machine, &block);
                    }
                }
                start = Start::Result;
            }
        }
    }
}

/// The sum's words in runs of equal length, as (first, length); one empty run if there are none.
pub(super) fn blocks(k: usize) -> impl Iterator<Item = (usize, usize)> {
    let length = k.div_ceil(k.div_ceil(TERMS).max(1)).next_multiple_of(8);
    let runs = k.div_ceil(length.max(1)).max(1);
    (0..runs).map(move |i| (i * length, length.min(k - i * length)))
}
