//! A block with one stream: attention and MLP side by side from one normed input.
//!
//! ```text
//! n = norm(x) (1 + scale) + shift      x += gate out([attention(q n, k n, v n) | gelu(up n)])
//! ```
//!
//! `N` batch, `S` tokens, `D` width, `F = 4 D`, `M = N S` rows, `K` rows of the span that is computed. The last block
//! of a pass computes only rows that somebody reads: of the other tokens, keys and values are enough.

use super::{
    block::{
        Attended, Heads, Modulation, ModulationSums, Pass, RowMoments, attend, attend_backward, gated_add,
        gated_add_backward, normed, normed_backward, split_heads, split_heads_backward,
    },
    config::MLP_RATIO,
    sequence::{ALL, Span},
    weights::SingleBlock,
};
use crate::{
    cpu::{self, SubMatrix},
    error::Result,
    layers::{Buffer, Input, InputGrad, Linear, Output, linears, linears_backward},
};

const SHIFT_SCALE: (usize, usize) = (0, 1);
const GATE: usize = 2;

/// What the backward of a block needs.
pub(super) struct SingleSaved {
    span: Span,
    /// Input, `[M, D]`.
    x: Buffer,
    modulation: Modulation,
    moments: RowMoments,
    /// Queries `[K, D]` and keys `[M, D]` before their norm.
    q: Buffer,
    k: Buffer,
    /// Values, `[N, H, S, D / H]`.
    v: Buffer,
    attended: Attended,
    /// The MLP before its GELU, `[K, F]`.
    up: Buffer,
    /// `x A^T` of the adapted linears.
    key_value_inner: Option<Buffer>,
    query_up_inner: Option<Buffer>,
    out_inner: Option<Buffer>,
    /// Result before the gate, `[K, D]`, where the gate is adapted.
    gated: Option<Buffer>,
}

/// Run the block on all tokens and change the rows of a span of `x [M, D]`.
pub(super) fn forward(
    pass: Pass<'_>,
    block: &SingleBlock,
    span: Span,
    x: &mut Buffer,
) -> Option<SingleSaved> {
    let Pass { ctx, sequence, width, .. } = pass;
    let (m, rows) = (sequence.rows(), sequence.span_rows(span.clone()));
    let (k_rows, mlp) = (rows.len(), MLP_RATIO * width);
    let both = width + mlp;
    let modulation = Modulation::new(pass, &block.modulation);
    let n = normed(pass, ALL, x, &modulation, SHIFT_SCALE);

    let mut k = ctx.buffers.take(m * width);
    let mut v = ctx.buffers.take(m * width);
    let key_value_inner = linears(
        ctx,
        m,
        Input(&n.values, width),
        &mut [Output(&block.k, &mut k, width), Output(&block.v, &mut v, width)],
    );
    let mut q = ctx.buffers.take(k_rows * width);
    let mut up = ctx.buffers.take(k_rows * mlp);
    let query_up_inner = linears(
        ctx,
        k_rows,
        Input(&n.values[rows.start * width..], width),
        &mut [Output(&block.q, &mut q, width), Output(&block.up, &mut up, mlp)],
    );
    let moments = n.moments;
    drop(n.values);

    let mut heads = Heads::take(pass);
    split_heads(pass, span.clone(), &q, Some(&block.norm_q), &mut heads.q);
    split_heads(pass, ALL, &k, Some(&block.norm_k), &mut heads.k);
    split_heads(pass, ALL, &v, None, &mut heads.v);
    drop(v);
    let attended = attend(pass, span.clone(), &heads);
    let Heads { q: q_heads, k: k_heads, v } = heads;
    drop((q_heads, k_heads));

    let joined = joined(pass, span.clone(), &attended, &up);
    let mut y = ctx.buffers.take(k_rows * width);
    let out_inner = linears(ctx, k_rows, Input(&joined, both), &mut [Output(&block.out, &mut y, width)]);
    drop(joined);

    let kept = pass.saving.then(|| ctx.copy(x));
    gated_add(pass, span.clone(), &mut x[rows.start * width..], &modulation, GATE, &y);
    kept.map(|x| SingleSaved {
        span,
        x,
        moments,
        q,
        k,
        v,
        attended,
        up,
        key_value_inner,
        query_up_inner,
        out_inner,
        gated: ctx.adapts(&block.modulation).then_some(y),
        modulation,
    })
}

/// `[attention | gelu(up)]`, `[K, D + F]`.
fn joined(pass: Pass<'_>, span: Span, attended: &Attended, up: &[f32]) -> Buffer {
    let (width, mlp) = (pass.width, MLP_RATIO * pass.width);
    let rows = pass.sequence.span_rows(span.clone()).len();
    let mut joined = pass.ctx.buffers.take(rows * (width + mlp));
    pass.sequence.copy_from_joint(pass.ctx.device, span, width, &attended.values, &mut joined, width + mlp);
    cpu::gelu(pass.ctx.device, SubMatrix { rows, width: mlp }, up, mlp, &mut joined[width..], width + mlp);
    joined
}

/// Backward of [`forward`]. Of `dx [M, D]` the rows of `span` hold the derivative by the block's result, the others
/// count as zero; with `below`, all rows are made the derivative by its input.
pub(super) fn backward(
    pass: Pass<'_>,
    block: &SingleBlock,
    saved: SingleSaved,
    span: Span,
    below: bool,
    dx: &mut Buffer,
    grads: &mut [f32],
) -> Result<()> {
    let Pass { ctx, sequence, width, .. } = pass;
    let (m, rows) = (sequence.rows(), sequence.span_rows(span.clone()));
    let (k_rows, mlp) = (rows.len(), MLP_RATIO * width);
    let both = width + mlp;
    debug_assert_eq!(
        sequence.span_rows(saved.span.clone()).start,
        rows.start,
        "rows were kept from another place"
    );
    let adapts = |linears: &[&Linear]| linears.iter().any(|l| ctx.adapts(l));
    let by_norm = below || ctx.adapts(&block.modulation);
    let inside = by_norm || adapts(&[&block.q, &block.k, &block.v, &block.up]);

    let mut sums = ModulationSums::new(pass, &block.modulation);
    let dy = gated_add_backward(
        pass,
        span.clone(),
        &dx[rows.start * width..],
        &saved.modulation,
        GATE,
        saved.gated.as_deref(),
        sums.as_mut(),
    )?;
    let into_out = ctx.adapts(&block.out).then(|| joined(pass, span.clone(), &saved.attended, &saved.up));
    let mut d_joined = inside.then(|| ctx.buffers.take(k_rows * both));
    linears_backward(
        ctx,
        k_rows,
        into_out.as_deref().map(|x| Input(x, both)),
        saved.out_inner.as_deref(),
        &[(&block.out, Input(&dy, width))],
        d_joined.as_mut().map(|d| InputGrad { values: d, stride: both, accumulate: false }),
        grads,
    )?;
    drop((into_out, dy));
    let Some(d_joined) = d_joined else { return Ok(()) };

    let mut d_up = ctx.buffers.take(k_rows * mlp);
    let window = SubMatrix { rows: k_rows, width: mlp };
    cpu::gelu_backward(ctx.device, window, &saved.up, mlp, &d_joined[width..], both, &mut d_up, mlp);

    let mut heads = Heads::with_values(pass, saved.v);
    split_heads(pass, span.clone(), &saved.q, Some(&block.norm_q), &mut heads.q);
    split_heads(pass, ALL, &saved.k, Some(&block.norm_k), &mut heads.k);
    let mut d_attended = ctx.buffers.take(m * width);
    sequence.copy_to_joint(ctx.device, span.clone(), width, &d_joined, both, &mut d_attended);
    drop(d_joined);
    let d_heads = attend_backward(pass, span.clone(), &heads, &saved.attended, &d_attended);
    drop((heads, d_attended));
    let mut dq = ctx.buffers.take(k_rows * width);
    let mut dk = ctx.buffers.take(m * width);
    let mut dv = ctx.buffers.take(m * width);
    split_heads_backward(pass, span.clone(), &d_heads.q, &saved.q, Some(&block.norm_q), &mut dq);
    split_heads_backward(pass, ALL, &d_heads.k, &saved.k, Some(&block.norm_k), &mut dk);
    split_heads_backward(pass, ALL, &d_heads.v, &[], None, &mut dv);
    drop(d_heads);

    let adapted = adapts(&[&block.q, &block.k, &block.v, &block.up]);
    let n = adapted.then(|| normed(pass, ALL, &saved.x, &saved.modulation, SHIFT_SCALE).values);
    let mut dn = by_norm.then(|| ctx.buffers.take(m * width));
    linears_backward(
        ctx,
        m,
        n.as_deref().map(|n| Input(n, width)),
        saved.key_value_inner.as_deref(),
        &[(&block.k, Input(&dk, width)), (&block.v, Input(&dv, width))],
        dn.as_mut().map(|d| InputGrad { values: d, stride: width, accumulate: false }),
        grads,
    )?;
    linears_backward(
        ctx,
        k_rows,
        n.as_deref().map(|n| Input(&n[rows.start * width..], width)),
        saved.query_up_inner.as_deref(),
        &[(&block.q, Input(&dq, width)), (&block.up, Input(&d_up, mlp))],
        dn.as_mut().map(|d| InputGrad {
            values: &mut d[rows.start * width..],
            stride: width,
            accumulate: true,
        }),
        grads,
    )?;
    let Some(dn) = dn else { return Ok(()) };
    normed_backward(
        pass,
        ALL,
        span,
        &saved.x,
        &saved.moments,
        &saved.modulation,
        SHIFT_SCALE,
        &dn,
        dx,
        sums.as_mut(),
    );
    match sums {
        Some(sums) => saved.modulation.backward(pass, &block.modulation, sums.values(), grads),
        None => Ok(()),
    }
}
