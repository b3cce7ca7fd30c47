//! Rows of a head as operands of the micro-kernel: where they stand, or copied where they must be.
#![allow(unsafe_code, reason = "operands are pointers")]

use crate::cpu::packed::pack;

/// Runs a kernel with its heads' rows at a distance that the micro-kernel knows as a constant.
///
/// The published widths 64 and 128 are such distances: there nothing is copied.
macro_rules! with_row {
    ($dim:expr, $row:ident => $run:expr) => {
        match $dim {
            0..=64 => {
                const $row: usize = 64;
                $run
            }
            65..=128 => {
                const $row: usize = 128;
                $run
            }
            129..=256 => {
                const $row: usize = 256;
                $run
            }
            _ => {
                const $row: usize = super::WIDEST;
                $run
            }
        }
    };
}
pub(super) use with_row;

/// Distance between rows of heads of this width.
pub(super) fn row_of(dim: usize) -> usize {
    with_row!(dim, ROW => ROW)
}

/// Rows `[count, dim]` at the distance `ROW`: where they stand, if they stand so, or in `scratch`.
pub(super) fn along<const ROW: usize>(
    rows: &[f32],
    stride: usize,
    dim: usize,
    count: usize,
    scratch: &mut [f32],
) -> *const f32 {
    if stride == ROW {
        return rows[..count * ROW].as_ptr();
    }
    for (to, from) in scratch.chunks_exact_mut(ROW).zip(rows.chunks(stride)).take(count) {
        to[..dim].copy_from_slice(&from[..dim]);
    }
    scratch.as_ptr()
}

/// A right factor `[k, n]`: its first panel, the distance between rows of a panel, and that between panels.
#[derive(Clone, Copy)]
pub(super) struct Panels {
    pub start: *const f32,
    pub row: usize,
    pub stride: usize,
}

/// Rows `[k, n]` as panels: where they stand, if they are whole panels, or in `scratch` with zeros at the end.
pub(super) fn panels(
    rows: &[f32],
    stride: usize,
    k: usize,
    n: usize,
    width: usize,
    scratch: &mut [f32],
) -> Panels {
    if n.is_multiple_of(width) {
        assert!(rows.len() >= (k - 1) * stride + n, "rows of a factor");
        return Panels { start: rows.as_ptr(), row: stride, stride: width };
    }
    let padded = n.next_multiple_of(width);
    pack(rows, stride, k, n, width, &mut scratch[..k * padded]);
    Panels { start: scratch.as_ptr(), row: width, stride: k * width }
}
