//! The forward of a block with two streams, and what its backward needs of it.
//!
//! `N` batch, `S` tokens, `D` width, `F = 4 D`, `M = N S` rows of both streams, `R` rows of one.

use std::sync::Arc;

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
    layers::{Output, inner, linears},
    models::checkpointing::Keep,
};

pub(super) const ATTENTION: (usize, usize) = (0, 1);
pub(super) const ATTENTION_GATE: usize = 2;
pub(super) const MLP: (usize, usize) = (3, 4);
pub(super) const MLP_GATE: usize = 5;

/// What the backward of a block needs.
pub struct DoubleSaved<D: Device> {
    /// Input and, after the attention, the middle: `[M, D]`.
    pub(super) x: Arc<D::Buffer>,
    pub(super) middle: D::Buffer,
    /// Values, `[N, H, S, D / H]`.
    pub(super) v: D::Buffer,
    pub(super) attended: Attended<D>,
    /// Text, then image.
    pub(super) streams: [StreamSaved<D>; 2],
    /// Queries and keys, `[N, H, S, D / H]`; the backward makes them where they were not kept.
    pub(super) heads: Option<(D::Buffer, D::Buffer)>,
}

/// What the backward of one stream needs; `R` are its rows.
pub(super) struct StreamSaved<D: Device> {
    pub(super) modulation: Modulation<D>,
    pub(super) attention: AttentionSaved<D>,
    pub(super) mlp: MlpSaved<D>,
}

/// Of the half with the attention. The backward makes rows that it needs where they were not kept.
pub(super) struct AttentionSaved<D: Device> {
    pub(super) moments: RowMoments<D>,
    /// Queries and keys before their norm, `[R, D]`.
    pub(super) q: D::Buffer,
    pub(super) k: D::Buffer,
    /// `x A^T` of the adapted linears.
    pub(super) projection_inner: Option<D::Buffer>,
    pub(super) out_inner: Option<D::Buffer>,
    /// Result before the gate, `[R, D]`, where the gate is adapted.
    pub(super) gated: Option<D::Buffer>,
    /// Normed input, `[R, D]`.
    pub(super) n: Option<D::Buffer>,
    /// The attention's result, `[R, D]`.
    pub(super) attended: Option<D::Buffer>,
}

/// Of the half with the MLP, likewise.
pub(super) struct MlpSaved<D: Device> {
    pub(super) moments: RowMoments<D>,
    /// Before the GELU, `[R, F]`: the backward makes its cotangent of it.
    pub(super) up: D::Buffer,
    /// `x A^T` of the adapted linears.
    pub(super) up_inner: Option<D::Buffer>,
    pub(super) down_inner: Option<D::Buffer>,
    /// Result before the gate, `[R, D]`, where the gate is adapted.
    pub(super) gated: Option<D::Buffer>,
    /// Normed middle, `[R, D]`.
    pub(super) n: Option<D::Buffer>,
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
    /// Normed input, where it is kept.
    n: Option<D::Buffer>,
}

/// Run the block on `x [M, D]`: the result, and what its backward needs. The result goes into new memory, so that nothing is copied to keep
/// what the block has read.
pub fn forward<D: Device>(
    pass: Pass<'_, D>,
    block: &DoubleBlock<D>,
    x: &Arc<D::Buffer>,
) -> Result<(D::Buffer, Option<DoubleSaved<D>>)> {
    let (y, saved) = run(pass, block, x, true)?;
    let y = y.ok_or_else(|| Error::Internal("a block that ran gave no result".into()))?;
    Ok((y, saved))
}

/// What the backward of [`forward`] needs, from the block's input: the result itself is not computed again.
pub fn again<D: Device>(
    pass: Pass<'_, D>,
    block: &DoubleBlock<D>,
    x: &Arc<D::Buffer>,
) -> Result<DoubleSaved<D>> {
    let (_, saved) = run(Pass { keep: Keep::All, ..pass }, block, x, false)?;
    saved.ok_or_else(|| Error::Internal("a block that ran for its backward kept nothing".into()))
}

/// The block, with its result or without.
#[expect(clippy::type_complexity, reason = "the result, and what is kept of it")]
fn run<D: Device>(
    pass: Pass<'_, D>,
    block: &DoubleBlock<D>,
    x: &Arc<D::Buffer>,
    with_result: bool,
) -> Result<(Option<D::Buffer>, Option<DoubleSaved<D>>)> {
    let streams = [(&block.text, TEXT), (&block.image, IMAGE)];
    let half = |i: usize| {
        let (stream, span): &(&Stream<D>, Span) = &streams[i];
        Half { pass, stream, span: span.clone() }
    };
    let mut heads = Heads::take(pass);
    let text = half(0).project(x, &mut heads)?;
    let image = half(1).project(x, &mut heads)?;
    let attended = attend(pass, ALL, &heads);
    let Heads { q, k, v } = heads;
    let kept = pass.keep.is_some().then_some((v, Some((q, k)).filter(|_| pass.keep == Keep::All)));

    let len = pass.sequence.rows() * pass.width;
    let mut middle = pass.take(len);
    let (text, text_attention) = half(0).add_attention(x, text, &attended, &mut middle)?;
    let (image, image_attention) = half(1).add_attention(x, image, &attended, &mut middle)?;
    let attended = pass.keep.is_some().then_some(attended);
    let mut y = with_result.then(|| pass.take(len));
    let text_mlp = half(0).add_mlp(&middle, &text, y.as_mut())?;
    let image_mlp = half(1).add_mlp(&middle, &image, y.as_mut())?;

    let stream = |modulation, attention: Option<_>, mlp: Option<_>| {
        let (attention, mlp) = attention.zip(mlp)?;
        Some(StreamSaved { modulation, attention, mlp })
    };
    let streams = stream(text, text_attention, text_mlp).zip(stream(image, image_attention, image_mlp));
    let saved = streams.zip(kept.zip(attended)).map(|((text, image), ((v, heads), attended))| {
        let x = Arc::clone(x);
        DoubleSaved { x, middle, v, attended, streams: [text, image], heads }
    });
    Ok((y, saved))
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

/// One stream of a forward.
struct Half<'a, D: Device> {
    pass: Pass<'a, D>,
    stream: &'a Stream<D>,
    span: Span,
}

impl<D: Device> Half<'_, D> {
    fn rows(&self) -> usize {
        self.pass.sequence.span_rows(self.span.clone()).len()
    }

    /// Norm, projections, and their place among the heads.
    fn project(&self, x: &D::Buffer, heads: &mut Heads<D>) -> Result<Projected<D>> {
        let Self { pass, stream, span } = self;
        let Pass { ctx, width, .. } = *pass;
        let rows = self.rows();
        let modulation = Modulation::new(*pass, &stream.modulation)?;
        let n = normed(*pass, span.clone(), pass.rows_of(span, x), &modulation, ATTENTION);
        let take = || pass.take(rows * width);
        let (mut q, mut k, mut v) = (take(), take(), take());
        let inner = linears(
            ctx,
            rows,
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
        let read_again = [&stream.q, &stream.k, &stream.v].iter().any(|linear| pass.keeps_input_of(linear));
        let (moments, n) = (n.moments, Some(n.values).filter(|_| read_again));
        split_heads(*pass, projections);
        Ok(Projected { modulation, moments, q, k, inner, n })
    }

    /// The stream's rows of the middle.
    fn add_attention(
        &self,
        x: &D::Buffer,
        projected: Projected<D>,
        attended: &Attended<D>,
        middle: &mut D::Buffer,
    ) -> Result<(Modulation<D>, Option<AttentionSaved<D>>)> {
        let Self { pass, stream, span } = self;
        let Pass { ctx, width, keep, .. } = *pass;
        let (rows, len) = (self.rows(), self.rows() * width);
        let Projected { modulation, moments, q, k, inner, n } = projected;
        let values = attended_rows(*pass, span.clone(), attended);
        let mut to = pass.rows_of_mut(span, middle);
        let output = Output(&stream.out, to.again());
        let out_inner = linears(ctx, rows, View::new(&values, width), &mut [output])?;
        let gated = (keep.is_some() && ctx.adapts(&stream.modulation))
            .then(|| ctx.queue.copy(to.read(), len, Kind::Activation));
        gated_add(*pass, span.clone(), pass.rows_of(span, x), &modulation, ATTENTION_GATE, to);
        let attended = Some(values).filter(|_| pass.keeps_input_of(&stream.out));
        let saved = AttentionSaved { moments, q, k, projection_inner: inner, out_inner, gated, n, attended };
        Ok((modulation, keep.is_some().then_some(saved)))
    }

    /// The stream's rows of the result, unless it is left out.
    fn add_mlp(
        &self,
        middle: &D::Buffer,
        modulation: &Modulation<D>,
        y: Option<&mut D::Buffer>,
    ) -> Result<Option<MlpSaved<D>>> {
        let Self { pass, stream, span } = self;
        let Pass { ctx, width, keep, .. } = *pass;
        let (rows, mlp) = (self.rows(), MLP_RATIO * width);
        let middle = pass.rows_of(span, middle);
        let n = normed(*pass, span.clone(), middle, modulation, MLP);
        let mut up = pass.take(rows * mlp);
        let output = Output(&stream.up, ViewMut::new(&mut up, mlp));
        let up_inner = linears(ctx, rows, View::new(&n.values, width), &mut [output])?;
        let moments = n.moments;
        let n = Some(n.values).filter(|_| pass.keeps_input_of(&stream.up));

        let by_gate = ctx.adapts(&stream.modulation);
        let (mut down_inner, mut gated, mut active) = (None, None, None);
        if let Some(y) = y {
            let values = activated(*pass, rows, &up);
            let mut to = pass.rows_of_mut(span, y);
            let output = Output(&stream.down, to.again());
            down_inner = linears(ctx, rows, View::new(&values, mlp), &mut [output])?;
            active = Some(values).filter(|_| pass.keeps_input_of(&stream.down));
            gated = (keep.is_some() && by_gate)
                .then(|| ctx.queue.copy(to.read(), rows * width, Kind::Activation));
            gated_add(*pass, span.clone(), middle, modulation, MLP_GATE, to);
        } else if by_gate || ctx.adapts(&stream.down) {
            let values = activated(*pass, rows, &up);
            let from = View::new(&values, mlp);
            gated = by_gate.then(|| pass.take(rows * width));
            down_inner = match &mut gated {
                Some(result) => {
                    linears(ctx, rows, from, &mut [Output(&stream.down, ViewMut::new(result, width))])?
                }
                None => inner(ctx, rows, from, [&stream.down]),
            };
            active = Some(values).filter(|_| pass.keeps_input_of(&stream.down));
        }
        Ok(keep.is_some().then_some(MlpSaved { moments, up, up_inner, down_inner, gated, n, active }))
    }
}
