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
        Attended, Heads, Modulation, ModulationSums, Pass, Projection, ProjectionGrad, RowMoments, attend,
        attend_backward, gated_add, gated_add_backward, normed, normed_backward, split_heads,
        split_heads_backward,
    },
    config::MLP_RATIO,
    sequence::{ALL, Span},
    weights::SingleBlock,
};
use crate::{
    device::{Activation, Device, Kind, Queue, View, ViewMut},
    error::Result,
    layers::{InputGrad, Linear, Output, adapter_backward, inner, input_backward, linears, linears_backward},
};

const SHIFT_SCALE: (usize, usize) = (0, 1);
const GATE: usize = 2;

/// What the backward of a block needs.
pub(super) struct SingleSaved<D: Device> {
    /// Input, `[M, D]`.
    x: D::Buffer,
    inside: Inside<D>,
    out_inner: Option<D::Buffer>,
    /// Result before the gate, `[K, D]`, where the gate is adapted.
    gated: Option<D::Buffer>,
}

/// What the backward needs of a block up to its last linear.
struct Inside<D: Device> {
    span: Span,
    modulation: Modulation<D>,
    moments: RowMoments<D>,
    /// Queries `[K, D]` and keys `[M, D]` before their norm.
    q: D::Buffer,
    k: D::Buffer,
    /// Values, `[N, H, S, D / H]`.
    v: D::Buffer,
    attended: Attended<D>,
    /// The MLP before its GELU, `[K, F]`.
    up: D::Buffer,
    /// `x A^T` of the adapted linears.
    key_value_inner: Option<D::Buffer>,
    query_up_inner: Option<D::Buffer>,
    fresh: Fresh<D>,
}

/// What a backward makes from what was kept, unless the forward has just run again for it.
struct Fresh<D: Device> {
    /// Normed input, `[M, D]`.
    n: Option<D::Buffer>,
    /// Queries and keys, `[N, H, S, D / H]`.
    heads: Option<(D::Buffer, D::Buffer)>,
    joined: Option<D::Buffer>,
}

/// Run the block on all tokens and change the rows of a span of `x [M, D]`.
pub(super) fn forward<D: Device>(
    pass: Pass<'_, D>,
    block: &SingleBlock<D>,
    span: Span,
    x: &mut D::Buffer,
) -> Result<Option<SingleSaved<D>>> {
    let Pass { ctx, sequence, width, .. } = pass;
    let rows = sequence.span_rows(span.clone());
    let inside = inside(pass, block, span.clone(), x, false)?;
    let joined = joined(pass, span.clone(), &inside.attended, &inside.up);
    let (y, out_inner) = out(pass, block, rows.len(), &joined)?;
    drop(joined);
    let len = sequence.rows() * width;
    let kept = pass.saving.then(|| ctx.queue.copy(View::new(x, width), len, Kind::Activation));
    let to = ViewMut::new(x, width).skip(rows.start * width);
    gated_add(pass, span, to, &inside.modulation, GATE, &y);
    let gated = ctx.adapts(&block.modulation).then_some(y);
    Ok(kept.map(|x| SingleSaved { x, inside, out_inner, gated }))
}

/// What the backward of [`forward`] needs, from the block's input: the result itself is not computed again.
pub(super) fn again<D: Device>(
    pass: Pass<'_, D>,
    block: &SingleBlock<D>,
    span: Span,
    x: D::Buffer,
) -> Result<SingleSaved<D>> {
    let Pass { ctx, sequence, width, .. } = pass;
    let rows = sequence.span_rows(span.clone()).len();
    let mut inside = inside(pass, block, span.clone(), &x, true)?;
    let by_gate = ctx.adapts(&block.modulation);
    if !by_gate && !ctx.adapts(&block.out) {
        return Ok(SingleSaved { x, inside, out_inner: None, gated: None });
    }
    let joined = joined(pass, span, &inside.attended, &inside.up);
    let (gated, out_inner) = if by_gate {
        let (y, inner) = out(pass, block, rows, &joined)?;
        (Some(y), inner)
    } else {
        (None, inner(ctx, rows, View::new(&joined, width + MLP_RATIO * width), [&block.out]))
    };
    inside.fresh.joined = Some(joined);
    Ok(SingleSaved { x, inside, out_inner, gated })
}

/// The block up to its last linear. What the backward reads once more is kept where it comes next.
fn inside<D: Device>(
    pass: Pass<'_, D>,
    block: &SingleBlock<D>,
    span: Span,
    x: &D::Buffer,
    backward_next: bool,
) -> Result<Inside<D>> {
    let Pass { ctx, sequence, width, .. } = pass;
    let (m, rows) = (sequence.rows(), sequence.span_rows(span.clone()));
    let (k_rows, mlp) = (rows.len(), MLP_RATIO * width);
    let modulation = Modulation::new(pass, &block.modulation)?;
    let n = normed(pass, ALL, View::new(x, width), &modulation, SHIFT_SCALE);

    let mut k = pass.take(m * width);
    let mut v = pass.take(m * width);
    let key_value_inner = linears(
        ctx,
        m,
        View::new(&n.values, width),
        &mut [Output(&block.k, ViewMut::new(&mut k, width)), Output(&block.v, ViewMut::new(&mut v, width))],
    )?;
    let mut q = pass.take(k_rows * width);
    let mut up = pass.take(k_rows * mlp);
    let query_up_inner = linears(
        ctx,
        k_rows,
        View::new(&n.values, width).skip(rows.start * width),
        &mut [Output(&block.q, ViewMut::new(&mut q, width)), Output(&block.up, ViewMut::new(&mut up, mlp))],
    )?;
    let moments = n.moments;
    let adapted = [&block.q, &block.k, &block.v, &block.up].iter().any(|l| ctx.adapts(l));
    let n = Some(n.values).filter(|_| backward_next && adapted);

    let mut heads = Heads::take(pass);
    let projections = [
        Projection { span: span.clone(), rows: &q, weight: Some(&block.norm_q), heads: &mut heads.q },
        Projection { span: ALL, rows: &k, weight: Some(&block.norm_k), heads: &mut heads.k },
        Projection { span: ALL, rows: &v, weight: None, heads: &mut heads.v },
    ];
    split_heads(pass, projections);
    drop(v);
    let attended = attend(pass, span.clone(), &heads);
    let Heads { q: q_heads, k: k_heads, v } = heads;
    let heads = Some((q_heads, k_heads)).filter(|_| backward_next);
    let fresh = Fresh { n, heads, joined: None };
    Ok(Inside { span, modulation, moments, q, k, v, attended, up, key_value_inner, query_up_inner, fresh })
}

/// The last linear, `[K, D]`, with its `x A^T`.
fn out<D: Device>(
    pass: Pass<'_, D>,
    block: &SingleBlock<D>,
    rows: usize,
    joined: &D::Buffer,
) -> Result<(D::Buffer, Option<D::Buffer>)> {
    let width = pass.width;
    let mut y = pass.take(rows * width);
    let output = Output(&block.out, ViewMut::new(&mut y, width));
    let inner = linears(pass.ctx, rows, View::new(joined, width + MLP_RATIO * width), &mut [output])?;
    Ok((y, inner))
}

/// `[attention | gelu(up)]`, `[K, D + F]`.
fn joined<D: Device>(pass: Pass<'_, D>, span: Span, attended: &Attended<D>, up: &D::Buffer) -> D::Buffer {
    let (width, mlp) = (pass.width, MLP_RATIO * pass.width);
    let rows = pass.sequence.span_rows(span.clone()).len();
    let mut joined = pass.take(rows * (width + mlp));
    let mut to = ViewMut::new(&mut joined, width + mlp);
    pass.sequence.copy_from_joint(pass.ctx, span, width, &attended.values, to.again());
    pass.ctx.queue.activate(Activation::Gelu, (rows, mlp), View::new(up, mlp), to.skip(width));
    joined
}

/// Backward of [`forward`]. Of `dx [M, D]` the rows of `span` hold the derivative by the block's result, the others
/// count as zero; with `below`, all rows are made the derivative by its input.
pub(super) fn backward<D: Device>(
    pass: Pass<'_, D>,
    block: &SingleBlock<D>,
    saved: SingleSaved<D>,
    span: Span,
    below: bool,
    dx: &mut D::Buffer,
    grads: &mut D::Buffer,
) -> Result<()> {
    let Pass { ctx, sequence, width, .. } = pass;
    let (m, rows) = (sequence.rows(), sequence.span_rows(span.clone()));
    let (k_rows, mlp) = (rows.len(), MLP_RATIO * width);
    let (both, first) = (width + mlp, rows.start * width);
    let SingleSaved { x, inside: saved, out_inner, gated } = saved;
    let Fresh { n, heads, joined: known } = saved.fresh;
    debug_assert_eq!(
        sequence.span_rows(saved.span.clone()).start,
        rows.start,
        "rows were kept from another place"
    );
    let adapts = |linears: &[&Linear<D>]| linears.iter().any(|l| ctx.adapts(l));
    let by_norm = below || ctx.adapts(&block.modulation);
    let inside = by_norm || adapts(&[&block.q, &block.k, &block.v, &block.up]);

    let mut sums = ModulationSums::new(pass, &block.modulation);
    let dy = gated_add_backward(
        pass,
        span.clone(),
        View::new(dx, width).skip(first),
        &saved.modulation,
        GATE,
        gated.as_ref(),
        sums.as_mut(),
    )?;
    drop(gated);
    let joined = || known.unwrap_or_else(|| joined(pass, span.clone(), &saved.attended, &saved.up));
    let into_out = ctx.adapts(&block.out).then(joined);
    let outputs = [(&block.out, View::new(&dy, width))];
    let joined = into_out.as_ref().map(|x| View::new(x, both));
    let inner = adapter_backward(ctx, k_rows, joined, out_inner.as_ref(), &outputs, grads)?;
    // The widest values of a block: they and their cotangent are never there at once.
    drop((into_out, out_inner));
    if !inside {
        return Ok(());
    }
    let mut d_joined = pass.take(k_rows * both);
    let d = InputGrad { values: ViewMut::new(&mut d_joined, both), accumulate: false };
    input_backward(ctx, k_rows, inner, &outputs, d)?;
    drop(dy);
    let d_joined_view = View::new(&d_joined, both);
    let mut d_up = saved.up;
    ctx.queue.gelu_backward((k_rows, mlp), d_joined_view.skip(width), ViewMut::new(&mut d_up, mlp));

    let heads = match heads {
        Some((q, k)) => Heads { q, k, v: saved.v },
        None => {
            let mut heads = Heads::with_values(pass, saved.v);
            let (q, k) = (Some(&block.norm_q), Some(&block.norm_k));
            let projections = [
                Projection { span: span.clone(), rows: &saved.q, weight: q, heads: &mut heads.q },
                Projection { span: ALL, rows: &saved.k, weight: k, heads: &mut heads.k },
            ];
            split_heads(pass, projections);
            heads
        }
    };
    let mut d_attended = pass.take(m * width);
    sequence.copy_to_joint(ctx, span.clone(), width, d_joined_view, &mut d_attended);
    drop(d_joined);
    let d_heads = attend_backward(pass, span.clone(), &heads, &saved.attended, &d_attended);
    drop((heads, d_attended));
    let mut dq = pass.take(k_rows * width);
    let mut dk = pass.take(m * width);
    let mut dv = pass.take(m * width);
    let (q, k) = ((&saved.q, &block.norm_q), (&saved.k, &block.norm_k));
    let projections = [
        ProjectionGrad { span: span.clone(), d_heads: &d_heads.q, x: Some(q), d_rows: &mut dq },
        ProjectionGrad { span: ALL, d_heads: &d_heads.k, x: Some(k), d_rows: &mut dk },
        ProjectionGrad { span: ALL, d_heads: &d_heads.v, x: None, d_rows: &mut dv },
    ];
    split_heads_backward(pass, projections);
    drop(d_heads);

    let adapted = adapts(&[&block.q, &block.k, &block.v, &block.up]);
    let x = View::new(&x, width);
    let normed = || n.unwrap_or_else(|| normed(pass, ALL, x, &saved.modulation, SHIFT_SCALE).values);
    let n = adapted.then(normed);
    let mut dn = by_norm.then(|| pass.take(m * width));
    linears_backward(
        ctx,
        m,
        n.as_ref().map(|n| View::new(n, width)),
        saved.key_value_inner.as_ref(),
        &[(&block.k, View::new(&dk, width)), (&block.v, View::new(&dv, width))],
        dn.as_mut().map(|d| InputGrad { values: ViewMut::new(d, width), accumulate: false }),
        grads,
    )?;
    linears_backward(
        ctx,
        k_rows,
        n.as_ref().map(|n| View::new(n, width).skip(first)),
        saved.query_up_inner.as_ref(),
        &[(&block.q, View::new(&dq, width)), (&block.up, View::new(&d_up, mlp))],
        dn.as_mut().map(|d| InputGrad { values: ViewMut::new(d, width).skip(first), accumulate: true }),
        grads,
    )?;
    let Some(dn) = dn else { return Ok(()) };
    normed_backward(
        pass,
        ALL,
        span,
        x,
        &saved.moments,
        &saved.modulation,
        SHIFT_SCALE,
        View::new(&dn, width),
        ViewMut::new(dx, width),
        sums.as_mut(),
    );
    match sums {
        Some(sums) => saved.modulation.backward(pass, &block.modulation, &sums, grads),
        None => Ok(()),
    }
}
