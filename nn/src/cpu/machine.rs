//! An instruction set as a type, and the kernels compiled for it.
//!
//! Kernels are written once, over [`Machine`], and compiled for each instruction set. All of them multiply and add
//! in one rounding and sum in the same order, so that they give the same bits.
#![allow(unsafe_code, reason = "the micro-kernel works on pointers")]

use pulp::Simd;

use super::tile::Tile;

/// An instruction set as a type, with the micro-tile that fills its registers.
pub(super) trait Machine: Simd {
    /// Rows of the micro-tile.
    const TILE_ROWS: usize;
    /// Columns of the micro-tile.
    const TILE_COLUMNS: usize;

    /// Runs the micro-kernel of a product on a tile of 1 to `TILE_ROWS` rows.
    ///
    /// # Safety
    /// As for [`micro_tile`].
    unsafe fn tile<const ROW: usize, const PAIRS: bool>(self, rows: usize, tile: &Tile);
}

/// A kernel's text, over any instruction set; `N` vectors of it make a block of 16 values.
pub(super) trait Kernel {
    type Output;

    /// Must be `#[inline(always)]`, and so must all that touches a vector in it: a closure or a function that is
    /// compiled on its own lacks the instruction set, and calls a function for every operation.
    fn run<M: Machine, const N: usize>(self, machine: M) -> Self::Output;
}
