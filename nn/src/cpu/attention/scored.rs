//! Attention whose scores are more than scaled products: with a bias on each, or causal, as text encoders have it.
//!
//! ```text
//! B  samples    H  heads    T  tokens with queries    U  keys    D  width of a head
//! ```
//!
//! The scores of one head exist at a time: sequences are short, and a bias on every score has to be read in any case.

use std::ops::Range;

use super::AttentionShape;
use crate::cpu::{Cpu, Gemm, Left, Matrix, Packed, Precision, gemm, softmax};

/// What [`scored_attention`] reads and writes.
#[derive(Debug)]
pub struct ScoredAttention<'a> {
    /// The sizes.
    pub shape: AttentionShape,
    /// What the factors of its products are rounded to.
    pub precision: Precision,
    /// The query rows that are computed; rows of `out` outside are left alone.
    pub query_rows: Range<usize>,
    /// What products of queries and keys are multiplied by.
    pub scale: f32,
    /// Added then, `[H, T, U]`, to every sample alike.
    pub bias: Option<&'a [f32]>,
    /// Whether query t sees no key after the t-th.
    pub causal: bool,
    /// `[B, H, T, D]`.
    pub q: &'a [f32],
    /// `[B, H, U, D]`.
    pub k: &'a [f32],
    /// `[B, H, U, D]`.
    pub v: &'a [f32],
    /// `[B, T, H * D]` with a row stride.
    pub out: &'a mut [f32],
    /// Stride of the rows of `out`, at least H * D.
    pub out_stride: usize,
}

/// Computes a [`ScoredAttention`].
///
/// # Panics
/// If a slice is too short for its shape.
pub fn scored_attention(cpu: &Cpu, call: ScoredAttention<'_>) {
    let ScoredAttention { shape, precision, query_rows, scale, bias, causal, q, k, v, out, out_stride } =
        call;
    shape.check(&query_rows, &[q], &[k, v]);
    shape.check_tokens("out", out.len(), out_stride);
    let AttentionShape { batch, heads, tokens, keys, dim } = shape;
    assert!(bias.is_none_or(|b| b.len() >= heads * tokens * keys), "a bias for every score of {shape:?}");
    if query_rows.is_empty() || shape.is_empty() {
        return;
    }
    let rows = query_rows.len();
    let mut scores = cpu.buffers().take(rows * keys);
    for head in 0..batch * heads {
        let q = &q[head * shape.queries() + query_rows.start * dim..][..rows * dim];
        let (k, v) = (&k[head * shape.keys()..][..shape.keys()], &v[head * shape.keys()..][..shape.keys()]);
        let keys_across = Packed::from_weight(cpu, precision, &Matrix::of(k, keys, dim)).passing(cpu);
        product(cpu, rows, (q, dim), &keys_across, (&mut scores, keys));
        scores.iter_mut().for_each(|s| *s *= scale);
        if let Some(bias) = bias {
            let first = (head % heads * tokens + query_rows.start) * keys;
            scores.iter_mut().zip(&bias[first..]).for_each(|(s, b)| *s += b);
        }
        if causal {
            for (query, scores) in query_rows.clone().zip(scores.chunks_exact_mut(keys)) {
                scores[keys.min(query + 1)..].fill(f32::NEG_INFINITY);
            }
        }
        softmax(cpu, keys, &mut scores);
        let values = Packed::from_matrix(cpu, precision, &Matrix::of(v, keys, dim)).passing(cpu);
        let out = &mut out[shape.token_major(head, query_rows.start, out_stride)..];
        product(cpu, rows, (&scores, keys), &values, (out, out_stride));
    }
}

fn product(
    cpu: &Cpu,
    m: usize,
    (x, x_stride): (&[f32], usize),
    weight: &Packed,
    (out, out_stride): (&mut [f32], usize),
) {
    gemm(
        cpu,
        Gemm {
            m,
            x: Left::Rows(x, x_stride),
            weight,
            extra: None,
            bias: None,
            accumulate: false,
            out,
            out_stride,
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: AttentionShape = AttentionShape { batch: 1, heads: 2, tokens: 3, keys: 3, dim: 2 };

    fn run(bias: Option<&[f32]>, causal: bool, query_rows: Range<usize>) -> [f32; 12] {
        // Values of head 0 are 0..6, those of head 1 are 6..12; queries and keys are zero, so that scores are the bias alone.
        let v: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let (zeros, mut out) = ([0.0; 12], [9.0; 12]);
        let call = ScoredAttention {
            shape: SHAPE,
            precision: Precision::F32,
            query_rows,
            scale: 1.0,
            bias,
            causal,
            q: &zeros,
            k: &zeros,
            v: &v,
            out: &mut out,
            out_stride: 4,
        };
        scored_attention(&Cpu::new(1).unwrap(), call);
        out
    }

    fn close(found: &[f32], expected: &[f32]) {
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?} {expected:?}");
    }

    #[test]
    fn a_causal_query_sees_itself_and_earlier_keys_only() {
        close(&run(None, true, 0..3), &[0.0, 1.0, 6.0, 7.0, 1.0, 2.0, 7.0, 8.0, 2.0, 3.0, 8.0, 9.0]);
    }

    #[test]
    fn a_bias_shifts_the_scores_of_its_own_head() {
        let mut bias = [0.0; 18];
        for row in bias[9..].chunks_exact_mut(3) {
            row[2] = std::f32::consts::LN_2;
        }
        let of_both = [2.0, 3.0, 8.5, 9.5];
        close(&run(Some(&bias), false, 0..3), &[of_both; 3].concat());
    }

    #[test]
    fn rows_that_are_not_asked_for_are_left_alone() {
        let all = run(None, true, 0..3);
        let some = run(None, true, 1..2);
        assert_eq!(some[..4], [9.0; 4]);
        assert_eq!(some[4..8], all[4..8]);
        assert_eq!(some[8..], [9.0; 4]);
    }
}
