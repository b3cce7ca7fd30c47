//! The forward pass: for a block of queries, a running maximum, sum and result over blocks of keys.
//!
//! Scores are stored transposed, keys by queries: maxima and sums then run down the lanes of a block, and the probabilities
//! are read across by the product with the values.
#![allow(unsafe_code, reason = "tasks write disjoint rows of the result")]

use std::ops::Range;

use super::{
    Attention, KEYS, LANES, QUERIES,
    operands::{Panels, across, along, along_len, panels, panels_len, with_row},
};
use crate::cpu::{
    AttentionShape, Cpu, Precision,
    machine::{Kernel, Machine},
    math::{self, BLOCK, Block},
    parallel::{self, Shared},
    precision::interleave,
    product::{Product, Start, product},
    scratch::with_scratch,
    tile::ACROSS,
};

pub(super) fn run(cpu: &Cpu, call: Attention<'_>) {
    let Attention { shape, precision, query_rows, q, k, v, out, out_stride, lse } = call;
    let heads = shape.batch * shape.heads;
    // A task rounds the keys and values of its head, so a head is divided only where there are few heads.
    let blocks = query_rows.len().div_ceil(QUERIES);
    let parts = (4 * cpu.threads()).div_ceil(heads).min(blocks);
    let each = blocks.div_ceil(parts) * QUERIES;
    let parts = query_rows.len().div_ceil(each);
    let (out, lse) = (Shared::new(out), Shared::new(lse));
    let operations = 4 * heads * query_rows.len() * shape.keys();
    let width = cpu.tile().1;
    let value_columns = shape.dim.next_multiple_of(width);
    let lengths = [
        QUERIES * shape.dim,
        along_len(precision, shape.dim, shape.keys),
        shape.keys.div_ceil(KEYS) * panels_len(precision, KEYS, shape.dim, width),
        KEYS * QUERIES,
        QUERIES * value_columns,
    ];
    parallel::for_each(cpu, operations, heads * parts, |task| {
        let (head, first) = (task / parts, query_rows.start + task % parts * each);
        let queries = head * shape.queries()..(head + 1) * shape.queries();
        let values = head * shape.keys()..(head + 1) * shape.keys();
        with_scratch(lengths, |scratch| {
            let part = Part {
                shape,
                head,
                rows: first..query_rows.end.min(first + each),
                q: &q[queries],
                k: &k[values.clone()],
                v: &v[values],
                out,
                out_stride,
                lse,
                scratch,
            };
            with_row!(shape.dim, ROW => match precision {
                Precision::F32 => cpu.run(Queries::<ROW, false>(part)),
                Precision::Bf16 => cpu.run(Queries::<ROW, true>(part)),
            });
        });
    });
}

/// One task: some queries of one head.
struct Part<'a> {
    shape: AttentionShape,
    head: usize,
    rows: Range<usize>,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    out: Shared<'a>,
    out_stride: usize,
    lse: Shared<'a>,
    /// Queries across, keys at the distance ROW, panels of values by blocks of keys, scores, and sums of values.
    scratch: [&'a mut [f32]; 5],
}

struct Queries<'a, const ROW: usize, const PAIRS: bool>(Part<'a>);

impl<const ROW: usize, const PAIRS: bool> Kernel for Queries<'_, ROW, PAIRS> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine, const N: usize>(self, m: M) {
        let part = self.0;
        let AttentionShape { tokens, keys: key_count, dim, .. } = part.shape;
        let width = M::TILE_COLUMNS;
        let value_columns = dim.next_multiple_of(width);
        let scale = std::f32::consts::LOG2_E / (dim as f32).sqrt();
        let [queries, keys, values, scores, sums] = part.scratch;
        let precision = if PAIRS { Precision::Bf16 } else { Precision::F32 };
        let words = precision.words(dim);
        let keys = along::<ROW, PAIRS>(part.k, dim, key_count, keys);
        let block_len = panels_len(precision, KEYS, dim, width);
        let block = |first: usize| first / KEYS * block_len..(first / KEYS + 1) * block_len;
        let count = |first: usize| KEYS.min(key_count - first);
        for first in (0..key_count).step_by(KEYS) {
            panels::<PAIRS>(&part.v[first * dim..], dim, count(first), dim, width, &mut values[block(first)]);
        }
        for first_row in part.rows.clone().step_by(QUERIES) {
            let rows = QUERIES.min(part.rows.end - first_row);
            let columns = rows.next_multiple_of(width);
            across::<PAIRS>(&part.q[first_row * dim..], dim, rows, dim, width, queries);
            let mut running = Running::<M, N>::new(m);
            for first in (0..key_count).step_by(KEYS) {
                let count = count(first);
                let s = Product {
                    rows: count,
                    columns,
                    k: words,
                    a: keys.wrapping_add(first * ROW),
                    a_stride: 0,
                    panels: queries.as_ptr(),
                    panel_row: width,
                    panel_stride: words * width,
                    start: Start::Zero,
                    c: scores.as_mut_ptr(),
                    c_stride: QUERIES,
                };
                // SAFETY: `count` keys at the distance ROW from `first` on; panels of `columns` queries (zeros beyond the
                // last), and `columns <= QUERIES` since QUERIES is whole panels.
                unsafe { product::<M, ROW, PAIRS>(m, &s) };
                let shrink = running.exponentials::<PAIRS>(m, &mut scores[..count * QUERIES], scale);
                if first > 0 {
                    for (row, shrink) in sums.chunks_exact_mut(value_columns).zip(&shrink[..rows]) {
                        let shrink = math::splat::<M, N>(m, *shrink);
                        for block in row.chunks_exact_mut(BLOCK) {
                            math::store::<M, N>(block, math::mul(m, math::load(m, block), shrink));
                        }
                    }
                }
                let Panels { start, row, stride } = if PAIRS || value_columns != dim {
                    let words = precision.words(count);
                    Panels { start: values[block(first)].as_ptr(), row: width, stride: words * width }
                } else {
                    Panels { start: part.v[first * dim..].as_ptr(), row: dim, stride: width }
                };
                let o = Product {
                    rows,
                    columns: value_columns,
                    k: precision.words(count),
                    a: scores.as_ptr(),
                    a_stride: QUERIES,
                    panels: start,
                    panel_row: row,
                    panel_stride: stride,
                    start: if first == 0 { Start::Zero } else { Start::Result },
                    c: sums.as_mut_ptr(),
                    c_stride: value_columns,
                };
                // SAFETY: `count` rows of probabilities for `rows` queries, `count` values, and `rows` rows of sums.
                unsafe { product::<M, ACROSS, PAIRS>(m, &o) };
            }
            let (top, total) = running.lanes();
            for i in 0..rows {
                let row = first_row + i;
                let start = part.shape.token_major(part.head, row, part.out_stride);
                // SAFETY: this head's columns of this row are written by this task only.
                let out = unsafe { part.out.part(start, dim) };
                let inverse = 1.0 / total[i];
                for (out, sum) in out.iter_mut().zip(&sums[i * value_columns..]) {
                    *out = sum * inverse;
                }
                // SAFETY: as above.
                let lse = unsafe { part.lse.part(part.head * tokens + row, 1) };
                lse[0] = log_sum_exp(top[i], scale, total[i]);
            }
        }
    }
}
/// The largest score so far and the sum of exponentials, one lane a query.
struct Running<M: Machine, const N: usize> {
    top: [Block<M, N>; LANES],
    total: [Block<M, N>; LANES],
}

impl<M: Machine, const N: usize> Running<M, N> {
    #[inline(always)]
    fn new(m: M) -> Self {
        Self { top: [math::splat(m, f32::NEG_INFINITY); LANES], total: [math::splat(m, 0.0); LANES] }
    }

    /// Replaces scores `[keys, QUERIES]` by `2^(scale * (score - top))`, where `top` is the largest so far. Returns by what
    /// earlier sums are to be multiplied. With PAIRS, words of two keys are left: `[keys / 2, QUERIES]`.
    #[inline(always)]
    fn exponentials<const PAIRS: bool>(&mut self, m: M, scores: &mut [f32], scale: f32) -> [f32; QUERIES] {
        let mut top = self.top;
        for row in scores.chunks_exact(QUERIES) {
            for (top, score) in top.iter_mut().zip(row.chunks_exact(BLOCK)) {
                *top = math::max(m, *top, math::load(m, score));
            }
        }
        let factor = math::splat::<M, N>(m, scale);
        let mut shrinks = [0.0; QUERIES];
        let mut offset = top;
        for i in 0..LANES {
            let shrink = math::exp2(m, math::mul(m, math::sub(m, self.top[i], top[i]), factor));
            math::store::<M, N>(&mut shrinks[i * BLOCK..], shrink);
            self.total[i] = math::mul(m, self.total[i], shrink);
            offset[i] = math::sub(m, math::splat(m, 0.0), math::mul(m, top[i], factor));
        }
        self.top = top;
        let mut sum = [math::splat::<M, N>(m, 0.0); LANES];
        for row in scores.chunks_exact_mut(QUERIES) {
            for i in 0..LANES {
                let score = &mut row[i * BLOCK..][..BLOCK];
                let p = math::exp2(m, math::mul_add(m, math::load(m, score), factor, offset[i]));
                sum[i] = math::add(m, sum[i], p);
                math::store::<M, N>(score, p);
            }
        }
        if PAIRS {
            pair_rows(scores);
        }
        for (total, sum) in self.total.iter_mut().zip(sum) {
            *total = math::add(m, *total, sum);
        }
        shrinks
    }

    /// Largest scores and sums, by query.
    #[inline(always)]
    fn lanes(&self) -> ([f32; QUERIES], [f32; QUERIES]) {
        let (mut top, mut total) = ([0.0; QUERIES], [0.0; QUERIES]);
        for i in 0..LANES {
            math::store::<M, N>(&mut top[i * BLOCK..], self.top[i]);
            math::store::<M, N>(&mut total[i * BLOCK..], self.total[i]);
        }
        (top, total)
    }
}

/// Replaces rows of QUERIES by words of two rows each, from the front on.
#[inline(always)]
pub(super) fn pair_rows(rows: &mut [f32]) {
    let count = rows.len() / QUERIES;
    for word in 0..count.div_ceil(2) {
        let (mut one, mut two) = ([0.0; QUERIES], [0.0; QUERIES]);
        one.copy_from_slice(&rows[2 * word * QUERIES..][..QUERIES]);
        if 2 * word + 1 < count {
            two.copy_from_slice(&rows[(2 * word + 1) * QUERIES..][..QUERIES]);
        }
        interleave(&one, &two, &mut rows[word * QUERIES..][..QUERIES]);
    }
}

/// The natural logarithm of the sum of exponentials, from base-2 parts.
fn log_sum_exp(top: f32, scale: f32, total: f32) -> f32 {
    let bits = f64::from(top) * f64::from(scale) + libm::log2(f64::from(total));
    (bits * std::f64::consts::LN_2) as f32
}
