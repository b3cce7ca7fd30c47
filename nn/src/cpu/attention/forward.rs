//! The forward pass: for a block of queries, a running maximum, sum and result over blocks of keys.
#![allow(unsafe_code, reason = "tasks write disjoint rows of the result")]

use std::ops::Range;

use super::{Attention, AttentionShape, KEYS};
use crate::cpu::{
    Cpu,
    isa::{Kernel, Machine},
    math::{self, BLOCK},
    packed::{pack, pack_transposed},
    parallel::{self, Shared},
    scratch::with_scratch,
    tile::{Product, Start, product},
};

/// Queries of one block: whole micro-tiles on every instruction set.
const QUERIES: usize = 48;

pub(super) fn run(cpu: &Cpu, call: Attention<'_>) {
    let Attention { shape, query_rows, q, k, v, out, out_stride, lse } = call;
    let heads = shape.batch * shape.heads;
    // A task packs the keys and values of its head, so a head is divided only where there are few heads.
    let blocks = query_rows.len().div_ceil(QUERIES);
    let parts = (4 * cpu.threads()).div_ceil(heads).min(blocks);
    let each = blocks.div_ceil(parts) * QUERIES;
    let parts = query_rows.len().div_ceil(each);
    let (out, lse) = (Shared::new(out), Shared::new(lse));
    let operations = 4 * heads * query_rows.len() * shape.head();
    let width = cpu.tile().1;
    let value_columns = shape.dim.next_multiple_of(width);
    let lengths = [
        shape.tokens.next_multiple_of(width) * shape.dim,
        shape.tokens * value_columns,
        QUERIES * KEYS,
        QUERIES * value_columns,
    ];
    parallel::for_each(cpu, operations, heads * parts, |task| {
        let (head, first) = (task / parts, query_rows.start + task % parts * each);
        let values = head * shape.head()..(head + 1) * shape.head();
        with_scratch(lengths, |scratch| {
            cpu.run(Head {
                shape,
                head,
                rows: first..query_rows.end.min(first + each),
                q: &q[values.clone()],
                k: &k[values.clone()],
                v: &v[values],
                out,
                out_stride,
                lse,
                scratch,
            })
        });
    });
}

/// One task: some queries of one head.
struct Head<'a> {
    shape: AttentionShape,
    head: usize,
    rows: Range<usize>,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    out: Shared<'a>,
    out_stride: usize,
    lse: Shared<'a>,
    /// Packed keys and values, scores, and sums of values.
    scratch: [&'a mut [f32]; 4],
}

impl Kernel for Head<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine, const N: usize>(self, m: M) {
        let AttentionShape { tokens, dim, .. } = self.shape;
        let width = M::TILE_COLUMNS;
        let value_columns = dim.next_multiple_of(width);
        let scale = std::f32::consts::LOG2_E / (dim as f32).sqrt();
        let [keys, values, scores, sums] = self.scratch;
        pack_transposed(self.k, dim, tokens, dim, width, keys);
        // Values by blocks of keys, each block in panels, so that a block's share is contiguous.
        for first in (0..tokens).step_by(KEYS) {
            let count = KEYS.min(tokens - first);
            let to = &mut values[first * value_columns..][..count * value_columns];
            pack(&self.v[first * dim..], dim, count, dim, width, to);
        }
        for row in self.rows.clone().step_by(QUERIES) {
            let rows = QUERIES.min(self.rows.end - row);
            let (mut top, mut total) = ([f32::NEG_INFINITY; QUERIES], [0.0f32; QUERIES]);
            for first in (0..tokens).step_by(KEYS) {
                let count = KEYS.min(tokens - first);
                let columns = count.next_multiple_of(width);
                let s = Product {
                    rows,
                    columns,
                    k: dim,
                    a: self.q[row * dim..].as_ptr(),
                    a_stride: dim,
                    panels: keys[first * dim..].as_ptr(),
                    panel_stride: dim * width,
                    start: Start::Zero,
                    c: scores.as_mut_ptr(),
                    c_stride: KEYS,
                };
                // SAFETY: the queries have `rows` rows from `row` on; the panels hold `columns` keys (zeros
                // beyond the last), and `columns <= KEYS` since KEYS is whole panels.
                unsafe { product::<M, false>(m, &s) };
                for i in 0..rows {
                    let scores = &mut scores[i * KEYS..][..columns];
                    scores[count..].fill(f32::NEG_INFINITY);
                    let (new_top, sum) = exponentials::<M, N>(m, scores, scale, top[i]);
                    let shrink = libm::exp2f((top[i] - new_top) * scale);
                    total[i] = total[i].mul_add(shrink, sum);
                    if first > 0 {
                        for sum in &mut sums[i * value_columns..][..value_columns] {
                            *sum *= shrink;
                        }
                    }
                    top[i] = new_top;
                }
                let o = Product {
                    rows,
                    columns: value_columns,
                    k: count,
                    a: scores.as_ptr(),
                    a_stride: KEYS,
                    panels: values[first * value_columns..].as_ptr(),
                    panel_stride: count * width,
                    start: if first == 0 { Start::Zero } else { Start::Result },
                    c: sums.as_mut_ptr(),
                    c_stride: value_columns,
                };
                // SAFETY: `rows` rows of `count` probabilities, panels of `count` rows, and `rows` rows of sums.
                unsafe { product::<M, false>(m, &o) };
            }
            for i in 0..rows {
                let start = self.shape.token_major(self.head, row + i, self.out_stride);
                // SAFETY: this head's columns of this row are written by this task only.
                let out = unsafe { self.out.part(start, dim) };
                let inverse = 1.0 / total[i];
                for (out, sum) in out.iter_mut().zip(&sums[i * value_columns..]) {
                    *out = sum * inverse;
                }
                // SAFETY: as above.
                let lse = unsafe { self.lse.part(self.head * tokens + row + i, 1) };
                lse[0] = log_sum_exp(top[i], scale, total[i]);
            }
        }
    }
}

/// Replaces scores, whole blocks of them, by `2^(scale * (score - top))`, where `top` is the largest so far; returns
/// that and the sum.
#[inline(always)]
fn exponentials<M: Machine, const N: usize>(m: M, scores: &mut [f32], scale: f32, top: f32) -> (f32, f32) {
    let mut largest = math::splat(m, top);
    for block in scores.chunks_exact(BLOCK) {
        largest = math::max::<M, N>(m, largest, math::load(m, block));
    }
    let top = math::largest::<M, N>(largest);
    let (factor, offset) = (math::splat(m, scale), math::splat(m, -top * scale));
    let mut sum = math::splat(m, 0.0);
    for block in scores.chunks_exact_mut(BLOCK) {
        let p = math::exp2::<M, N>(m, math::mul_add(m, math::load(m, block), factor, offset));
        sum = math::add(m, sum, p);
        math::store::<M, N>(block, p);
    }
    (top, math::sum::<M, N>(sum))
}

/// The natural logarithm of the sum of exponentials, from base-2 parts.
fn log_sum_exp(top: f32, scale: f32, total: f32) -> f32 {
    let bits = f64::from(top) * f64::from(scale) + libm::log2(f64::from(total));
    (bits * std::f64::consts::LN_2) as f32
}
