//! The micro-kernel of all matrix products: a tile of the result in registers, summed over a panel.
#![allow(unsafe_code, reason = "unchecked access in the innermost loop")]

use super::isa::Machine;

/// One call of the micro-kernel: `c = start + a * panel`, for up to `TILE_ROWS` rows by `TILE_COLUMNS` columns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    /// Length of the sum.
    pub(super) k: usize,
    /// Element (row i, term p) of the left factor is at `i * a_stride + p`, or `p * a_stride + i` if `ACROSS`.
    pub(super) a: *const f32,
    pub(super) a_stride: usize,
    /// `[k, TILE_COLUMNS]`.
    pub(super) panel: *const f32,
    /// Where the accumulators start from; stride 0 for the same row everywhere.
    pub(super) start: *const f32,
    pub(super) start_stride: usize,
    pub(super) c: *mut f32,
    pub(super) c_stride: usize,
}

/// Sums one tile of `R` rows by `V` vectors.
///
/// # Safety
/// For a tile of `R` rows and `TILE_COLUMNS` columns, all elements described by [`Tile`] must be valid to read, and
/// `c` to write; `c` may be `start`, and otherwise nothing else may read or write `c` meanwhile.
#[inline(always)]
pub(super) unsafe fn micro_tile<M: Machine, const R: usize, const V: usize, const ACROSS: bool>(
    m: M,
    t: &Tile,
) {
    let Tile { k, a, a_stride, panel, start, start_stride, c, c_stride } = *t;
    let lanes = M::F32_LANES;
    let mut acc = [[m.splat_f32s(0.0); V]; R];
    // SAFETY: `i < R`, `j * lanes < TILE_COLUMNS` and `p < k`, so every address is one that the caller vouches for.
    unsafe {
        for i in 0..R {
            for j in 0..V {
                acc[i][j] = start.add(i * start_stride + j * lanes).cast::<M::f32s>().read_unaligned();
            }
        }
        for p in 0..k {
            let mut b = [m.splat_f32s(0.0); V];
            for j in 0..V {
                b[j] = panel.add(p * V * lanes + j * lanes).cast::<M::f32s>().read_unaligned();
            }
            for i in 0..R {
                let a = m.splat_f32s(*a.add(if ACROSS { p * a_stride + i } else { i * a_stride + p }));
                for j in 0..V {
                    acc[i][j] = m.mul_add_f32s(a, b[j], acc[i][j]);
                }
            }
        }
        for i in 0..R {
            for j in 0..V {
                c.add(i * c_stride + j * lanes).cast::<M::f32s>().write_unaligned(acc[i][j]);
            }
        }
    }
}

/// Runs a tile of which only the first `used` columns exist in `start` and `c`, by way of `edge`.
///
/// # Safety
/// As for [`micro_tile`], with `used` columns of `c`, and of `start` unless its stride is 0; `edge` has
/// `TILE_ROWS * TILE_COLUMNS` values.
#[inline(always)]
pub(super) unsafe fn edge_tile<M: Machine, const ACROSS: bool>(
    m: M,
    rows: usize,
    used: usize,
    mut tile: Tile,
    edge: &mut [f32],
) {
    let width = M::TILE_COLUMNS;
    let edge = &mut edge[..rows * width];
    let Tile { c, c_stride, .. } = tile;
    // SAFETY: `rows` rows of `used` columns exist, and all columns of the edge do.
    unsafe {
        if tile.start_stride != 0 {
            for (i, to) in edge.chunks_exact_mut(width).enumerate() {
                let from = std::slice::from_raw_parts(tile.start.add(i * tile.start_stride), used);
                to[..used].copy_from_slice(from);
                to[used..].fill(0.0);
            }
            (tile.start, tile.start_stride) = (edge.as_ptr(), width);
        }
        (tile.c, tile.c_stride) = (edge.as_mut_ptr(), width);
        m.tile::<ACROSS>(rows, &tile);
        for (i, from) in edge.chunks_exact(width).enumerate() {
            std::slice::from_raw_parts_mut(c.add(i * c_stride), used).copy_from_slice(&from[..used]);
        }
    }
}
