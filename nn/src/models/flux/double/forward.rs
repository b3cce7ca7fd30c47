//! The forward of a block with two streams, and what its backward needs of it.
//!
//! `N` batch, `S` tokens, `D` width, `F = 4 D`, `M = N S` rows of both streams, `R` rows of one.

use super::super::{
    block::{
        Attended, Heads, Modulation, Pass, Projection, RowMoments, attend, gated_add, normed, split_heads,
    },
    config::MLP_RATIO,
    sequence::{ALL, IMAGE, Span, TEXT},
    weights::{DoubleBlock, Stream},
};
use crate::{
    device::{Activation, Device, Kind, Queue, View, ViewMut},
    error::{Error, Result},
    layers::{Linear, Output, inner, linears},
};

pub(super) const ATTENTION: (usize, usize) = (0, 1);
pub(super) const ATTENTION_GATE: usize = 2;
pub(super) const MLP: (usize, usize) = (3, 4);
pub(super) const MLP_GATE: usize = 5;

/// What the backward of a block needs.
pub struct DoubleSaved<D: Device> {
    /// Values, `[N, H, S, D / H]`.
    pub(super) v: D::Buffer,
    pub(super) attended: Attended<D>,
    /// Text, then image.
    pub(super) streams: [StreamSaved<D>; 2],
    /// Queries and keys, `[N, H, S, D / H]`, where the forward has just run again; else the backward makes them.
    pub(super) heads: Option<(D::Buffer, D::Buffer)>,
}

/// What the backward of one stream needs; `R` are its rows.
pub(super) struct StreamSaved<D: Device> {
    pub(super) modulation: Modulation<D>,
    /// Input and, after the attention, the middle: `[R, D]`.
    pub(super) x: D::Buffer,
    pub(super) middle: D::Buffer,
    pub(super) moments: RowMoments<D>,
    pub(super) middle_moments: RowMoments<D>,
    /// Queries and keys before their norm, `[R, D]`.
    pub(super) q: D::Buffer,
    pub(super) k: D::Buffer,
    /// The MLP before its GELU, `[R, F]`, of which the backward makes its cotangent.
    pub(super) up: D::Buffer,
    /// `x A^T` of the adapted linears.
    pub(super) attention_inner: Option<D::Buffer>,
    pub(super) out_inner: Option<D::Buffer>,
    pub(super) up_inner: Option<D::Buffer>,
    pub(super) down_inner: Option<D::Buffer>,
    /// Results before the gates, `[R, D]`, where the gates are adapted.
    pub(super) attention_gated: Option<D::Buffer>,
    pub(super) mlp_gated: Option<D::Buffer>,
    pub(super) fresh: Fresh<D>,
}

/// What a backward makes from what was kept, unless the forward has just run again for it.
pub(super) struct Fresh<D: Device> {
    /// Inputs of projections and MLP, normed: `[R, D]`.
    pub(super) n: Option<D::Buffer>,
    pub(super) middle_n: Option<D::Buffer>,
    /// The attention's result, `[R, D]`.
    pub(super) attended: Option<D::Buffer>,
    /// `gelu(up)`, `[R, F]`.
    pub(super) active: Option<D::Buffer>,
}

/// A stream between its projections and the attention's result.
struct Projected<D: Device> {
    modulation: Modulation<D>,
    moments: RowMoments<D>,
    q: D::Buffer,
    k: D::Buffer,
    inner: Option<D::Buffer>,
    /// Normed input, where a backward comes next and reads it.
    n: Option<D::Buffer>,
}

/// Run the block on `x [M, D]`, in place.
pub fn forward<D: Device>(
    pass: Pass<'_, D>,
    block: &DoubleBlock<D>,
    x: &mut D::Buffer,
) -> Result<Option<DoubleSaved<D>>> {
    run(pass, block, x, false)
}

/// What the backward of [`forward`] needs, from the block's input: the result itself is not computed again.
pub fn again<D: Device>(
    pass: Pass<'_, D>,
    block: &DoubleBlock<D>,
    mut x: D::Buffer,
) -> Result<DoubleSaved<D>> {
    let saved = run(Pass { saving: true, ..pass }, block, &mut x, true)?;
    saved.ok_or_else(|| Error::Internal("a block that ran for its backward kept nothing".into()))
}

/// The block; where its backward comes next, what that reads once more is kept, and the result is left out.
fn run<D: Device>(
    pass: Pass<'_, D>,
    block: &DoubleBlock<D>,
    x: &mut D::Buffer,
    backward_next: bool,
) -> Result<Option<DoubleSaved<D>>> {
    let mut heads = Heads::take(pass);
    let text = project(pass, &block.text, TEXT, x, &mut heads, backward_next)?;
    let image = project(pass, &block.image, IMAGE, x, &mut heads, backward_next)?;
    let attended = attend(pass, ALL, &heads);
    let Heads { q, k, v } = heads;
    let heads = Some((q, k)).filter(|_| backward_next);
    let text = finish(pass, &block.text, TEXT, x, text, &attended, backward_next)?;
    let image = finish(pass, &block.image, IMAGE, x, image, &attended, backward_next)?;
    Ok(text.zip(image).map(|(text, image)| DoubleSaved { v, attended, streams: [text, image], heads }))
}

/// Norm, projections, and their place among the heads.
fn project<D: Device>(
    pass: Pass<'_, D>,
    stream: &Stream<D>,
    span: Span,
    x: &D::Buffer,
    heads: &mut Heads<D>,
    backward_next: bool,
) -> Result<Projected<D>> {
    let Pass { ctx, sequence, width, .. } = pass;
    let rows = sequence.span_rows(span.clone());
    let modulation = Modulation::new(pass, &stream.modulation)?;
    let x = View::new(x, width).skip(rows.start * width);
    let n = normed(pass, span.clone(), x, &modulation, ATTENTION);
    let take = || pass.take(rows.len() * width);
    let (mut q, mut k, mut v) = (take(), take(), take());
    let inner = linears(
        ctx,
        rows.len(),
        View::new(&n.values, width),
        &mut [
            Output(&stream.q, ViewMut::new(&mut q, width)),
            Output(&stream.k, ViewMut::new(&mut k, width)),
            Output(&stream.v, ViewMut::new(&mut v, width)),
        ],
    )?;
    let projections = [
        Projection { span: span.clone(), rows: &q, weight: Some(&stream.norm_q), heads: &mut heads.q },
        Projection { span: span.clone(), rows: &k, weight: Some(&stream.norm_k), heads: &mut heads.k },
        Projection { span: span.clone(), rows: &v, weight: None, heads: &mut heads.v },
    ];
    let read_again = backward_next && [&stream.q, &stream.k, &stream.v].iter().any(|l| ctx.adapts(l));
    let (moments, n) = (n.moments, Some(n.values).filter(|_| read_again));
    split_heads(pass, projections);
    Ok(Projected { modulation, moments, q, k, inner, n })
}

/// The attention's result of one stream, `[R, D]`.
pub(super) fn attended_rows<D: Device>(pass: Pass<'_, D>, span: Span, attended: &Attended<D>) -> D::Buffer {
    let rows = pass.sequence.span_rows(span.clone()).len();
    let mut values = pass.take(rows * pass.width);
    let to = ViewMut::new(&mut values, pass.width);
    pass.sequence.copy_from_joint(pass.ctx, span, pass.width, &attended.values, to);
    values
}

/// `gelu(up)` of these rows, `[R, F]`.
pub(super) fn activated<D: Device>(pass: Pass<'_, D>, rows: usize, up: &D::Buffer) -> D::Buffer {
    let width = MLP_RATIO * pass.width;
    let mut values = pass.take(rows * width);
    let to = ViewMut::new(&mut values, width);
    pass.ctx.queue.activate(Activation::Gelu, (rows, width), View::new(up, width), to);
    values
}

/// What follows the attention in one stream.
fn finish<D: Device>(
    pass: Pass<'_, D>,
    stream: &Stream<D>,
    span: Span,
    x: &mut D::Buffer,
    projected: Projected<D>,
    attended: &Attended<D>,
    backward_next: bool,
) -> Result<Option<StreamSaved<D>>> {
    let Pass { ctx, sequence, width, saving, .. } = pass;
    let range = sequence.span_rows(span.clone());
    let (rows, mlp) = (range.len(), MLP_RATIO * width);
    let start = range.start * width;
    let mut x = ViewMut::new(x, width).skip(start);
    let Projected { modulation, moments, q, k, inner: attention_inner, n } = projected;
    let read_again = |linear: &Linear<D>| backward_next && ctx.adapts(linear);

    let keep = |x: &ViewMut<'_, D>| saving.then(|| ctx.queue.copy(x.read(), rows * width, Kind::Activation));
    let input = keep(&x);
    let attended = attended_rows(pass, span.clone(), attended);
    let mut y = pass.take(rows * width);
    let output = Output(&stream.out, ViewMut::new(&mut y, width));
    let out_inner = linears(ctx, rows, View::new(&attended, width), &mut [output])?;
    let attended = Some(attended).filter(|_| read_again(&stream.out));
    gated_add(pass, span.clone(), x.again(), &modulation, ATTENTION_GATE, &y);
    let adapted = ctx.adapts(&stream.modulation);
    let attention_gated = adapted.then(|| std::mem::replace(&mut y, pass.take(rows * width)));

    let middle = keep(&x);
    let middle_n = normed(pass, span.clone(), x.read(), &modulation, MLP);
    let mut up = pass.take(rows * mlp);
    let output = Output(&stream.up, ViewMut::new(&mut up, mlp));
    let up_inner = linears(ctx, rows, View::new(&middle_n.values, width), &mut [output])?;
    let mut down_inner = None;
    let mut active = None;
    if !backward_next || adapted {
        let values = activated(pass, rows, &up);
        let output = Output(&stream.down, ViewMut::new(&mut y, width));
        down_inner = linears(ctx, rows, View::new(&values, mlp), &mut [output])?;
        if !backward_next {
            gated_add(pass, span, x, &modulation, MLP_GATE, &y);
        }
        active = Some(values).filter(|_| read_again(&stream.down));
    } else if ctx.adapts(&stream.down) {
        let values = activated(pass, rows, &up);
        down_inner = inner(ctx, rows, View::new(&values, mlp), [&stream.down]);
        active = Some(values);
    }

    let middle_moments = middle_n.moments;
    let middle_n = Some(middle_n.values).filter(|_| read_again(&stream.up));
    Ok(input.zip(middle).map(|(x, middle)| StreamSaved {
        x,
        middle,
        moments,
        middle_moments,
        q,
        k,
        up,
        attention_inner,
        out_inner,
        up_inner,
        down_inner,
        attention_gated,
        mlp_gated: adapted.then_some(y),
        modulation,
        fresh: Fresh { n, middle_n, attended, active },
    }))
}
