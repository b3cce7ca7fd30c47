//! Fused attention against softmax(q k^T / sqrt(D)) v and its derivative, in f64.

#![allow(clippy::disallowed_methods, reason = "expected values: their last bits do not matter")]

use std::ops::Range;

use half::bf16;
use prefgraph_nn::cpu::{
    Attention, AttentionBackward, AttentionShape, Cpu, Precision, attention, attention_backward,
};

use crate::{Numbers, assert_close, assert_same_bits, cases::SMALL, same_on_all_devices};

/// On both sides of the tiles of keys that the processor has, too.
fn shapes() -> impl Iterator<Item = AttentionShape> {
    let tiles = [
        (1, 1, 256, 256, 8),
        (1, 1, 257, 257, 32),
        (1, 1, 530, 530, 6),
        (1, 1, 5, 400, 40),
        (3, 1, 96, 96, 20),
    ];
    let shape = |(batch, heads, tokens, keys, dim)| AttentionShape { batch, heads, tokens, keys, dim };
    SMALL.attention.iter().copied().chain(tiles.map(shape))
}

struct Case {
    shape: AttentionShape,
    precision: Precision,
    stride: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    d_out: Vec<f32>,
}

/// Where value `c` of token `t` of a head stands in token-major rows.
fn token_major(s: AttentionShape, stride: usize, head: usize, t: usize, c: usize) -> usize {
    (head / s.heads * s.tokens + t) * stride + head % s.heads * s.dim + c
}

impl Case {
    fn new(shape: AttentionShape) -> Self {
        let AttentionShape { batch, heads, tokens, keys, dim } = shape;
        let mut numbers = Numbers::new((tokens * 1009 + dim) as u64);
        let (queries, values) = (batch * heads * tokens * dim, batch * heads * keys * dim);
        let stride = heads * dim + tokens % 3;
        let mut wide = |count| numbers.many(count).into_iter().map(|x| 3.0 * x).collect();
        let (q, k) = (wide(queries), wide(values));
        Self {
            shape,
            precision: Precision::F32,
            stride,
            q,
            k,
            v: numbers.many(values),
            d_out: numbers.many(batch * tokens * stride),
        }
    }

    /// The result followed by the log-sum-exp; rows that are not computed are 9.
    fn forward(&self, cpu: &Cpu, query_rows: Range<usize>) -> (Vec<f32>, Vec<f32>) {
        let s = self.shape;
        let mut out = vec![9.0; s.batch * s.tokens * self.stride];
        let mut lse = vec![9.0; s.batch * s.heads * s.tokens];
        attention(
            cpu,
            Attention {
                shape: s,
                precision: self.precision,
                query_rows,
                q: &self.q,
                k: &self.k,
                v: &self.v,
                out: &mut out,
                out_stride: self.stride,
                lse: &mut lse,
            },
        );
        (out, lse)
    }

    fn backward(&self, cpu: &Cpu, query_rows: Range<usize>) -> [Vec<f32>; 3] {
        let (out, lse) = self.forward(cpu, query_rows.clone());
        let [mut dq, mut dk, mut dv] = [&self.q, &self.k, &self.v].map(|v| vec![9.0; v.len()]);
        attention_backward(
            cpu,
            AttentionBackward {
                shape: self.shape,
                precision: self.precision,
                query_rows,
                q: &self.q,
                k: &self.k,
                v: &self.v,
                out: &out,
                out_stride: self.stride,
                lse: &lse,
                d_out: &self.d_out,
                d_out_stride: self.stride,
                dq: &mut dq,
                dk: &mut dk,
                dv: &mut dv,
            },
        );
        [dq, dk, dv]
    }

    /// Result, log-sum-exp, dq, dk, dv in f64.
    fn expected(&self, query_rows: Range<usize>) -> [Vec<f64>; 5] {
        let s = self.shape;
        let scale = 1.0 / (s.dim as f64).sqrt();
        let mut out = vec![9.0; s.batch * s.tokens * self.stride];
        let mut lse = vec![9.0; s.batch * s.heads * s.tokens];
        let [mut dq, mut dk, mut dv] = [&self.q, &self.k, &self.v].map(|v| vec![0.0; v.len()]);
        for head in 0..s.batch * s.heads {
            let at = |t: usize, c: usize| (head * s.tokens + t) * s.dim + c;
            let of_key = |t: usize, c: usize| (head * s.keys + t) * s.dim + c;
            for i in query_rows.clone() {
                let dot = |j: usize| {
                    (0..s.dim)
                        .map(|c| f64::from(self.q[at(i, c)]) * f64::from(self.k[of_key(j, c)]))
                        .sum::<f64>()
                };
                let scores: Vec<f64> = (0..s.keys).map(|j| dot(j) * scale).collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|x| (x - top).exp()).sum();
                lse[head * s.tokens + i] = top + total.ln();
                let p: Vec<f64> = scores.iter().map(|x| (x - top).exp() / total).collect();
                let cotangent = |c: usize| f64::from(self.d_out[token_major(s, self.stride, head, i, c)]);
                let dp: Vec<f64> = (0..s.keys)
                    .map(|j| (0..s.dim).map(|c| cotangent(c) * f64::from(self.v[of_key(j, c)])).sum())
                    .collect();
                let delta: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
                for c in 0..s.dim {
                    out[token_major(s, self.stride, head, i, c)] =
                        (0..s.keys).map(|j| p[j] * f64::from(self.v[of_key(j, c)])).sum();
                    for j in 0..s.keys {
                        let ds = p[j] * (dp[j] - delta) * scale;
                        dq[at(i, c)] += ds * f64::from(self.k[of_key(j, c)]);
                        dk[of_key(j, c)] += ds * f64::from(self.q[at(i, c)]);
                        dv[of_key(j, c)] += p[j] * cotangent(c);
                    }
                }
            }
        }
        // The gaps between rows stay as they were.
        [out, lse, dq, dk, dv]
    }
}

fn query_ranges(tokens: usize) -> [Range<usize>; 3] {
    [0..tokens, tokens / 3..tokens, tokens / 2..tokens / 2]
}

#[test]
fn attention_equals_softmax_in_f64_with_the_same_bits_on_all_devices() {
    for shape in shapes() {
        let case = Case::new(shape);
        for rows in query_ranges(shape.tokens) {
            let expected = case.expected(rows.clone());
            let found = same_on_all_devices(|cpu| {
                let (out, lse) = case.forward(cpu, rows.clone());
                [out, lse].concat()
            });
            let (out, lse) = found.split_at(expected[0].len());
            assert_close(out, &expected[0], 2e-6, &format!("{shape:?} {rows:?}"));
            assert_close(lse, &expected[1], 1e-6, &format!("log-sum-exp of {shape:?} {rows:?}"));
        }
    }
}

#[test]
fn attention_backward_equals_the_derivative_in_f64_with_the_same_bits_on_all_devices() {
    for shape in shapes() {
        let case = Case::new(shape);
        for rows in query_ranges(shape.tokens) {
            let expected = case.expected(rows.clone());
            let found = same_on_all_devices(|cpu| case.backward(cpu, rows.clone()).concat());
            let mut rest = &found[..];
            for (expected, name) in expected[2..].iter().zip(["dq", "dk", "dv"]) {
                let (part, after) = rest.split_at(expected.len());
                assert_close(part, expected, 5e-6, &format!("{name} of {shape:?} {rows:?}"));
                rest = after;
            }
        }
    }
}

#[test]
fn attention_in_bf16_is_that_of_rounded_operands_with_the_same_bits_on_all_devices() {
    for shape in shapes() {
        let mut case = Case::new(shape);
        case.precision = Precision::Bf16;
        for values in [&mut case.q, &mut case.k, &mut case.v, &mut case.d_out] {
            values.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32());
        }
        for rows in query_ranges(shape.tokens) {
            let expected = case.expected(rows.clone());
            let found = same_on_all_devices(|cpu| {
                let (out, lse) = case.forward(cpu, rows.clone());
                let [dq, dk, dv] = case.backward(cpu, rows.clone());
                [out, lse, dq, dk, dv].concat()
            });
            let mut rest = &found[..];
            // What is rounded on the way are probabilities and their cotangents: to one part in 256.
            for (expected, tolerance) in expected.iter().zip([4e-3, 1e-6, 1.5e-2, 1.5e-2, 4e-3]) {
                let (part, after) = rest.split_at(expected.len());
                assert_close(part, expected, tolerance, &format!("{shape:?} {rows:?}"));
                rest = after;
            }
        }
    }
}

#[test]
fn a_query_row_has_the_same_bits_whatever_the_other_queries() {
    let case = Case::new(AttentionShape { batch: 1, heads: 2, tokens: 300, keys: 300, dim: 32 });
    let cpu = Cpu::new(2).expect("threads");
    let (whole, lse) = case.forward(&cpu, 0..300);
    for rows in [0..1, 7..8, 49..151, 250..300] {
        let (part, part_lse) = case.forward(&cpu, rows.clone());
        let row = |t: usize| t * case.stride..t * case.stride + 64;
        for t in rows {
            assert_same_bits(&whole[row(t)], &part[row(t)], "a row");
            assert_same_bits(&[lse[t], lse[300 + t]], &[part_lse[t], part_lse[300 + t]], "log-sum-exp");
        }
    }
}

#[test]
fn scores_of_hundreds_neither_overflow_nor_lose_the_largest() {
    let mut case = Case::new(AttentionShape { batch: 1, heads: 1, tokens: 300, keys: 300, dim: 16 });
    case.q.iter_mut().for_each(|q| *q *= 40.0);
    let (out, lse) = case.forward(&Cpu::new(1).expect("threads"), 0..300);
    let expected = case.expected(0..300);
    assert!(expected[1].iter().any(|x| *x > 300.0));
    assert_close(&out, &expected[0], 2e-4, "result");
    assert_close(&lse, &expected[1], 1e-6, "log-sum-exp");
}

#[test]
fn a_value_that_is_not_a_number_is_not_hidden() {
    let mut case = Case::new(AttentionShape { batch: 1, heads: 1, tokens: 40, keys: 40, dim: 16 });
    case.q[3 * 16] = f32::NAN;
    let (out, _) = case.forward(&Cpu::new(1).expect("threads"), 0..40);
    assert!(out[3 * case.stride].is_nan() && out[4 * case.stride].is_finite());
}
