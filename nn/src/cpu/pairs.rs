//! The micro-kernel for pairs of bf16, using the bf16 instruction of some x86-64 processors.
#![cfg(target_arch = "x86_64")]
#![allow(unsafe_code, reason = "unchecked access in the innermost loop")]
#![allow(clippy::needless_range_loop, reason = "indices into register arrays are unrolled")]

use std::arch::x86_64::{
    __m512, __m512bh, _mm512_castsi512_ps, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
};

use super::tile::{ACROSS, PairsTile, Tile};

/// Vectors of a tile's row.
const V: usize = 2;

/// The tile for a distance between rows and a number of rows, if this processor has the instruction.
#[inline(always)]
pub(super) fn tile(row: usize, rows: usize) -> Option<PairsTile> {
    if !std::arch::is_x86_feature_detected!("avx512bf16") {
        return None;
    }
    macro_rules! pick {
        ($($row:literal)*) => {
            match row {
                ACROSS => pick!(@ ACROSS),
                $($row => pick!(@ $row),)*
                _ => None,
            }
        };
        (@ $row:expr) => {
            match rows {
                12 => Some(micro_tile::<12, { $row }> as PairsTile),
                11 => Some(micro_tile::<11, { $row }>),
                10 => Some(micro_tile::<10, { $row }>),
                9 => Some(micro_tile::<9, { $row }>),
                8 => Some(micro_tile::<8, { $row }>),
                7 => Some(micro_tile::<7, { $row }>),
                6 => Some(micro_tile::<6, { $row }>),
                5 => Some(micro_tile::<5, { $row }>),
                4 => Some(micro_tile::<4, { $row }>),
                3 => Some(micro_tile::<3, { $row }>),
                2 => Some(micro_tile::<2, { $row }>),
                1 => Some(micro_tile::<1, { $row }>),
                _ => None,
            }
        };
    }
    // The distances of gemm's and attention's operands.
    pick!(48 64 128 256 512)
}

/// Sums one tile of `R` rows; words are pairs.
///
/// # Safety
/// As for `tile::micro_tile`, on a processor with AVX-512 BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn micro_tile<const R: usize, const ROW: usize>(t: &Tile) {
    let Tile { k, a, a_stride, panel, panel_row, start, start_stride, c, c_stride } = *t;
    let mut acc = [[_mm512_setzero_ps(); V]; R];
    // SAFETY: `i < R`, `j < V` and `p < k`, so every address is one that the caller vouches for.
    unsafe {
        for i in 0..R {
            for j in 0..V {
                acc[i][j] = _mm512_loadu_ps(start.add(i * start_stride + j * 16));
            }
        }
        for p in 0..k {
            let mut b = [as_pairs(_mm512_setzero_ps()); V];
            for j in 0..V {
                b[j] = as_pairs(_mm512_castsi512_ps(_mm512_loadu_si512(
                    panel.add(p * panel_row + j * 16).cast(),
                )));
            }
            for i in 0..R {
                let word = *a.add(if ROW == ACROSS { p * a_stride + i } else { i * ROW + p }).cast::<i32>();
                let word = as_pairs(_mm512_castsi512_ps(_mm512_set1_epi32(word)));
                for j in 0..V {
                    acc[i][j] = _mm512_dpbf16_ps(acc[i][j], word, b[j]);
                }
            }
        }
        for i in 0..R {
            for j in 0..V {
                _mm512_storeu_ps(c.add(i * c_stride + j * 16), acc[i][j]);
            }
        }
    }
}

/// The same bits as pairs.
#[inline(always)]
fn as_pairs(words: __m512) -> __m512bh {
    // SAFETY: both are 64 bytes of plain data.
    unsafe { std::mem::transmute(words) }
}
