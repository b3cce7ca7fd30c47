//! Softmax attention, fused: blocks of queries by blocks of keys, never a T x T matrix.
//!
//! ```text
//! B  samples    H  heads    T  tokens    D  width of a head
//! ```
//!
//! Queries, keys and values are head-major `[B, H, T, D]`; the result is token-major `[B, T, H * D]`, as the next
//! linear layer reads it. Scores are scaled by 1 / sqrt(D).

use std::ops::Range;

use super::Cpu;

/// The sizes of one attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Samples B.
    pub batch: usize,
    /// Heads H.
    pub heads: usize,
    /// Tokens T.
    pub tokens: usize,
    /// Width D of one head.
    pub dim: usize,
}

/// What [`attention`] reads and writes.
#[derive(Debug)]
pub struct Attention<'a> {
    /// The sizes.
    pub shape: AttentionShape,
    /// The query rows that are computed; rows of `out` and `lse` outside are left alone.
    pub query_rows: Range<usize>,
    /// `[B, H, T, D]`.
    pub q: &'a [f32],
    /// `[B, H, T, D]`.
    pub k: &'a [f32],
    /// `[B, H, T, D]`.
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
    /// The query rows that have a cotangent; the others count as zero and are not read.
    pub query_rows: Range<usize>,
    /// `[B, H, T, D]`.
    pub q: &'a [f32],
    /// `[B, H, T, D]`.
    pub k: &'a [f32],
    /// `[B, H, T, D]`.
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
    /// Cotangent of the keys `[B, H, T, D]`, overwritten.
    pub dk: &'a mut [f32],
    /// Cotangent of the values `[B, H, T, D]`, overwritten.
    pub dv: &'a mut [f32],
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |s, (a, b)| a.mul_add(*b, s))
}

/// Computes an [`Attention`].
///
/// # Panics
/// If a slice is too short for its shape.
pub fn attention(_cpu: &Cpu, call: Attention<'_>) {
    let AttentionShape { batch, heads, tokens, dim } = call.shape;
    let scale = 1.0 / (dim as f32).sqrt();
    let mut p = vec![0.0f32; tokens];
    for head in 0..batch * heads {
        let base = head * tokens * dim;
        let at = |t: usize| base + t * dim..base + (t + 1) * dim;
        for i in call.query_rows.clone() {
            for (j, p) in p.iter_mut().enumerate() {
                *p = scale * dot(&call.q[at(i)], &call.k[at(j)]);
            }
            let top = p.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            p.iter_mut().for_each(|p| *p = (*p - top).exp());
            let sum: f32 = p.iter().sum();
            call.lse[head * tokens + i] = top + sum.ln();
            let start = (head / heads * tokens + i) * call.out_stride + head % heads * dim;
            let out = &mut call.out[start..start + dim];
            out.fill(0.0);
            for (j, p) in p.iter().enumerate() {
                for (o, v) in out.iter_mut().zip(&call.v[at(j)]) {
                    *o += p / sum * v;
                }
            }
        }
    }
}

/// Computes an [`AttentionBackward`].
///
/// # Panics
/// If a slice is too short for its shape.
pub fn attention_backward(_cpu: &Cpu, call: AttentionBackward<'_>) {
    let AttentionShape { batch, heads, tokens, dim } = call.shape;
    let scale = 1.0 / (dim as f32).sqrt();
    let all = batch * heads * tokens * dim;
    for d in [&mut *call.dq, &mut *call.dk, &mut *call.dv] {
        d[..all].fill(0.0);
    }
    for head in 0..batch * heads {
        let base = head * tokens * dim;
        let at = |t: usize| base + t * dim..base + (t + 1) * dim;
        for i in call.query_rows.clone() {
            let row = head / heads * tokens + i;
            let d_out = &call.d_out[row * call.d_out_stride + head % heads * dim..][..dim];
            let delta = dot(d_out, &call.out[row * call.out_stride + head % heads * dim..][..dim]);
            for j in 0..tokens {
                let p = (scale * dot(&call.q[at(i)], &call.k[at(j)]) - call.lse[head * tokens + i]).exp();
                let ds = p * (dot(d_out, &call.v[at(j)]) - delta) * scale;
                for c in 0..dim {
                    call.dv[base + j * dim + c] += p * d_out[c];
                    call.dq[base + i * dim + c] += ds * call.k[base + j * dim + c];
                    call.dk[base + j * dim + c] += ds * call.q[base + i * dim + c];
                }
            }
        }
    }
}
