//! Softmax attention, fused: blocks of queries by blocks of keys, never a T x T matrix.
//!
//! ```text
//! B  samples    H  heads    T  tokens with queries    U  keys    D  width of a head
//! ```
//!
//! Queries are head-major `[B, H, T, D]`, and so are keys and values `[B, H, U, D]`; the result is token-major `[B, T, H * D]`, as the next
//! linear layer reads it. Scores are scaled by 1 / sqrt(D).
//!
//! The forward pass is the online softmax of Milakov and Gimelshein (2018), the backward pass recomputes the
//! probabilities from the saved log-sum-exp (Dao et al. 2022). A row of the result depends on its query and on all
//! keys only, and its sums run in the order of the keys; those of a key's cotangent run in the order of the queries.

mod backward;
mod forward;
mod operands;
mod scored;

use std::ops::Range;

pub use scored::{ScoredAttention, scored_attention};

use super::{AttentionShape, Cpu, Precision};

/// Keys of one block: whole micro-tiles, and the same for every instruction set, since it decides where a running sum is
/// rescaled.
const KEYS: usize = 192;
/// Queries of one block: whole micro-tiles and whole panels of every instruction set.
const QUERIES: usize = 96;
/// Blocks of lanes in a row of scores.
const LANES: usize = QUERIES / crate::cpu::math::BLOCK;
/// Widest head.
pub const WIDEST: usize = 512;

/// What [`attention`] reads and writes.
#[derive(Debug)]
pub struct Attention<'a> {
    /// The sizes.
    pub shape: AttentionShape,
    /// What the factors of its products are rounded to: queries, keys, values, probabilities and their cotangents.
    pub precision: Precision,
    /// The query rows that are computed; rows of `out` and `lse` outside are left alone.
    pub query_rows: Range<usize>,
    /// `[B, H, T, D]`.
    pub q: &'a [f32],
    /// `[B, H, U, D]`.
    pub k: &'a [f32],
    /// `[B, H, U, D]`.
    pub v: &'a [f32],
    /// `[B, T, H * D]` with a row stride.
    pub out: &'a mut [f32],
    /// Stride of the rows of `out`, at least H * D; a sample is T rows.
    pub out_stride: usize,
    /// `[B, H, T]`: logarithm of the sum of the exponentials of the scaled scores, for the backward pass.
    pub lse: &'a mut [f32],
}

/// What [`attention_backward`] reads and writes.
#[derive(Debug)]
pub struct AttentionBackward<'a> {
    /// The sizes.
    pub shape: AttentionShape,
    /// What the factors of its products are rounded to: queries, keys, values, probabilities and their cotangents.
    pub precision: Precision,
    /// The query rows that have a cotangent; the others count as zero and are not read.
    pub query_rows: Range<usize>,
    /// `[B, H, T, D]`.
    pub q: &'a [f32],
    /// `[B, H, U, D]`.
    pub k: &'a [f32],
    /// `[B, H, U, D]`.
    pub v: &'a [f32],
    /// The forward result `[B, T, H * D]`, with a row stride.
    pub out: &'a [f32],
    /// Stride of the rows of `out`.
    pub out_stride: usize,
    /// `[B, H, T]` of the forward pass.
    pub lse: &'a [f32],
    /// Cotangent of `out`, `[B, T, H * D]` with a row stride.
    pub d_out: &'a [f32],
    /// Stride of the rows of `d_out`.
    pub d_out_stride: usize,
    /// Cotangent of the queries `[B, H, T, D]`, overwritten (zero outside `query_rows`).
    pub dq: &'a mut [f32],
    /// Cotangent of the keys `[B, H, U, D]`, overwritten.
    pub dk: &'a mut [f32],
    /// Cotangent of the values `[B, H, U, D]`, overwritten.
    pub dv: &'a mut [f32],
}

/// Computes an [`Attention`].
///
/// # Panics
/// If a slice is too short for its shape.
pub fn attention(cpu: &Cpu, call: Attention<'_>) {
    call.shape.check(&call.query_rows, &[call.q], &[call.k, call.v]);
    call.shape.check_tokens("out", call.out.len(), call.out_stride);
    call.shape.check_saved(call.lse.len());
    if call.query_rows.is_empty() || call.shape.is_empty() {
        return;
    }
    forward::run(cpu, call);
}

/// Computes an [`AttentionBackward`].
///
/// # Panics
/// If a slice is too short for its shape.
pub fn attention_backward(cpu: &Cpu, call: AttentionBackward<'_>) {
    call.shape.check(&call.query_rows, &[call.q, call.dq], &[call.k, call.v, call.dk, call.dv]);
    call.shape.check_tokens("out", call.out.len(), call.out_stride);
    call.shape.check_tokens("d_out", call.d_out.len(), call.d_out_stride);
    call.shape.check_saved(call.lse.len());
    if !call.shape.is_empty() {
        backward::run(cpu, call);
    }
}

impl AttentionShape {
    /// Values of one head's queries.
    fn queries(&self) -> usize {
        self.tokens * self.dim
    }

    /// Values of one head's keys.
    fn keys(&self) -> usize {
        self.keys * self.dim
    }

    fn is_empty(&self) -> bool {
        self.batch * self.heads * self.queries() == 0
    }

    /// Where the values of a token and a head start in token-major rows; heads count through all samples.
    fn token_major(&self, head: usize, token: usize, stride: usize) -> usize {
        (head / self.heads * self.tokens + token) * stride + head % self.heads * self.dim
    }

    fn check(&self, rows: &Range<usize>, queries: &[&[f32]], keys: &[&[f32]]) {
        assert!(self.dim <= WIDEST, "heads of {}: at most {WIDEST}", self.dim);
        assert!(rows.end <= self.tokens, "query rows {rows:?} of {} tokens", self.tokens);
        assert!(self.keys > 0 || rows.is_empty(), "queries without a key");
        for (all, each) in [(queries, self.queries()), (keys, self.keys())] {
            let least = self.batch * self.heads * each;
            assert!(all.iter().all(|values| values.len() >= least), "fewer than {least} values for {self:?}");
        }
    }

    fn check_tokens(&self, name: &str, len: usize, stride: usize) {
        super::check::check_matrix(name, len, self.batch * self.tokens, self.heads * self.dim, stride);
    }

    fn check_saved(&self, len: usize) {
        assert!(len >= self.batch * self.heads * self.tokens, "{len} values of lse for {self:?}");
    }
}
