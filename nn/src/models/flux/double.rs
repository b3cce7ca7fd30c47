//! A block with two streams: text and image have linears of their own and meet in the attention.
//!
//! ```text
//! n = norm(x) (1 + scale) + shift      x += gate out(attention(q n, k n, v n))
//! n = norm(x) (1 + scale) + shift      x += gate down(gelu(up n))
//! ```
//!
//! `N` batch, `S` tokens, `D` width, `F = 4 D`, `M = N S` rows of both streams.

use super::{
    block::{
        Attended, Heads, Modulation, ModulationSums, Pass, RowMoments, attend, attend_backward, gated_add,
        gated_add_backward, normed, normed_backward, split_heads, split_heads_backward,
    },
    config::MLP_RATIO,
    sequence::{ALL, IMAGE, Span, TEXT},
    weights::{DoubleBlock, Stream},
};
use crate::{
    cpu::{self, SubMatrix},
    error::Result,
    layers::{Buffer, Input, InputGrad, Linear, Output, linears, linears_backward},
};

const ATTENTION: (usize, usize) = (0, 1);
const ATTENTION_GATE: usize = 2;
const MLP: (usize, usize) = (3, 4);
const MLP_GATE: usize = 5;

/// What the backward of a block needs.
pub(super) struct DoubleSaved {
    /// Values, `[N, H, S, D / H]`.
    v: Buffer,
    attended: Attended,
    /// Text, then image.
    streams: [StreamSaved; 2],
}

/// What the backward of one stream needs; `R` are its rows.
struct StreamSaved {
    modulation: Modulation,
    /// Input and, after the attention, the middle: `[R, D]`.
    x: Buffer,
    middle: Buffer,
    moments: RowMoments,
    middle_moments: RowMoments,
    /// Queries and keys before their norm, `[R, D]`.
    q: Buffer,
    k: Buffer,
    /// The MLP before its GELU, `[R, F]`.
    up: Buffer,
    /// `x A^T` of the adapted linears.
    attention_inner: Option<Buffer>,
    out_inner: Option<Buffer>,
    up_inner: Option<Buffer>,
    down_inner: Option<Buffer>,
    /// Results before the gates, `[R, D]`, where the gates are adapted.
    attention_gated: Option<Buffer>,
    mlp_gated: Option<Buffer>,
}

/// A stream between its projections and the attention's result.
struct Projected {
    modulation: Modulation,
    moments: RowMoments,
    q: Buffer,
    k: Buffer,
    inner: Option<Buffer>,
}

/// Run the block on `x [M, D]`, in place.
pub(super) fn forward(pass: Pass<'_>, block: &DoubleBlock, x: &mut Buffer) -> Option<DoubleSaved> {
    let mut heads = Heads::take(pass);
    let text = project(pass, &block.text, TEXT, x, &mut heads);
    let image = project(pass, &block.image, IMAGE, x, &mut heads);
    let attended = attend(pass, ALL, &heads);
    let Heads { q, k, v } = heads;
    drop((q, k));
    let text = finish(pass, &block.text, TEXT, x, text, &attended);
    let image = finish(pass, &block.image, IMAGE, x, image, &attended);
    Some(DoubleSaved { v, attended, streams: [text?, image?] })
}

/// Norm, projections, and their place among the heads.
fn project(pass: Pass<'_>, stream: &Stream, span: Span, x: &[f32], heads: &mut Heads) -> Projected {
    let Pass { ctx, sequence, width, .. } = pass;
    let rows = sequence.span_rows(span.clone());
    let modulation = Modulation::new(pass, &stream.modulation);
    let n = normed(pass, span.clone(), &x[rows.start * width..], &modulation, ATTENTION);
    let take = || ctx.buffers.take(rows.len() * width);
    let (mut q, mut k, mut v) = (take(), take(), take());
    let inner = linears(
        ctx,
        rows.len(),
        Input(&n.values, width),
        &mut [
            Output(&stream.q, &mut q, width),
            Output(&stream.k, &mut k, width),
            Output(&stream.v, &mut v, width),
        ],
    );
    split_heads(pass, span.clone(), &q, Some(&stream.norm_q), &mut heads.q);
    split_heads(pass, span.clone(), &k, Some(&stream.norm_k), &mut heads.k);
    split_heads(pass, span, &v, None, &mut heads.v);
    Projected { modulation, moments: n.moments, q, k, inner }
}

/// The attention's result of one stream, `[R, D]`.
fn attended_rows(pass: Pass<'_>, span: Span, attended: &Attended) -> Buffer {
    let rows = pass.sequence.span_rows(span.clone()).len();
    let mut values = pass.ctx.buffers.take(rows * pass.width);
    pass.sequence.copy_from_joint(
        pass.ctx.device,
        span,
        pass.width,
        &attended.values,
        &mut values,
        pass.width,
    );
    values
}

/// `gelu(up)`, `[R, F]`.
fn activated(pass: Pass<'_>, up: &[f32]) -> Buffer {
    let width = MLP_RATIO * pass.width;
    let mut values = pass.ctx.buffers.take(up.len());
    let window = SubMatrix { rows: up.len() / width, width };
    cpu::gelu(pass.ctx.device, window, up, width, &mut values, width);
    values
}

/// What follows the attention in one stream.
fn finish(
    pass: Pass<'_>,
    stream: &Stream,
    span: Span,
    x: &mut [f32],
    projected: Projected,
    attended: &Attended,
) -> Option<StreamSaved> {
    let Pass { ctx, sequence, width, saving, .. } = pass;
    let range = sequence.span_rows(span.clone());
    let (rows, mlp) = (range.len(), MLP_RATIO * width);
    let x = &mut x[range.start * width..range.end * width];
    let Projected { modulation, moments, q, k, inner } = projected;

    let input = saving.then(|| ctx.copy(x));
    let attended = attended_rows(pass, span.clone(), attended);
    let mut y = ctx.buffers.take(rows * width);
    let out_inner = linears(ctx, rows, Input(&attended, width), &mut [Output(&stream.out, &mut y, width)]);
    drop(attended);
    gated_add(pass, span.clone(), x, &modulation, ATTENTION_GATE, &y);
    let adapted = ctx.adapts(&stream.modulation);
    let attention_gated = adapted.then(|| std::mem::replace(&mut y, ctx.buffers.take(rows * width)));

    let middle = saving.then(|| ctx.copy(x));
    let n = normed(pass, span.clone(), x, &modulation, MLP);
    let mut up = ctx.buffers.take(rows * mlp);
    let up_inner = linears(ctx, rows, Input(&n.values, width), &mut [Output(&stream.up, &mut up, mlp)]);
    let active = activated(pass, &up);
    let down_inner = linears(ctx, rows, Input(&active, mlp), &mut [Output(&stream.down, &mut y, width)]);
    gated_add(pass, span, x, &modulation, MLP_GATE, &y);

    Some(StreamSaved {
        x: input?,
        middle: middle?,
        moments,
        middle_moments: n.moments,
        q,
        k,
        up,
        attention_inner: inner,
        out_inner,
        up_inner,
        down_inner,
        attention_gated,
        mlp_gated: adapted.then_some(y),
        modulation,
    })
}

/// What is needed of a stream's derivatives, from its adapted linears and from what lies below.
#[derive(Clone, Copy)]
struct Needs {
    /// By the attention's operands: anything at or before the projections of either stream.
    operands: bool,
    /// By the stream after the attention's gate, and so of the MLP's input.
    middle: bool,
    /// By the input of the projections.
    norm: bool,
}

fn needs(pass: Pass<'_>, block: &DoubleBlock, stream: &Stream, below: bool) -> Needs {
    let adapts = |l: &Linear| pass.ctx.adapts(l);
    let operands = below
        || [&block.text, &block.image]
            .iter()
            .any(|s| adapts(&s.modulation) || adapts(&s.q) || adapts(&s.k) || adapts(&s.v));
    Needs { operands, middle: operands || adapts(&stream.out), norm: below || adapts(&stream.modulation) }
}

/// Backward of [`forward`]: `dx [M, D]`, the derivative by its result, becomes with `below` that by its input.
pub(super) fn backward(
    pass: Pass<'_>,
    block: &DoubleBlock,
    saved: DoubleSaved,
    below: bool,
    dx: &mut Buffer,
    grads: &mut [f32],
) -> Result<()> {
    let Pass { ctx, sequence, width, .. } = pass;
    let DoubleSaved { v, attended, streams } = saved;
    let parts = [(&block.text, TEXT), (&block.image, IMAGE)];
    let mut d_attended = ctx.buffers.take(sequence.rows() * width);
    let mut all_sums = [None, None];
    for (((stream, span), saved), sums) in parts.iter().zip(&streams).zip(&mut all_sums) {
        let range = sequence.span_rows(span.clone());
        let dx = &mut dx[range.start * width..range.end * width];
        let needs = needs(pass, block, stream, below);
        *sums = ModulationSums::new(pass, &stream.modulation);
        mlp_backward(pass, stream, span.clone(), saved, needs, dx, sums.as_mut(), grads)?;
        if needs.middle {
            out_backward(
                pass,
                stream,
                span.clone(),
                saved,
                needs,
                &attended,
                dx,
                &mut d_attended,
                sums.as_mut(),
                grads,
            )?;
        }
    }
    if !needs(pass, block, &block.text, below).operands {
        return Ok(());
    }

    let mut heads = Heads::with_values(pass, v);
    for ((stream, span), saved) in parts.iter().zip(&streams) {
        split_heads(pass, span.clone(), &saved.q, Some(&stream.norm_q), &mut heads.q);
        split_heads(pass, span.clone(), &saved.k, Some(&stream.norm_k), &mut heads.k);
    }
    let d_heads = attend_backward(pass, ALL, &heads, &attended, &d_attended);
    drop((heads, d_attended, attended));
    for (((stream, span), saved), sums) in parts.into_iter().zip(streams).zip(all_sums) {
        let range = sequence.span_rows(span.clone());
        let dx = &mut dx[range.start * width..range.end * width];
        let needs = needs(pass, block, stream, below);
        project_backward(pass, stream, span, saved, needs, &d_heads, dx, sums, grads)?;
    }
    Ok(())
}

/// From the stream's result to its middle.
#[expect(clippy::too_many_arguments, reason = "the operands of one half of a block")]
fn mlp_backward(
    pass: Pass<'_>,
    stream: &Stream,
    span: Span,
    saved: &StreamSaved,
    needs: Needs,
    dx: &mut [f32],
    mut sums: Option<&mut ModulationSums>,
    grads: &mut [f32],
) -> Result<()> {
    let Pass { ctx, width, .. } = pass;
    let (rows, mlp) = (dx.len() / width, MLP_RATIO * width);
    let by_up = needs.middle || ctx.adapts(&stream.up);
    if !by_up && !ctx.adapts(&stream.down) {
        return Ok(());
    }
    let dy = gated_add_backward(
        pass,
        span.clone(),
        dx,
        &saved.modulation,
        MLP_GATE,
        saved.mlp_gated.as_deref(),
        sums.as_deref_mut(),
    )?;
    let active = ctx.adapts(&stream.down).then(|| activated(pass, &saved.up));
    let mut d_active = by_up.then(|| ctx.buffers.take(rows * mlp));
    linears_backward(
        ctx,
        rows,
        active.as_deref().map(|x| Input(x, mlp)),
        saved.down_inner.as_deref(),
        &[(&stream.down, Input(&dy, width))],
        d_active.as_mut().map(|d| InputGrad { values: d, stride: mlp, accumulate: false }),
        grads,
    )?;
    drop(active);
    let Some(d_active) = d_active else { return Ok(()) };
    let mut d_up = ctx.buffers.take(rows * mlp);
    let window = SubMatrix { rows, width: mlp };
    cpu::gelu_backward(ctx.device, window, &saved.up, mlp, &d_active, mlp, &mut d_up, mlp);
    drop(d_active);
    let n = ctx
        .adapts(&stream.up)
        .then(|| normed(pass, span.clone(), &saved.middle, &saved.modulation, MLP).values);
    let mut dn = needs.middle.then_some(dy);
    linears_backward(
        ctx,
        rows,
        n.as_deref().map(|n| Input(n, width)),
        saved.up_inner.as_deref(),
        &[(&stream.up, Input(&d_up, mlp))],
        dn.as_mut().map(|d| InputGrad { values: d, stride: width, accumulate: false }),
        grads,
    )?;
    if let Some(dn) = dn {
        normed_backward(
            pass,
            span.clone(),
            span,
            &saved.middle,
            &saved.middle_moments,
            &saved.modulation,
            MLP,
            &dn,
            dx,
            sums,
        );
    }
    Ok(())
}

/// From the stream's middle to the attention's result, in the joint order.
#[expect(clippy::too_many_arguments, reason = "the operands of one half of a block")]
fn out_backward(
    pass: Pass<'_>,
    stream: &Stream,
    span: Span,
    saved: &StreamSaved,
    needs: Needs,
    attended: &Attended,
    dx: &[f32],
    d_attended: &mut [f32],
    sums: Option<&mut ModulationSums>,
    grads: &mut [f32],
) -> Result<()> {
    let Pass { ctx, sequence, width, .. } = pass;
    let rows = dx.len() / width;
    let dy = gated_add_backward(
        pass,
        span.clone(),
        dx,
        &saved.modulation,
        ATTENTION_GATE,
        saved.attention_gated.as_deref(),
        sums,
    )?;
    let x = ctx.adapts(&stream.out).then(|| attended_rows(pass, span.clone(), attended));
    let mut d = needs.operands.then(|| ctx.buffers.take(rows * width));
    linears_backward(
        ctx,
        rows,
        x.as_deref().map(|x| Input(x, width)),
        saved.out_inner.as_deref(),
        &[(&stream.out, Input(&dy, width))],
        d.as_mut().map(|d| InputGrad { values: d, stride: width, accumulate: false }),
        grads,
    )?;
    if let Some(d) = d {
        sequence.copy_to_joint(ctx.device, span, width, &d, width, d_attended);
    }
    Ok(())
}

/// From the attention's operands to the stream's input.
#[expect(clippy::too_many_arguments, reason = "the operands of one half of a block")]
fn project_backward(
    pass: Pass<'_>,
    stream: &Stream,
    span: Span,
    saved: StreamSaved,
    needs: Needs,
    d_heads: &Heads,
    dx: &mut [f32],
    mut sums: Option<ModulationSums>,
    grads: &mut [f32],
) -> Result<()> {
    let Pass { ctx, width, .. } = pass;
    let rows = dx.len() / width;
    let take = || ctx.buffers.take(rows * width);
    let (mut dq, mut dk, mut dv) = (take(), take(), take());
    split_heads_backward(pass, span.clone(), &d_heads.q, &saved.q, Some(&stream.norm_q), &mut dq);
    split_heads_backward(pass, span.clone(), &d_heads.k, &saved.k, Some(&stream.norm_k), &mut dk);
    split_heads_backward(pass, span.clone(), &d_heads.v, &[], None, &mut dv);
    let adapted = [&stream.q, &stream.k, &stream.v].iter().any(|l| ctx.adapts(l));
    let n = adapted.then(|| normed(pass, span.clone(), &saved.x, &saved.modulation, ATTENTION).values);
    let mut dn = needs.norm.then(take);
    linears_backward(
        ctx,
        rows,
        n.as_deref().map(|n| Input(n, width)),
        saved.attention_inner.as_deref(),
        &[(&stream.q, Input(&dq, width)), (&stream.k, Input(&dk, width)), (&stream.v, Input(&dv, width))],
        dn.as_mut().map(|d| InputGrad { values: d, stride: width, accumulate: false }),
        grads,
    )?;
    let Some(dn) = dn else { return Ok(()) };
    normed_backward(
        pass,
        span.clone(),
        span,
        &saved.x,
        &saved.moments,
        &saved.modulation,
        ATTENTION,
        &dn,
        dx,
        sums.as_mut(),
    );
    match sums {
        Some(sums) => saved.modulation.backward(pass, &stream.modulation, sums.values(), grads),
        None => Ok(()),
    }
}
