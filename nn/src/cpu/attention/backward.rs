//! The backward pass: probabilities again from the saved log-sum-exp, and five products for each pair of blocks.
//!
//! With P the probabilities and dP = dO V^T: dV = P^T dO, dS = P * (dP - delta) / sqrt(D), dQ = dS K, dK = dS^T Q, where
//! delta is the product of a row of dO with that row of the result. As in the forward pass all scores stand transposed,
//! keys by queries.
#![allow(unsafe_code, reason = "tasks write disjoint heads of the cotangents")]

use std::ops::Range;

use super::{
    AttentionBackward, KEYS, LANES, QUERIES,
    forward::pair_rows,
    operands::{across, along, along_len, panels, panels_len, with_row},
};
use crate::cpu::{
    AttentionShape, Cpu, Precision,
    machine::{Kernel, Machine},
    math::{self, BLOCK},
    parallel::{self, Shared},
    precision::pack_row,
    product::{Product, Start, product},
    scratch::with_scratch,
    tile::ACROSS,
};

pub(super) fn run(cpu: &Cpu, call: AttentionBackward<'_>) {
    let AttentionBackward {
        shape,
        precision,
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
    let (across, along) = (QUERIES * shape.dim, along_len(precision, shape.dim, shape.keys));
    let of_queries = panels_len(precision, QUERIES, shape.dim, width);
    let of_keys = shape.keys.div_ceil(KEYS) * panels_len(precision, KEYS, shape.dim, width);
    let halves = if precision == Precision::Bf16 { KEYS * ROUNDED } else { 0 };
    let scores = KEYS * QUERIES;
    let lengths =
        [across, across, of_queries, of_queries, along, along, of_keys, scores, scores, halves, halves];
    parallel::for_each(cpu, 10 * heads * query_rows.len() * shape.keys(), heads, |head| {
        let queries = head * shape.queries()..(head + 1) * shape.queries();
        let values = head * shape.keys()..(head + 1) * shape.keys();
        // SAFETY: each head's values belong to one task.
        let dq = unsafe { dq.part(queries.start, queries.len()) };
        // SAFETY: as above.
        let [dk, dv] = [dk, dv].map(|d| unsafe { d.part(values.start, values.len()) });
        with_scratch(lengths, |scratch| {
            let task = Head {
                shape,
                head,
                rows: query_rows.clone(),
                q: &q[queries],
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
            with_row!(shape.dim, ROW => match precision {
                Precision::F32 => cpu.run(Aligned::<ROW, false>(task)),
                Precision::Bf16 => cpu.run(Aligned::<ROW, true>(task)),
            });
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
    /// A block's queries and cotangents across, and as panels; keys and values at the distance ROW; panels of keys by blocks;
    /// P and dS, and both rounded.
    scratch: [&'a mut [f32]; 11],
}

/// Words of a row of rounded scores.
const ROUNDED: usize = QUERIES / 2;

/// A task whose keys and values are read at the distance `ROW`.
struct Aligned<'a, const ROW: usize, const PAIRS: bool>(Head<'a>);

impl<const ROW: usize, const PAIRS: bool> Kernel for Aligned<'_, ROW, PAIRS> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine, const N: usize>(self, m: M) {
        let task = self.0;
        let AttentionShape { keys, dim, .. } = task.shape;
        let width = M::TILE_COLUMNS;
        let (d_out, d_out_stride) = task.d_out;
        let scale = 1.0 / (dim as f32).sqrt();
        task.dq[..task.rows.start * dim].fill(0.0);
        task.dq[task.rows.end * dim..].fill(0.0);
        if task.rows.is_empty() {
            task.dk.fill(0.0);
            task.dv.fill(0.0);
        }
        let [q_across, d_across, q_panels, d_panels, k_rows, v_rows, k_panels, p, ds, p_rounded, ds_rounded] =
            task.scratch;
        let precision = if PAIRS { Precision::Bf16 } else { Precision::F32 };
        let words = precision.words(dim);
        let k_rows = along::<ROW, PAIRS>(task.k, dim, keys, k_rows);
        let v_rows = along::<ROW, PAIRS>(task.v, dim, keys, v_rows);
        let block_len = panels_len(precision, KEYS, dim, width);
        let key_panels: Vec<_> = (0..keys)
            .step_by(KEYS)
            .map(|first| {
                let to = &mut k_panels[first / KEYS * block_len..][..block_len];
                panels::<PAIRS>(&task.k[first * dim..], dim, KEYS.min(keys - first), dim, width, to)
            })
            .collect();
        for row in task.rows.clone().step_by(QUERIES) {
            let rows = QUERIES.min(task.rows.end - row);
            let columns = rows.next_multiple_of(width);
            let (queries, cotangents) =
                (&task.q[row * dim..], &d_out[task.shape.token_major(task.head, row, d_out_stride)..]);
            across::<PAIRS>(queries, dim, rows, dim, width, q_across);
            across::<PAIRS>(cotangents, d_out_stride, rows, dim, width, d_across);
            let queries = panels::<PAIRS>(queries, dim, rows, dim, width, q_panels);
            let (mut lse, mut delta) = ([0.0; QUERIES], [0.0; QUERIES]);
            lse[..rows].copy_from_slice(&task.lse[row..row + rows]);
            for (i, delta) in delta[..rows].iter_mut().enumerate() {
                let out = task.shape.token_major(task.head, row + i, task.out.1);
                *delta = dot::<M, N>(m, &cotangents[i * d_out_stride..][..dim], &task.out.0[out..][..dim]);
            }
            let cotangents = panels::<PAIRS>(cotangents, d_out_stride, rows, dim, width, d_panels);
            let start = if row == task.rows.start { Start::Zero } else { Start::Result };
            for first in (0..keys).step_by(KEYS) {
                let count = KEYS.min(keys - first);
                let scores = Product {
                    rows: count,
                    columns,
                    k: words,
                    a: k_rows.wrapping_add(first * ROW),
                    a_stride: 0,
                    panels: q_across.as_ptr(),
                    panel_row: width,
                    panel_stride: words * width,
                    start: Start::Zero,
                    c: p.as_mut_ptr(),
                    c_stride: QUERIES,
                };
                let d_probabilities = Product {
                    a: v_rows.wrapping_add(first * ROW),
                    panels: d_across.as_ptr(),
                    c: ds.as_mut_ptr(),
                    ..scores
                };
                // SAFETY: `count` keys and values at the distance ROW from `first` on; panels of `columns` queries and
                // cotangents (zeros beyond the last), and `columns <= QUERIES` since QUERIES is whole panels.
                unsafe {
                    product::<M, ROW, PAIRS>(m, &scores);
                    product::<M, ROW, PAIRS>(m, &d_probabilities);
                }
                let block = count * QUERIES;
                probabilities::<M, N>(m, &mut p[..block], &mut ds[..block], scale, &lse, &delta);
                if PAIRS {
                    for (from, to) in [(&*p, &mut *p_rounded), (&*ds, &mut *ds_rounded)] {
                        for (from, to) in
                            from[..block].chunks_exact(QUERIES).zip(to.chunks_exact_mut(ROUNDED))
                        {
                            pack_row(from, to);
                        }
                    }
                    pair_rows(&mut ds[..block]);
                }
                let dv = Product {
                    rows: count,
                    columns: dim,
                    k: precision.words(rows),
                    a: if PAIRS { p_rounded.as_ptr() } else { p.as_ptr() },
                    a_stride: 0,
                    panels: cotangents.start,
                    panel_row: cotangents.row,
                    panel_stride: cotangents.stride,
                    start,
                    c: task.dv[first * dim..].as_mut_ptr(),
                    c_stride: dim,
                };
                let dk = Product {
                    a: if PAIRS { ds_rounded.as_ptr() } else { ds.as_ptr() },
                    panels: queries.start,
                    panel_row: queries.row,
                    panel_stride: queries.stride,
                    c: task.dk[first * dim..].as_mut_ptr(),
                    ..dv
                };
                let panel = key_panels[first / KEYS];
                let dq = Product {
                    rows,
                    k: precision.words(count),
                    a: ds.as_ptr(),
                    a_stride: QUERIES,
                    panels: panel.start,
                    panel_row: panel.row,
                    panel_stride: panel.stride,
                    start: if first == 0 { Start::Zero } else { Start::Result },
                    c: task.dq[row * dim..].as_mut_ptr(),
                    ..dv
                };
                // SAFETY: P and dS are `count` by `rows`, at the distance QUERIES or, in words, half of it; the panels of
                // queries and cotangents have `rows` rows (in pairs: zeros beyond), those of keys `count`; the cotangents
                // of this head belong to this task.
                unsafe {
                    if PAIRS {
                        product::<M, ROUNDED, true>(m, &dv);
                        product::<M, ROUNDED, true>(m, &dk);
                    } else {
                        product::<M, QUERIES, false>(m, &dv);
                        product::<M, QUERIES, false>(m, &dk);
                    }
                    product::<M, ACROSS, PAIRS>(m, &dq);
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
