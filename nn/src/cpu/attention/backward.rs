//! The backward pass: probabilities again from the saved log-sum-exp, and five products for each pair of blocks.
//!
//! With P the probabilities and dP = dO V^T: dV = P^T dO, dS = P * (dP - delta) / sqrt(D), dQ = dS K, dK = dS^T Q, where
//! delta is the product of a row of dO with that row of the result.
#![allow(unsafe_code, reason = "tasks write disjoint heads of the cotangents")]

use std::ops::Range;

use super::{AttentionBackward, AttentionShape, KEYS};
use crate::cpu::{
    Cpu,
    isa::{Kernel, Machine},
    math::{self, BLOCK},
    packed::{pack, pack_transposed},
    parallel::{self, Shared},
    scratch::with_scratch,
    tile::{Product, Start, product},
};

/// Queries of one block: the length of the sums for keys and values, so longer than in the forward pass.
const QUERIES: usize = 96;

pub(super) fn run(cpu: &Cpu, call: AttentionBackward<'_>) {
    let AttentionBackward {
        shape,
        query_rows,
        q,
        k,
        v,
        out,
        out_stride,
        lse,
        d_out,
        d_out_stride,
        dq,
        dk,
        dv,
    } = call;
    let heads = shape.batch * shape.heads;
    let [dq, dk, dv] = [dq, dk, dv].map(Shared::new);
    let width = cpu.tile().1;
    let (across, along) =
        (shape.tokens.next_multiple_of(width) * shape.dim, shape.dim.next_multiple_of(width));
    let lengths = [
        across,
        across,
        shape.tokens * along,
        QUERIES * along,
        QUERIES * along,
        QUERIES * KEYS,
        QUERIES * KEYS,
    ];
    parallel::for_each(cpu, 10 * heads * query_rows.len() * shape.head(), heads, |head| {
        let values = head * shape.head()..(head + 1) * shape.head();
        // SAFETY: each head's values belong to one task.
        let [dq, dk, dv] = [dq, dk, dv].map(|d| unsafe { d.part(values.start, shape.head()) });
        with_scratch(lengths, |scratch| {
            cpu.run(Head {
                shape,
                head,
                rows: query_rows.clone(),
                q: &q[values.clone()],
                k: &k[values.clone()],
                v: &v[values],
                out: (out, out_stride),
                lse: &lse[head * shape.tokens..][..shape.tokens],
                d_out: (d_out, d_out_stride),
                dq,
                dk,
                dv,
                scratch,
            })
        });
    });
}

/// One task: one head.
struct Head<'a> {
    shape: AttentionShape,
    head: usize,
    rows: Range<usize>,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    out: (&'a [f32], usize),
    lse: &'a [f32],
    d_out: (&'a [f32], usize),
    dq: &'a mut [f32],
    dk: &'a mut [f32],
    dv: &'a mut [f32],
    /// Keys and values across and keys along the summed axis, a block's queries and cotangents, P and dS.
    scratch: [&'a mut [f32]; 7],
}

impl Kernel for Head<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine, const N: usize>(self, m: M) {
        let AttentionShape { tokens, dim, .. } = self.shape;
        let width = M::TILE_COLUMNS;
        let along = dim.next_multiple_of(width);
        let (d_out, d_out_stride) = self.d_out;
        let scale = 1.0 / (dim as f32).sqrt();
        self.dq[..self.rows.start * dim].fill(0.0);
        self.dq[self.rows.end * dim..].fill(0.0);
        if self.rows.is_empty() {
            self.dk.fill(0.0);
            self.dv.fill(0.0);
        }
        let [keys_across, values_across, keys, queries, cotangents, p, ds] = self.scratch;
        pack_transposed(self.k, dim, tokens, dim, width, keys_across);
        pack_transposed(self.v, dim, tokens, dim, width, values_across);
        for first in (0..tokens).step_by(KEYS) {
            let count = KEYS.min(tokens - first);
            pack(&self.k[first * dim..], dim, count, dim, width, &mut keys[first * along..][..count * along]);
        }
        for row in self.rows.clone().step_by(QUERIES) {
            let rows = QUERIES.min(self.rows.end - row);
            let cotangent = &d_out[self.shape.token_major(self.head, row, d_out_stride)..];
            pack(&self.q[row * dim..], dim, rows, dim, width, &mut queries[..rows * along]);
            pack(cotangent, d_out_stride, rows, dim, width, &mut cotangents[..rows * along]);
            let mut delta = [0.0; QUERIES];
            for (i, delta) in delta[..rows].iter_mut().enumerate() {
                let out = self.shape.token_major(self.head, row + i, self.out.1);
                *delta = dot::<M, N>(m, &cotangent[i * d_out_stride..][..dim], &self.out.0[out..][..dim]);
            }
            for first in (0..tokens).step_by(KEYS) {
                let count = KEYS.min(tokens - first);
                let columns = count.next_multiple_of(width);
                let scores = Product {
                    rows,
                    columns,
                    k: dim,
                    a: self.q[row * dim..].as_ptr(),
                    a_stride: dim,
                    panels: keys_across[first * dim..].as_ptr(),
                    panel_stride: dim * width,
                    start: Start::Zero,
                    c: p.as_mut_ptr(),
                    c_stride: KEYS,
                };
                let d_probabilities = Product {
                    a: cotangent.as_ptr(),
                    a_stride: d_out_stride,
                    panels: values_across[first * dim..].as_ptr(),
                    c: ds.as_mut_ptr(),
                    ..scores
                };
                // SAFETY: `rows` rows of queries and of cotangents; the panels hold `columns` keys and values (zeros
                // beyond the last), and `columns <= KEYS` since KEYS is whole panels.
                unsafe {
                    product::<M, false>(m, &scores);
                    product::<M, false>(m, &d_probabilities);
                }
                for i in 0..rows {
                    let (p, ds) = (&mut p[i * KEYS..][..columns], &mut ds[i * KEYS..][..columns]);
                    probabilities::<M, N>(m, p, ds, scale, self.lse[row + i], delta[i]);
                }
                let dq = Product {
                    rows,
                    columns: dim,
                    k: count,
                    a: ds.as_ptr(),
                    a_stride: KEYS,
                    panels: keys[first * along..].as_ptr(),
                    panel_stride: count * width,
                    start: if first == 0 { Start::Zero } else { Start::Result },
                    c: self.dq[row * dim..].as_mut_ptr(),
                    c_stride: dim,
                };
                let dk = Product {
                    rows: count,
                    k: rows,
                    panels: queries.as_ptr(),
                    panel_stride: rows * width,
                    start: if row == self.rows.start { Start::Zero } else { Start::Result },
                    c: self.dk[first * dim..].as_mut_ptr(),
                    ..dq
                };
                let dv = Product {
                    a: p.as_ptr(),
                    panels: cotangents.as_ptr(),
                    c: self.dv[first * dim..].as_mut_ptr(),
                    ..dk
                };
                // SAFETY: dS and P are `rows` by `count` here; the panels of keys have `count` rows, those of
                // queries and cotangents `rows`; the cotangents of this head belong to this task.
                unsafe {
                    product::<M, false>(m, &dq);
                    product::<M, true>(m, &dk);
                    product::<M, true>(m, &dv);
                }
            }
        }
    }
}

/// From scores and dP to P and dS, in whole blocks.
#[inline(always)]
fn probabilities<M: Machine, const N: usize>(
    m: M,
    p: &mut [f32],
    ds: &mut [f32],
    scale: f32,
    lse: f32,
    delta: f32,
) {
    let factor = math::splat::<M, N>(m, scale * std::f32::consts::LOG2_E);
    let offset = math::splat(m, -lse * std::f32::consts::LOG2_E);
    let (delta, scale) = (math::splat(m, delta), math::splat(m, scale));
    for (p, ds) in p.chunks_exact_mut(BLOCK).zip(ds.chunks_exact_mut(BLOCK)) {
        let probability = math::exp2(m, math::mul_add(m, math::load(m, p), factor, offset));
        let cotangent = math::sub(m, math::load(m, ds), delta);
        math::store::<M, N>(p, probability);
        math::store::<M, N>(ds, math::mul(m, math::mul(m, probability, cotangent), scale));
    }
}

/// Sum of products of two rows, in the lanes of a block.
#[inline(always)]
fn dot<M: Machine, const N: usize>(m: M, a: &[f32], b: &[f32]) -> f32 {
    let mut sum = math::splat::<M, N>(m, 0.0);
    for (a, b) in a.chunks(BLOCK).zip(b.chunks(BLOCK)) {
        sum = math::mul_add(m, math::load_part(m, a, 0.0), math::load_part(m, b, 0.0), sum);
    }
    math::sum::<M, N>(sum)
}
