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
        Attended, Heads, Modulation, ModulationSums, Pass, Projection, ProjectionGrad, RowMoments, attend,
        attend_backward, gated_add, gated_add_backward, normed, normed_backward, split_heads,
        split_heads_backward,
    },
    config::MLP_RATIO,
    sequence::{ALL, IMAGE, Span, TEXT},
    weights::{DoubleBlock, Stream},
};
use crate::{
    device::{Activation, Device, Kind, Queue, View, ViewMut},
    error::Result,
    layers::{InputGrad, Linear, Output, linears, linears_backward},
};

const ATTENTION: (usize, usize) = (0, 1);
const ATTENTION_GATE: usize = 2;
const MLP: (usize, usize) = (3, 4);
const MLP_GATE: usize = 5;

/// What the backward of a block needs.
pub(super) struct DoubleSaved<D: Device> {
    /// Values, `[N, H, S, D / H]`.
    v: D::Buffer,
    attended: Attended<D>,
    /// Text, then image.
    streams: [StreamSaved<D>; 2],
}

/// What the backward of one stream needs; `R` are its rows.
struct StreamSaved<D: Device> {
    modulation: Modulation<D>,
    /// Input and, after the attention, the middle: `[R, D]`.
    x: D::Buffer,
    middle: D::Buffer,
    moments: RowMoments<D>,
    middle_moments: RowMoments<D>,
    /// Queries and keys before their norm, `[R, D]`.
    q: D::Buffer,
    k: D::Buffer,
    /// The MLP before its GELU, `[R, F]`.
    up: D::Buffer,
    /// `x A^T` of the adapted linears.
    attention_inner: Option<D::Buffer>,
    out_inner: Option<D::Buffer>,
    up_inner: Option<D::Buffer>,
    down_inner: Option<D::Buffer>,
    /// Results before the gates, `[R, D]`, where the gates are adapted.
    attention_gated: Option<D::Buffer>,
    mlp_gated: Option<D::Buffer>,
}

/// A stream between its projections and the attention's result.
struct Projected<D: Device> {
    modulation: Modulation<D>,
    moments: RowMoments<D>,
    q: D::Buffer,
    k: D::Buffer,
    inner: Option<D::Buffer>,
}

/// Run the block on `x [M, D]`, in place.
pub(super) fn forward<D: Device>(
    pass: Pass<'_, D>,
    block: &DoubleBlock<D>,
    x: &mut D::Buffer,
) -> Result<Option<DoubleSaved<D>>> {
    let mut heads = Heads::take(pass);
    let text = project(pass, &block.text, TEXT, x, &mut heads)?;
    let image = project(pass, &block.image, IMAGE, x, &mut heads)?;
    let attended = attend(pass, ALL, &heads);
    let Heads { q, k, v } = heads;
    drop((q, k));
    let text = finish(pass, &block.text, TEXT, x, text, &attended)?;
    let image = finish(pass, &block.image, IMAGE, x, image, &attended)?;
    Ok(text.zip(image).map(|(text, image)| DoubleSaved { v, attended, streams: [text, image] }))
}

/// Norm, projections, and their place among the heads.
fn project<D: Device>(
    pass: Pass<'_, D>,
    stream: &Stream<D>,
    span: Span,
    x: &D::Buffer,
    heads: &mut Heads<D>,
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
    split_heads(pass, projections);
    Ok(Projected { modulation, moments: n.moments, q, k, inner })
}

/// The attention's result of one stream, `[R, D]`.
fn attended_rows<D: Device>(pass: Pass<'_, D>, span: Span, attended: &Attended<D>) -> D::Buffer {
    let rows = pass.sequence.span_rows(span.clone()).len();
    let mut values = pass.take(rows * pass.width);
    let to = ViewMut::new(&mut values, pass.width);
    pass.sequence.copy_from_joint(pass.ctx, span, pass.width, &attended.values, to);
    values
}

/// `gelu(up)` of these rows, `[R, F]`.
fn activated<D: Device>(pass: Pass<'_, D>, rows: usize, up: &D::Buffer) -> D::Buffer {
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
) -> Result<Option<StreamSaved<D>>> {
    let Pass { ctx, sequence, width, saving, .. } = pass;
    let range = sequence.span_rows(span.clone());
    let (rows, mlp) = (range.len(), MLP_RATIO * width);
    let start = range.start * width;
    let mut x = ViewMut::new(x, width).skip(start);
    let Projected { modulation, moments, q, k, inner } = projected;

    let keep = |x: &ViewMut<'_, D>| saving.then(|| ctx.queue.copy(x.read(), rows * width, Kind::Activation));
    let input = keep(&x);
    let attended = attended_rows(pass, span.clone(), attended);
    let mut y = pass.take(rows * width);
    let output = Output(&stream.out, ViewMut::new(&mut y, width));
    let out_inner = linears(ctx, rows, View::new(&attended, width), &mut [output])?;
    drop(attended);
    gated_add(pass, span.clone(), x.again(), &modulation, ATTENTION_GATE, &y);
    let adapted = ctx.adapts(&stream.modulation);
    let attention_gated = adapted.then(|| std::mem::replace(&mut y, pass.take(rows * width)));

    let middle = keep(&x);
    let n = normed(pass, span.clone(), x.read(), &modulation, MLP);
    let mut up = pass.take(rows * mlp);
    let output = Output(&stream.up, ViewMut::new(&mut up, mlp));
    let up_inner = linears(ctx, rows, View::new(&n.values, width), &mut [output])?;
    let active = activated(pass, rows, &up);
    let output = Output(&stream.down, ViewMut::new(&mut y, width));
    let down_inner = linears(ctx, rows, View::new(&active, mlp), &mut [output])?;
    gated_add(pass, span, x, &modulation, MLP_GATE, &y);

    Ok(input.zip(middle).map(|(x, middle)| StreamSaved {
        x,
        middle,
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
    }))
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

fn needs<D: Device>(pass: Pass<'_, D>, block: &DoubleBlock<D>, stream: &Stream<D>, below: bool) -> Needs {
    let adapts = |l: &Linear<D>| pass.ctx.adapts(l);
    let operands = below
        || [&block.text, &block.image]
            .iter()
            .any(|s| adapts(&s.modulation) || adapts(&s.q) || adapts(&s.k) || adapts(&s.v));
    Needs { operands, middle: operands || adapts(&stream.out), norm: below || adapts(&stream.modulation) }
}

/// Backward of [`forward`]: `dx [M, D]`, the derivative by its result, becomes with `below` that by its input.
pub(super) fn backward<D: Device>(
    pass: Pass<'_, D>,
    block: &DoubleBlock<D>,
    saved: DoubleSaved<D>,
    below: bool,
    dx: &mut D::Buffer,
    grads: &mut D::Buffer,
) -> Result<()> {
    let Pass { sequence, width, .. } = pass;
    let DoubleSaved { v, attended, streams } = saved;
    let parts = [(&block.text, TEXT), (&block.image, IMAGE)];
    let mut d_attended = pass.take(sequence.rows() * width);
    let mut all_sums = [None, None];
    for (((stream, span), saved), sums) in parts.iter().zip(&streams).zip(&mut all_sums) {
        let needs = needs(pass, block, stream, below);
        *sums = ModulationSums::new(pass, &stream.modulation);
        let part = StreamPass { pass, stream, span: span.clone(), needs };
        part.mlp_backward(saved, dx, sums.as_mut(), grads)?;
        if needs.middle {
            part.out_backward(saved, &attended, dx, &mut d_attended, sums.as_mut(), grads)?;
        }
    }
    if !needs(pass, block, &block.text, below).operands {
        return Ok(());
    }

    let mut heads = Heads::with_values(pass, v);
    for ((stream, span), saved) in parts.iter().zip(&streams) {
        let projections = [
            Projection {
                span: span.clone(),
                rows: &saved.q,
                weight: Some(&stream.norm_q),
                heads: &mut heads.q,
            },
            Projection {
                span: span.clone(),
                rows: &saved.k,
                weight: Some(&stream.norm_k),
                heads: &mut heads.k,
            },
        ];
        split_heads(pass, projections);
    }
    let d_heads = attend_backward(pass, ALL, &heads, &attended, &d_attended);
    drop((heads, d_attended, attended));
    for (((stream, span), saved), sums) in parts.into_iter().zip(streams).zip(all_sums) {
        let needs = needs(pass, block, stream, below);
        StreamPass { pass, stream, span, needs }.project_backward(saved, &d_heads, dx, sums, grads)?;
    }
    Ok(())
}

/// One stream of a backward.
struct StreamPass<'a, D: Device> {
    pass: Pass<'a, D>,
    stream: &'a Stream<D>,
    span: Span,
    needs: Needs,
}

impl<D: Device> StreamPass<'_, D> {
    fn rows(&self) -> usize {
        self.pass.sequence.span_rows(self.span.clone()).len()
    }

    /// The stream's part of all rows.
    fn part<'a>(&self, dx: &'a mut D::Buffer) -> ViewMut<'a, D> {
        let width = self.pass.width;
        ViewMut::new(dx, width).skip(self.pass.sequence.span_rows(self.span.clone()).start * width)
    }

    /// From the stream's result to its middle.
    fn mlp_backward(
        &self,
        saved: &StreamSaved<D>,
        dx: &mut D::Buffer,
        mut sums: Option<&mut ModulationSums<D>>,
        grads: &mut D::Buffer,
    ) -> Result<()> {
        let Self { pass, stream, needs, .. } = self;
        let Pass { ctx, width, .. } = *pass;
        let (rows, mlp) = (self.rows(), MLP_RATIO * width);
        let by_up = needs.middle || ctx.adapts(&stream.up);
        if !by_up && !ctx.adapts(&stream.down) {
            return Ok(());
        }
        let dx = self.part(dx);
        let dy = gated_add_backward(
            *pass,
            self.span.clone(),
            dx.read(),
            &saved.modulation,
            MLP_GATE,
            saved.mlp_gated.as_ref(),
            sums.as_deref_mut(),
        )?;
        let active = ctx.adapts(&stream.down).then(|| activated(*pass, rows, &saved.up));
        let mut d_active = by_up.then(|| pass.take(rows * mlp));
        linears_backward(
            ctx,
            rows,
            active.as_ref().map(|x| View::new(x, mlp)),
            saved.down_inner.as_ref(),
            &[(&stream.down, View::new(&dy, width))],
            d_active.as_mut().map(|d| InputGrad { values: ViewMut::new(d, mlp), accumulate: false }),
            grads,
        )?;
        drop(active);
        let Some(d_active) = d_active else { return Ok(()) };
        let mut d_up = pass.take(rows * mlp);
        let (up, to) = (View::new(&saved.up, mlp), ViewMut::new(&mut d_up, mlp));
        ctx.queue.gelu_backward((rows, mlp), up, View::new(&d_active, mlp), to);
        drop(d_active);
        let middle = View::new(&saved.middle, width);
        let n = ctx
            .adapts(&stream.up)
            .then(|| normed(*pass, self.span.clone(), middle, &saved.modulation, MLP).values);
        let mut dn = needs.middle.then_some(dy);
        linears_backward(
            ctx,
            rows,
            n.as_ref().map(|n| View::new(n, width)),
            saved.up_inner.as_ref(),
            &[(&stream.up, View::new(&d_up, mlp))],
            dn.as_mut().map(|d| InputGrad { values: ViewMut::new(d, width), accumulate: false }),
            grads,
        )?;
        if let Some(dn) = dn {
            normed_backward(
                *pass,
                self.span.clone(),
                self.span.clone(),
                middle,
                &saved.middle_moments,
                &saved.modulation,
                MLP,
                View::new(&dn, width),
                dx,
                sums,
            );
        }
        Ok(())
    }

    /// From the stream's middle to the attention's result, in the joint order.
    fn out_backward(
        &self,
        saved: &StreamSaved<D>,
        attended: &Attended<D>,
        dx: &mut D::Buffer,
        d_attended: &mut D::Buffer,
        sums: Option<&mut ModulationSums<D>>,
        grads: &mut D::Buffer,
    ) -> Result<()> {
        let Self { pass, stream, needs, .. } = self;
        let Pass { ctx, sequence, width, .. } = *pass;
        let rows = self.rows();
        let dy = gated_add_backward(
            *pass,
            self.span.clone(),
            self.part(dx).read(),
            &saved.modulation,
            ATTENTION_GATE,
            saved.attention_gated.as_ref(),
            sums,
        )?;
        let x = ctx.adapts(&stream.out).then(|| attended_rows(*pass, self.span.clone(), attended));
        let mut d = needs.operands.then(|| pass.take(rows * width));
        linears_backward(
            ctx,
            rows,
            x.as_ref().map(|x| View::new(x, width)),
            saved.out_inner.as_ref(),
            &[(&stream.out, View::new(&dy, width))],
            d.as_mut().map(|d| InputGrad { values: ViewMut::new(d, width), accumulate: false }),
            grads,
        )?;
        if let Some(d) = d {
            sequence.copy_to_joint(ctx, self.span.clone(), width, View::new(&d, width), d_attended);
        }
        Ok(())
    }

    /// From the attention's operands to the stream's input.
    fn project_backward(
        &self,
        saved: StreamSaved<D>,
        d_heads: &Heads<D>,
        dx: &mut D::Buffer,
        mut sums: Option<ModulationSums<D>>,
        grads: &mut D::Buffer,
    ) -> Result<()> {
        let Self { pass, stream, needs, span } = self;
        let Pass { ctx, width, .. } = *pass;
        let rows = self.rows();
        let take = || pass.take(rows * width);
        let (mut dq, mut dk, mut dv) = (take(), take(), take());
        let (q, k) = ((&saved.q, &stream.norm_q), (&saved.k, &stream.norm_k));
        let projections = [
            ProjectionGrad { span: span.clone(), d_heads: &d_heads.q, x: Some(q), d_rows: &mut dq },
            ProjectionGrad { span: span.clone(), d_heads: &d_heads.k, x: Some(k), d_rows: &mut dk },
            ProjectionGrad { span: span.clone(), d_heads: &d_heads.v, x: None, d_rows: &mut dv },
        ];
        split_heads_backward(*pass, projections);
        let adapted = [&stream.q, &stream.k, &stream.v].iter().any(|l| ctx.adapts(l));
        let x = View::new(&saved.x, width);
        let n = adapted.then(|| normed(*pass, span.clone(), x, &saved.modulation, ATTENTION).values);
        let mut dn = needs.norm.then(take);
        linears_backward(
            ctx,
            rows,
            n.as_ref().map(|n| View::new(n, width)),
            saved.attention_inner.as_ref(),
            &[
                (&stream.q, View::new(&dq, width)),
                (&stream.k, View::new(&dk, width)),
                (&stream.v, View::new(&dv, width)),
            ],
            dn.as_mut().map(|d| InputGrad { values: ViewMut::new(d, width), accumulate: false }),
            grads,
        )?;
        let Some(dn) = dn else { return Ok(()) };
        normed_backward(
            *pass,
            span.clone(),
            span.clone(),
            x,
            &saved.moments,
            &saved.modulation,
            ATTENTION,
            View::new(&dn, width),
            self.part(dx),
            sums.as_mut(),
        );
        match sums {
            Some(sums) => saved.modulation.backward(*pass, &stream.modulation, &sums, grads),
            None => Ok(()),
        }
    }
}
