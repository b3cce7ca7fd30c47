//! Rows of a head as operands of the micro-kernel: used in place, or copied if they have to be.
#![allow(unsafe_code, reason = "operands are pointers")]

use crate::cpu::{
    Precision,
    packed::{pack, pack_pairs, pack_transposed},
    precision::pack_row,
};

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

/// Values of scratch for `count` rows of keys or values; none where they are read where they stand.
pub(super) fn along_len(precision: Precision, dim: usize, count: usize) -> usize {
    let row = row_of(dim);
    if precision == Precision::F32 && row == dim { 0 } else { count * row }
}

/// Rows `[count, dim]`, without gaps, at the distance `ROW`: where they stand, if they stand so, or in `scratch`.
#[inline(always)]
pub(super) fn along<const ROW: usize, const PAIRS: bool>(
    rows: &[f32],
    dim: usize,
    count: usize,
    scratch: &mut [f32],
) -> *const f32 {
    if dim == ROW && !PAIRS {
        return rows[..count * ROW].as_ptr();
    }
    for (to, from) in scratch.chunks_exact_mut(ROW).zip(rows.chunks_exact(dim)).take(count) {
        if PAIRS {
            pack_row(from, to);
        } else {
            to[..dim].copy_from_slice(from);
        }
    }
    scratch.as_ptr()
}

/// The transpose of rows `[count, dim]` as panels `[dim, width]`, in words along `dim`.
#[inline(always)]
pub(super) fn across<const PAIRS: bool>(
    rows: &[f32],
    stride: usize,
    count: usize,
    dim: usize,
    width: usize,
    panels: &mut [f32],
) {
    if !PAIRS {
        return pack_transposed(rows, stride, count, dim, width, panels);
    }
    let words = dim.div_ceil(2);
    let mut packed = [0.0; super::WIDEST / 2];
    for (panel, first) in (0..count).step_by(width).enumerate() {
        let panel = &mut panels[panel * words * width..][..words * width];
        if count - first < width {
            panel.fill(0.0);
        }
        for column in 0..width.min(count - first) {
            pack_row(&rows[(first + column) * stride..][..dim], &mut packed);
            for (to, word) in panel[column..].iter_mut().step_by(width).zip(&packed[..words]) {
                *to = *word;
            }
        }
    }
}

/// A right factor `[k, n]`: its first panel, the distance between rows of a panel, and that between panels.
#[derive(Clone, Copy)]
pub(super) struct Panels {
    pub start: *const f32,
    pub row: usize,
    pub stride: usize,
}

/// Values of scratch for [`panels`] of `k` rows of `n`.
pub(super) fn panels_len(precision: Precision, k: usize, n: usize, width: usize) -> usize {
    match precision {
        Precision::F32 if n.is_multiple_of(width) => 0,
        _ => precision.words(k) * n.next_multiple_of(width),
    }
}

/// Rows `[k, n]` as panels, in words along `k`: where they stand, if they are whole panels of f32, or in `scratch` with
/// zeros at the end.
#[inline(always)]
pub(super) fn panels<const PAIRS: bool>(
    rows: &[f32],
    stride: usize,
    k: usize,
    n: usize,
    width: usize,
    scratch: &mut [f32],
) -> Panels {
    if n.is_multiple_of(width) && !PAIRS {
        assert!(rows.len() >= (k - 1) * stride + n, "rows of a factor");
        return Panels { start: rows.as_ptr(), row: stride, stride: width };
    }
    let words = if PAIRS { k.div_ceil(2) } else { k };
    let to = &mut scratch[..words * n.next_multiple_of(width)];
    if PAIRS {
        pack_pairs(rows, stride, k, n, width, to);
    } else {
        pack(rows, stride, k, n, width, to);
    }
    Panels { start: to.as_ptr(), row: width, stride: words * width }
}
