//! Windows of pictures, copied into rows: a convolution is then a matrix product. Their backward adds what came back from rows to
//! the pixels that were copied.
//!
//! ```text
//! H, W  rows and columns of pixels    C  channels    S  side of a window
//! ```

use std::ops::Range;

use rayon::{
    iter::{IndexedParallelIterator, ParallelIterator},
    slice::ParallelSliceMut,
};

use super::Cpu;
use crate::device::ConvWindow;

/// Pixels whose windows one task copies.
const TASK_PIXELS: usize = 64;

/// The windows of some output pixels of a picture `x [H, W, C]`, one a row of `out [pixels, S S C]`.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn windows(
    device: &Cpu,
    window: ConvWindow,
    (height, width): (usize, usize),
    channels: usize,
    pixels: Range<usize>,
    x: &[f32],
    out: &mut [f32],
) {
    let (side, out_width) = (window.side(), window.output(width));
    let terms = side * side * channels;
    let (first, out) = (pixels.start, &mut out[..pixels.len() * terms]);
    assert!(x.len() >= height * width * channels, "{} values of {height} x {width} pixels", x.len());
    if out.is_empty() {
        return;
    }
    let copy = |pixel: usize, row: &mut [f32]| {
        let (y, column) = (pixel / out_width, pixel % out_width);
        for (tap, to) in row.chunks_exact_mut(channels).enumerate() {
            let from = window.source(y, tap / side, height);
            match from.zip(window.source(column, tap % side, width)) {
                Some((y, column)) => to.copy_from_slice(&x[(y * width + column) * channels..][..channels]),
                None => to.fill(0.0),
            }
        }
    };
    device.pool().install(|| {
        out.par_chunks_mut(TASK_PIXELS * terms).enumerate().for_each(|(task, rows)| {
            for (row, pixel) in rows.chunks_exact_mut(terms).zip(first + task * TASK_PIXELS..) {
                copy(pixel, row);
            }
        });
    });
}

/// Backward of [`windows`]: from the cotangents `dy [pixels, S S C]` of the windows of some output pixels to that of the picture,
/// `dx [H, W, C]`, which is overwritten, or added to with `accumulate`.
///
/// A pixel gathers what its taps have, in the order of the taps, so that no sum depends on the threads.
///
/// # Panics
/// If a slice is too short for its shape.
#[expect(clippy::too_many_arguments, reason = "operands of one kernel, each named in the docs")]
pub fn windows_backward(
    device: &Cpu,
    window: ConvWindow,
    (height, width): (usize, usize),
    channels: usize,
    pixels: Range<usize>,
    dy: &[f32],
    dx: &mut [f32],
    accumulate: bool,
) {
    let (side, out_width) = (window.side(), window.output(width));
    let terms = side * side * channels;
    let (dy, dx) = (&dy[..pixels.len() * terms], &mut dx[..height * width * channels]);
    if dx.is_empty() {
        return;
    }
    let gather = |pixel: usize, to: &mut [f32]| {
        let (y, column) = (pixel / width, pixel % width);
        for tap in 0..side * side {
            for row in window.seen_by(y, tap / side, height) {
                for column in window.seen_by(column, tap % side, width) {
                    let output = row * out_width + column;
                    if !pixels.contains(&output) {
                        continue;
                    }
                    let from = &dy[(output - pixels.start) * terms + tap * channels..][..channels];
                    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
                }
            }
        }
    };
    device.pool().install(|| {
        dx.par_chunks_mut(TASK_PIXELS * channels).enumerate().for_each(|(task, part)| {
            for (to, pixel) in part.chunks_exact_mut(channels).zip(task * TASK_PIXELS..) {
                if !accumulate {
                    to.fill(0.0);
                }
                gather(pixel, to);
            }
        });
    });
}
