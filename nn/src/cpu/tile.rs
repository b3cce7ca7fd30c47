//! The micro-kernel of all matrix products: a tile of the result in registers, summed over a panel.
//!
//! Factors are words: one f32, or with `PAIRS` two neighbouring terms in bf16 (see `precision`).
#![allow(unsafe_code, reason = "unchecked access in the innermost loop")]
#![allow(clippy::needless_range_loop, reason = "indices into register arrays are unrolled")]

use super::isa::Machine;

/// One call of the micro-kernel: `c = start + a * panel`, for up to `TILE_ROWS` rows by `TILE_COLUMNS` columns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    /// Length of the sum, in words.
    pub(super) k: usize,
    /// Element (row i, term p) of the left factor is at `i * ROW + p`; at `p * a_stride + i` if `ROW` is [`ACROSS`].
    pub(super) a: *const f32,
    pub(super) a_stride: usize,
    /// `[k, TILE_COLUMNS]`, rows `panel_row` apart.
    pub(super) panel: *const f32,
    pub(super) panel_row: usize,
    /// Where the accumulators start from; stride 0 for the same row everywhere.
    pub(super) start: *const f32,
    pub(super) start_stride: usize,
    pub(super) c: *mut f32,
    pub(super) c_stride: usize,
}

/// In the place of a constant distance between rows: the left factor is read across, rows as neighbours.
///
/// A constant distance becomes part of the instructions' addresses. With a distance in a register, the twelve addresses of
/// a term do not fit the registers that are left, and the loop runs at two thirds of its speed.
pub(super) const ACROSS: usize = 0;

/// Sums one tile of `R` rows by `V` vectors.
///
/// # Safety
/// For a tile of `R` rows and `TILE_COLUMNS` columns, all elements described by [`Tile`] must be valid to read, and
/// `c` to write; `c` may be `start`, and otherwise nothing else may read or write `c` meanwhile.
#[inline(always)]
pub(super) unsafe fn micro_tile<
    M: Machine,
    const R: usize,
    const V: usize,
    const ROW: usize,
    const PAIRS: bool,
>(
    m: M,
    t: &Tile,
) {
    let Tile { k, a, a_stride, panel, panel_row, start, start_stride, c, c_stride } = *t;
    let lanes = M::F32_LANES;
    let mut acc = [[m.splat_f32s(0.0); V]; R];
    // SAFETY: `i < R`, `j * lanes < TILE_COLUMNS` and `p < k`, so every address is one that the caller vouches for.
    unsafe {
        for i in 0..R {
            for j in 0..V {
                acc[i][j] = start.add(i * start_stride + j * lanes).cast::<M::f32s>().read_unaligned();
            }
        }
        let mut p = 0;
        while p + unroll(R) <= k {
            for u in 0..unroll(R) {
                term::<M, R, V, ROW, PAIRS>(m, (a, a_stride), (panel, panel_row), p + u, &mut acc);
            }
            p += unroll(R);
        }
        while p < k {
            term::<M, R, V, ROW, PAIRS>(m, (a, a_stride), (panel, panel_row), p, &mut acc);
            p += 1;
        }
        for i in 0..R {
            for j in 0..V {
                c.add(i * c_stride + j * lanes).cast::<M::f32s>().write_unaligned(acc[i][j]);
            }
        }
    }
}

/// Terms in one turn of the loop: a few for small tiles; large ones fill it, and their registers leave no room.
const fn unroll(rows: usize) -> usize {
    if rows <= 6 { 4 } else { 1 }
}

/// Adds term `p` of the sums of a tile.
///
/// # Safety
/// As for [`micro_tile`], with `p` less than the length of the sum.
#[inline(always)]
unsafe fn term<M: Machine, const R: usize, const V: usize, const ROW: usize, const PAIRS: bool>(
    m: M,
    (a, a_stride): (*const f32, usize),
    (panel, panel_row): (*const f32, usize),
    p: usize,
    acc: &mut [[M::f32s; V]; R],
) {
    let lanes = M::F32_LANES;
    // SAFETY: `i < R` and `j < V`.
    unsafe {
        let mut b = [m.splat_f32s(0.0); V];
        for j in 0..V {
            b[j] = panel.add(p * panel_row + j * lanes).cast::<M::f32s>().read_unaligned();
        }
        for i in 0..R {
            let a = *a.add(if ROW == ACROSS { p * a_stride + i } else { i * ROW + p });
            if PAIRS {
                // Two terms in a word: the second, in the high half, first.
                let (second, first) = halves(m, m.splat_f32s(a));
                for j in 0..V {
                    let (b_second, b_first) = halves(m, b[j]);
                    acc[i][j] = m.mul_add_f32s(first, b_first, m.mul_add_f32s(second, b_second, acc[i][j]));
                }
            } else {
                let a = m.splat_f32s(a);
                for j in 0..V {
                    acc[i][j] = m.mul_add_f32s(a, b[j], acc[i][j]);
                }
            }
        }
    }
}

/// The second and the first bf16 of words, widened.
#[inline(always)]
fn halves<M: Machine>(m: M, words: M::f32s) -> (M::f32s, M::f32s) {
    let bits = m.transmute_u32s_f32s(words);
    let high = m.and_u32s(bits, m.splat_u32s(0xffff_0000));
    let low = m.wrapping_dyn_shl_u32s(bits, m.splat_u32s(16));
    (m.transmute_f32s_u32s(high), m.transmute_f32s_u32s(low))
}

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
        (tile.start, tile.start_stride) = (edge.as_ptr(), width);
        (tile.c, tile.c_stride) = (edge.as_mut_ptr(), width);
        m.tile::<ROW, PAIRS>(rows, &tile);
        for (i, from) in edge.chunks_exact(width).enumerate() {
            std::slice::from_raw_parts_mut(c.add(i * c_stride), used).copy_from_slice(&from[..used]);
        }
    }
}
