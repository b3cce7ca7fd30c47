//! The argument of a micro-kernel: one tile of a product's result, and the panels it is summed over.
//!
//! Factors are words: one f32, or two neighbouring terms in bf16 (see `precision`).

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

/// A tile in pairs of bf16 by an instruction of its own.
pub(super) type PairsTile = unsafe fn(&Tile);
