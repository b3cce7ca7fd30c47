//! Copies, by several threads where they are large.

use rayon::{
    iter::{IndexedParallelIterator, ParallelIterator},
    slice::ParallelSliceMut,
};

use super::{Cpu, TokenRows, check::check_matrix};

/// Below this many values a copy runs on the caller's own thread: waking the pool costs about as much.
const WORTH_A_POOL: usize = 1 << 16;
/// Values that one task copies of a run without rows.
const PART: usize = 1 << 14;

/// `to = from`.
///
/// # Panics
/// If they differ in length.
pub fn copy(cpu: &Cpu, from: &[f32], to: &mut [f32]) {
    assert_eq!(from.len(), to.len(), "values of a copy");
    rows(cpu, to, PART, |i, to| to.copy_from_slice(&from[i * PART..][..to.len()]));
}

/// Copies rows of tokens `[B, T, D]` from one order to another: both sides are values, the distance between the starts of two
/// rows, and the number of rows between two samples.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn copy_tokens(
    cpu: &Cpu,
    TokenRows { batch, tokens, width }: TokenRows,
    (from, from_stride, from_tokens): (&[f32], usize, usize),
    (to, to_stride, to_tokens): (&mut [f32], usize, usize),
) {
    assert!(from_tokens >= tokens && to_tokens >= tokens, "samples do not overlap");
    if batch * tokens * width == 0 {
        return;
    }
    let used = |tokens_apart: usize| (batch - 1) * tokens_apart + tokens;
    check_matrix("from", from.len(), used(from_tokens), width, from_stride);
    check_matrix("to", to.len(), used(to_tokens), width, to_stride);
    let last = (used(to_tokens) - 1) * to_stride + width;
    rows(cpu, &mut to[..last], to_stride, |i, to| {
        let (sample, token) = (i / to_tokens, i % to_tokens);
        if token < tokens {
            to[..width].copy_from_slice(&from[(sample * from_tokens + token) * from_stride..][..width]);
        }
    });
}

/// Calls `copy(i, row)` for every row of `to`, `stride` apart; the last may be shorter.
fn rows(cpu: &Cpu, to: &mut [f32], stride: usize, copy: impl Fn(usize, &mut [f32]) + Send + Sync) {
    if to.len() < WORTH_A_POOL {
        to.chunks_mut(stride).enumerate().for_each(|(i, row)| copy(i, row));
        return;
    }
    let each = WORTH_A_POOL.div_ceil(4 * stride);
    cpu.pool().install(|| {
        to.par_chunks_mut(stride).with_min_len(each).enumerate().for_each(|(i, row)| copy(i, row));
    });
}
