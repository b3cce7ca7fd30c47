//! The micro-kernel of all matrix products: a tile of the result in registers, summed over a panel.
#![allow(unsafe_code, reason = "unchecked access in the innermost loop")]
#![allow(clippy::needless_range_loop, reason = "indices into register arrays are unrolled")]

use pulp::Simd;

use super::tile::{ACROSS, Tile};

/// Sums one tile of `R` rows by `V` vectors.
///
/// # Safety
/// For a tile of `R` rows and `TILE_COLUMNS` columns, all elements described by [`Tile`] must be valid to read, and
/// `c` to write; `c` may be `start`, and otherwise nothing else may read or write `c` meanwhile.
#[inline(always)]
pub(super) unsafe fn micro_tile<
    M: Simd,
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
unsafe fn term<M: Simd, const R: usize, const V: usize, const ROW: usize, const PAIRS: bool>(
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
fn halves<M: Simd>(m: M, words: M::f32s) -> (M::f32s, M::f32s) {
    let bits = m.transmute_u32s_f32s(words);
    let high = m.and_u32s(bits, m.splat_u32s(0xffff_0000));
    let low = m.wrapping_dyn_shl_u32s(bits, m.splat_u32s(16));
    (m.transmute_f32s_u32s(high), m.transmute_f32s_u32s(low))
}
