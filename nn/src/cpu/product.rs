//! A block of a matrix product, cut into tiles for the micro-kernel.
#![allow(unsafe_code, reason = "the micro-kernel works on pointers")]

use super::{
    machine::Machine,
    tile::{ACROSS, Tile},
};

/// Where the accumulators of a product start from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start {
    Zero,
    /// The same row, of all columns, for every row.
    Row(*const f32),
    /// What the result holds.
    Result,
}

/// `c = start + a * panels`: a block of a matrix product, cut into micro-tiles.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product {
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Length of the sum, in words.
    pub(super) k: usize,
    /// Element (row i, term p) of the left factor is at `i * ROW + p`; at `p * a_stride + i` if `ROW` is [`ACROSS`].
    pub(super) a: *const f32,
    pub(super) a_stride: usize,
    /// The first panel `[k, TILE_COLUMNS]`, the distance between its rows, and that to the next panel.
    pub(super) panels: *const f32,
    pub(super) panel_row: usize,
    pub(super) panel_stride: usize,
    pub(super) start: Start,
    pub(super) c: *mut f32,
    pub(super) c_stride: usize,
}

/// Widest micro-tile of all instruction sets.
const WIDEST: usize = 32;
static ZEROS: [f32; WIDEST] = [0.0; WIDEST];

/// Computes a product. A panel stays in the first cache while all rows pass.
///
/// # Safety
/// All elements described by [`Product`] must be valid to read, and `c` to write, with nothing else reading or
/// writing `c` meanwhile; the last panel is whole even where `columns` ends inside it.
#[inline(always)]
pub(super) unsafe fn product<M: Machine, const ROW: usize, const PAIRS: bool>(m: M, product: &Product) {
    let Product { rows, columns, k, a, a_stride, panels, panel_row, panel_stride, start, c, c_stride } =
        *product;
    let width = M::TILE_COLUMNS;
    // SAFETY: rows `i..i + height` and columns `first..first + used` are inside the block.
    unsafe {
        for (panel, first) in (0..columns).step_by(width).enumerate() {
            let used = width.min(columns - first);
            for i in (0..rows).step_by(M::TILE_ROWS) {
                let height = M::TILE_ROWS.min(rows - i);
                let c = c.add(i * c_stride + first);
                let (start, start_stride) = match start {
                    Start::Zero => (ZEROS.as_ptr(), 0),
                    Start::Row(row) => (row.add(first), 0),
                    Start::Result => (c.cast_const(), c_stride),
                };
                let tile = Tile {
                    k,
                    a: a.add(if ROW == ACROSS { i } else { i * ROW }),
                    a_stride,
                    panel: panels.add(panel * panel_stride),
                    panel_row,
                    start,
                    start_stride,
                    c,
                    c_stride,
                };
                if used == width {
                    m.tile::<ROW, PAIRS>(height, &tile);
                } else {
                    edge_tile::<M, ROW, PAIRS>(m, height, used, tile);
                }
            }
        }
    }
}

/// Runs a tile of which only the first `used` columns exist in `start` and `c`.
///
/// # Safety
/// As for [`micro_tile`], with `used` columns of `c` and of `start`.
#[inline(always)]
unsafe fn edge_tile<M: Machine, const ROW: usize, const PAIRS: bool>(
    m: M,
    rows: usize,
    used: usize,
    mut tile: Tile,
) {
    let width = M::TILE_COLUMNS;
    let mut edge = [0.0f32; 12 * WIDEST];
    let edge = &mut edge[..rows * width];
    let Tile { c, c_stride, .. } = tile;
    // SAFETY: `rows` rows of `used` columns exist, and all columns of the edge do.
    unsafe {
        for (i, to) in edge.chunks_exact_mut(width).enumerate() {
            let from = std::slice::from_raw_parts(tile.start.add(i * tile.start_stride), used);
            to[..used].copy_from_slice(from);
        }
        // One pointer for both: a second borrow of the edge would end what the first one may do.
        (tile.c, tile.c_stride) = (edge.as_mut_ptr(), width);
        (tile.start, tile.start_stride) = (tile.c.cast_const(), width);
        m.tile::<ROW, PAIRS>(rows, &tile);
        for (i, from) in edge.chunks_exact(width).enumerate() {
            std::slice::from_raw_parts_mut(c.add(i * c_stride), used).copy_from_slice(&from[..used]);
        }
    }
}
