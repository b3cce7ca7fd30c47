//! The backward pass: probabilities again from the saved log-sum-exp, and five products for each pair of blocks.
//!
//! With P the probabilities and dP = dO V^T: dV = P^T dO, dS = P * (dP - delta) / sqrt(D), dQ = dS K, dK = dS^T Q, where
//! delta is the product of a row of dO with that row of the result. As in the forward pass all scores stand transposed,
//! keys by queries.
#![allow(unsafe_code, reason = "tasks write disjoint heads of the cotangents")]

use std::ops::Range;

use super::{
    AttentionBackward, AttentionShape, KEYS, LANES, QUERIES,
    operands::{along, panels, row_of, with_row},
};
use crate::cpu::{
    Cpu,
    isa::{Kernel, Machine},
    math::{self, BLOCK},
    packed::pack_transposed,
    parallel::{self, Shared},
    scratch::with_scratch,
    tile::{ACROSS, Product, Start, product},
};

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
    let padded = shape.dim.next_multiple_of(cpu.tile().1);
    let rows = if row_of(shape.dim) == shape.dim { 0 } else { row_of(shape.dim) };
    let wide = if padded == shape.dim { 0 } else { padded };
    let lengths = [
        QUERIES * shape.dim,
        QUERIES * shape.dim,
        QUERIES * wide,
        QUERIES * wide,
        KEYS * rows,
        KEYS * rows,
        KEYS * wide,
        KEYS * QUERIES,
        KEYS * QUERIES,
    ];
    parallel::for_each(cpu, 10 * heads * query_rows.len() * shape.head(), heads, |head| {
        let values = head * shape.head()..(head + 1) * shape.head();
        // SAFETY: each head's values belong to one task.
        let [dq, dk, dv] = [dq, dk, dv].map(|d| unsafe { d.part(values.start, shape.head()) });
        with_scratch(lengths, |scratch| {
            let task = Head {
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
            };
            with_row!(shape.dim, ROW => cpu.run(Aligned::<ROW>(task)));
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
    /// A block's queries and cotangents across, and as panels; keys and values at the distance ROW; panels of keys; P and dS.
    scratch: [&'a mut [f32]; 9],
}

/// A task whose keys and values are read at the distance `ROW`.
struct Aligned<'a, const ROW: usize>(Head<'a>);

impl<const ROW: usize> Kernel for Aligned<'_, ROW> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine, const N: usize>(self, m: M) {
        let task = self.0;
        let AttentionShape { tokens, dim, .. } = task.shape;
        let width = M::TILE_COLUMNS;
        let (d_out, d_out_stride) = task.d_out;
        let scale = 1.0 / (dim as f32).sqrt();
        task.dq[..task.rows.start * dim].fill(0.0);
        task.dq[task.rows.end * dim..].fill(0.0);
        if task.rows.is_empty() {
            task.dk.fill(0.0);
            task.dv.fill(0.0);
        }
        let [q_across, d_across, q_panels, d_panels, k_rows, v_rows, k_panels, p, ds] = task.scratch;
        for row in task.rows.clone().step_by(QUERIES) {
            let rows = QUERIES.min(task.rows.end - row);
            let columns = rows.next_multiple_of(width);
            let (queries, cotangents) =
                (&task.q[row * dim..], &d_out[task.shape.token_major(task.head, row, d_out_stride)..]);
            pack_transposed(queries, dim, rows, dim, width, q_across);
            pack_transposed(cotangents, d_out_stride, rows, dim, width, d_across);
            let queries = panels(queries, dim, rows, dim, width, q_panels);
            let (mut lse, mut delta) = ([0.0; QUERIES], [0.0; QUERIES]);
            lse[..rows].copy_from_slice(&task.lse[row..row + rows]);
            for (i, delta) in delta[..rows].iter_mut().enumerate() {
                let out = task.shape.token_major(task.head, row + i, task.out.1);
                *delta = dot::<M, N>(m, &cotangents[i * d_out_stride..][..dim], &task.out.0[out..][..dim]);
            }
            let cotangents = panels(cotangents, d_out_stride, rows, dim, width, d_panels);
            let start = if row == task.rows.start { Start::Zero } else { Start::Result };
            for first in (0..tokens).step_by(KEYS) {
                let count = KEYS.min(tokens - first);
                let keys = &task.k[first * dim..];
                let scores = Product {
                    rows: count,
                    columns,
                    k: dim,
                    a: along::<ROW>(keys, dim, dim, count, k_rows),
                    a_stride: 0,
                    panels: q_across.as_ptr(),
                    panel_row: width,
                    panel_stride: dim * width,
                    start: Start::Zero,
                    c: p.as_mut_ptr(),
                    c_stride: QUERIES,
                };
                let d_probabilities = Product {
                    a: along::<ROW>(&task.v[first * dim..], dim, dim, count, v_rows),
                    panels: d_across.as_ptr(),
                    c: ds.as_mut_ptr(),
                    ..scores
                };
                // SAFETY: `count` keys and values at the distance ROW; panels of `columns` queries and cotangents (zeros
                // beyond the last), and `columns <= QUERIES` since QUERIES is whole panels.
                unsafe {
                    product::<M, ROW>(m, &scores);
                    product::<M, ROW>(m, &d_probabilities);
                }
                let block = count * QUERIES;
                probabilities::<M, N>(m, &mut p[..block], &mut ds[..block], scale, &lse, &delta);
                let dv = Product {
                    rows: count,
                    columns: dim,
                    k: rows,
                    a: p.as_ptr(),
                    a_stride: 0,
                    panels: cotangents.start,
                    panel_row: cotangents.row,
                    panel_stride: cotangents.stride,
                    start,
                    c: task.dv[first * dim..].as_mut_ptr(),
                    c_stride: dim,
                };
                let dk = Product {
                    a: ds.as_ptr(),
                    panels: queries.start,
                    panel_row: queries.row,
                    panel_stride: queries.stride,
                    c: task.dk[first * dim..].as_mut_ptr(),
                    ..dv
                };
                let keys = panels(keys, dim, count, dim, width, k_panels);
                let dq = Product {
                    rows,
                    k: count,
                    a: ds.as_ptr(),
                    a_stride: QUERIES,
                    panels: keys.start,
                    panel_row: keys.row,
                    panel_stride: keys.stride,
                    start: if first == 0 { Start::Zero } else { Start::Result },
                    c: task.dq[row * dim..].as_mut_ptr(),
                    ..dv
                };
                // SAFETY: P and dS are `count` by `rows` at the distance QUERIES; the panels of queries and cotangents
                // have `rows` rows, those of keys `count`; the cotangents of this head belong to this task.
                unsafe {
                    product::<M, QUERIES>(m, &dv);
                    product::<M, QUERIES>(m, &dk);
                    product::<M, ACROSS>(m, &dq);
                }
            }
        }
    }
}

/// From scores and dP to P and dS, keys by QUERIES.
#[inline(always)]
fn probabilities<M: Machine, const N: usize>(
    m: M,
    p: &mut [f32],
    ds: &mut [f32],
    scale: f32,
    lse: &[f32; QUERIES],
    delta: &[f32; QUERIES],
) {
    let factor = math::splat::<M, N>(m, scale * std::f32::consts::LOG2_E);
    let scale = math::splat(m, scale);
    let (mut offsets, mut deltas) = ([scale; LANES], [scale; LANES]);
    for i in 0..LANES {
        let lse = math::load::<M, N>(m, &lse[i * BLOCK..]);
        offsets[i] = math::mul(m, lse, math::splat(m, -std::f32::consts::LOG2_E));
        deltas[i] = math::load(m, &delta[i * BLOCK..]);
    }
    for (p, ds) in p.chunks_exact_mut(QUERIES).zip(ds.chunks_exact_mut(QUERIES)) {
        for i in 0..LANES {
            let (p, ds) = (&mut p[i * BLOCK..][..BLOCK], &mut ds[i * BLOCK..][..BLOCK]);
            let probability = math::exp2(m, math::mul_add(m, math::load(m, p), factor, offsets[i]));
            let cotangent = math::sub(m, math::load(m, ds), deltas[i]);
            math::store::<M, N>(p, probability);
            math::store::<M, N>(ds, math::mul(m, math::mul(m, probability, cotangent), scale));
        }
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
