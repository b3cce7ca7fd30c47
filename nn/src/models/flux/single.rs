//! A block with one stream: attention and MLP side by side from one normed input.
//!
//! ```text
//! n = norm(x) (1 + scale) + shift      x += gate out([attention(q n, k n, v n) | gelu(up n)])
//! ```
//!
//! `N` batch, `S` tokens, `D` width, `F = 4 D`, `M = N S` rows, `K` rows of the span that is computed. The last block
//! of a pass computes only rows that somebody reads: of the other tokens, keys and values are enough.

use std::sync::Arc;

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
    models::checkpointing::Keep,
};

const SHIFT_SCALE: (usize, usize) = (0, 1);
const GATE: usize = 2;

/// What the backward of a block needs.
pub(super) struct SingleSaved<D: Device> {
    /// Input, `[M, D]`.
    x: Arc<D::Buffer>,
    span: Span,
    modulation: Modulation<D>,
    attended: Attended<D>,
    /// The MLP before its GELU, `[K, F]`.
    up: D::Buffer,
    projected: Projected<D>,
    out_inner: Option<D::Buffer>,
    /// Result before the gate, `[K, D]`, where the gate is adapted.
    gated: Option<D::Buffer>,
    joined: Option<D::Buffer>,
}

/// What the rest of a block is made of.
struct Inside<D: Device> {
    modulation: Modulation<D>,
    attended: Attended<D>,
    /// The MLP before its GELU, `[K, F]`.
    up: D::Buffer,
}

/// What only the backward needs of the projections.
struct Projected<D: Device> {
    moments: RowMoments<D>,
    /// Queries `[K, D]` and keys `[M, D]` before their norm.
    q: D::Buffer,
    k: D::Buffer,
    /// Values, `[N, H, S, D / H]`.
    v: D::Buffer,
    /// `x A^T` of the adapted linears.
    key_value_inner: Option<D::Buffer>,
    query_up_inner: Option<D::Buffer>,
    fresh: Fresh<D>,
}

/// What a backward makes from the rest where it was not kept.
struct Fresh<D: Device> {
    /// Normed input, `[M, D]`.
    n: Option<D::Buffer>,
    /// Queries and keys, `[N, H, S, D / H]`.
    heads: Option<(D::Buffer, D::Buffer)>,
}

/// Run the block on all tokens of `x [M, D]`: the result, of which only the rows of a span are written, and what its backward needs. The
/// result goes into new memory, so that nothing is copied to keep what the block has read.
pub(super) fn forward<D: Device>(
    pass: Pass<'_, D>,
    block: &SingleBlock<D>,
    span: Span,
    x: &Arc<D::Buffer>,
) -> Result<(D::Buffer, Option<SingleSaved<D>>)> {
    let Pass { ctx, sequence, width, keep, .. } = pass;
    let rows = sequence.span_rows(span.clone());
    let (Inside { modulation, attended, up }, projected) = inside(pass, block, span.clone(), x)?;
    let projected = keep.is_some().then_some(projected);
    let joined = joined(pass, span.clone(), &attended, &up);
    let kept = projected.map(|projected| (projected, attended, up));
    let len = rows.len() * width;
    let mut y = pass.take(sequence.rows() * width);
    let mut to = pass.rows_of_mut(&span, &mut y);
    let out_inner = out(pass, block, rows.len(), &joined, to.again())?;
    let joined = Some(joined).filter(|_| pass.keeps_input_of(&block.out));
    let gated = (keep.is_some() && ctx.adapts(&block.modulation))
        .then(|| ctx.queue.copy(to.read(), len, Kind::Activation));
    gated_add(pass, span.clone(), pass.rows_of(&span, x), &modulation, GATE, to);
    let saved = kept.map(|(projected, attended, up)| {
        let x = Arc::clone(x);
        SingleSaved { x, span, modulation, attended, up, projected, out_inner, gated, joined }
    });
    Ok((y, saved))
}

/// What the backward of [`forward`] needs, from the block's input: the result itself is not computed again.
pub(super) fn again<D: Device>(
    pass: Pass<'_, D>,
    block: &SingleBlock<D>,
    span: Span,
    x: &Arc<D::Buffer>,
) -> Result<SingleSaved<D>> {
    let Pass { ctx, sequence, width, .. } = pass;
    let rows = sequence.span_rows(span.clone()).len();
    let pass = Pass { keep: Keep::All, ..pass };
    let (Inside { modulation, attended, up }, projected) = inside(pass, block, span.clone(), x)?;
    let by_gate = ctx.adapts(&block.modulation);
    let read = by_gate || ctx.adapts(&block.out);
    let joined = read.then(|| joined(pass, span.clone(), &attended, &up));
    let mut gated = by_gate.then(|| pass.take(rows * width));
    let out_inner = match (&joined, &mut gated) {
        (Some(joined), Some(y)) => out(pass, block, rows, joined, ViewMut::new(y, width))?,
        (Some(joined), None) => inner(ctx, rows, View::new(joined, width + MLP_RATIO * width), [&block.out]),
        (None, _) => None,
    };
    Ok(SingleSaved { x: Arc::clone(x), span, modulation, attended, up, projected, out_inner, gated, joined })
}

/// The block up to its last linear.
fn inside<D: Device>(
    pass: Pass<'_, D>,
    block: &SingleBlock<D>,
    span: Span,
    x: &D::Buffer,
) -> Result<(Inside<D>, Projected<D>)> {
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
        pass.rows_of(&span, &n.values),
        &mut [Output(&block.q, ViewMut::new(&mut q, width)), Output(&block.up, ViewMut::new(&mut up, mlp))],
    )?;
    let moments = n.moments;
    let read_again = [&block.q, &block.k, &block.v, &block.up].iter().any(|l| pass.keeps_input_of(l));
    let n = Some(n.values).filter(|_| read_again);

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
    let heads = Some((q_heads, k_heads)).filter(|_| pass.keep == Keep::All);
    let fresh = Fresh { n, heads };
    let projected = Projected { moments, q, k, v, key_value_inner, query_up_inner, fresh };
    Ok((Inside { modulation, attended, up }, projected))
}

/// The last linear into `y [K, D]`; its `x A^T`.
fn out<D: Device>(
    pass: Pass<'_, D>,
    block: &SingleBlock<D>,
    rows: usize,
    joined: &D::Buffer,
    y: ViewMut<'_, D>,
) -> Result<Option<D::Buffer>> {
    let joined = View::new(joined, (1 + MLP_RATIO) * pass.width);
    linears(pass.ctx, rows, joined, &mut [Output(&block.out, y)])
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
    let both = width + mlp;
    let SingleSaved { x, span: kept, modulation, attended, up, projected, out_inner, gated, joined: known } =
        saved;
    let Projected { moments, q, k, v, key_value_inner, query_up_inner, fresh: Fresh { n, heads } } =
        projected;
    debug_assert_eq!(sequence.span_rows(kept).start, rows.start, "rows were kept from another place");
    let adapts = |linears: &[&Linear<D>]| linears.iter().any(|l| ctx.adapts(l));
    let by_norm = below || ctx.adapts(&block.modulation);
    let inside = by_norm || adapts(&[&block.q, &block.k, &block.v, &block.up]);

    let mut sums = ModulationSums::new(pass, &block.modulation);
    let dy = gated_add_backward(
        pass,
        span.clone(),
        pass.rows_of(&span, dx),
        &modulation,
        GATE,
        gated.as_ref(),
        sums.as_mut(),
    )?;
    drop(gated);
    let joined = || known.unwrap_or_else(|| joined(pass, span.clone(), &attended, &up));
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
    let mut d_up = up;
    ctx.queue.gelu_backward((k_rows, mlp), d_joined_view.skip(width), ViewMut::new(&mut d_up, mlp));

    let heads = match heads {
        Some((q_heads, k_heads)) => Heads { q: q_heads, k: k_heads, v },
        None => {
            let mut heads = Heads::with_values(pass, v);
            let (weight_q, weight_k) = (Some(&block.norm_q), Some(&block.norm_k));
            let projections = [
                Projection { span: span.clone(), rows: &q, weight: weight_q, heads: &mut heads.q },
                Projection { span: ALL, rows: &k, weight: weight_k, heads: &mut heads.k },
            ];
            split_heads(pass, projections);
            heads
        }
    };
    let mut d_attended = pass.take(m * width);
    sequence.copy_to_joint(ctx, span.clone(), width, d_joined_view, &mut d_attended);
    drop(d_joined);
    let d_heads = attend_backward(pass, span.clone(), &heads, &attended, &d_attended);
    drop((heads, d_attended));
    let mut dq = pass.take(k_rows * width);
    let mut dk = pass.take(m * width);
    let mut dv = pass.take(m * width);
    let (of_q, of_k) = ((&q, &block.norm_q), (&k, &block.norm_k));
    let projections = [
        ProjectionGrad { span: span.clone(), d_heads: &d_heads.q, x: Some(of_q), d_rows: &mut dq },
        ProjectionGrad { span: ALL, d_heads: &d_heads.k, x: Some(of_k), d_rows: &mut dk },
        ProjectionGrad { span: ALL, d_heads: &d_heads.v, x: None, d_rows: &mut dv },
    ];
    split_heads_backward(pass, projections);
    drop(d_heads);

    let adapted = adapts(&[&block.q, &block.k, &block.v, &block.up]);
    let x = View::new(&*x, width);
    let normed = || n.unwrap_or_else(|| normed(pass, ALL, x, &modulation, SHIFT_SCALE).values);
    let n = adapted.then(normed);
    let mut dn = by_norm.then(|| pass.take(m * width));
    linears_backward(
        ctx,
        m,
        n.as_ref().map(|n| View::new(n, width)),
        key_value_inner.as_ref(),
        &[(&block.k, View::new(&dk, width)), (&block.v, View::new(&dv, width))],
        dn.as_mut().map(|d| InputGrad { values: ViewMut::new(d, width), accumulate: false }),
        grads,
    )?;
    linears_backward(
        ctx,
        k_rows,
        n.as_ref().map(|n| pass.rows_of(&span, n)),
        query_up_inner.as_ref(),
        &[(&block.q, View::new(&dq, width)), (&block.up, View::new(&d_up, mlp))],
        dn.as_mut().map(|d| InputGrad { values: pass.rows_of_mut(&span, d), accumulate: true }),
        grads,
    )?;
    let Some(dn) = dn else { return Ok(()) };
    normed_backward(
        pass,
        ALL,
        span,
        x,
        &moments,
        &modulation,
        SHIFT_SCALE,
        View::new(&dn, width),
        ViewMut::new(dx, width),
        sums.as_mut(),
    );
    match sums {
        Some(sums) => modulation.backward(pass, &block.modulation, &sums, grads),
        None => Ok(()),
    }
}
