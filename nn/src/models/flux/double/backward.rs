//! The backward of a block with two streams.
//!
//! `N` batch, `S` tokens, `D` width, `F = 4 D`, `M = N S` rows of both streams, `R` rows of one.

use super::{
    super::{
        block::{
            Attended, Heads, Modulation, ModulationSums, Pass, Projection, ProjectionGrad, attend_backward,
            gated_add_backward, normed, normed_backward, split_heads, split_heads_backward,
        },
        config::MLP_RATIO,
        sequence::{ALL, IMAGE, Span, TEXT},
        weights::{DoubleBlock, Stream},
    },
    forward::{
        ATTENTION, ATTENTION_GATE, AttentionSaved, DoubleSaved, MLP, MLP_GATE, MlpSaved, StreamSaved,
        activated, attended_rows,
    },
};
use crate::{
    device::{Device, Queue, View, ViewMut},
    error::Result,
    layers::{InputGrad, Linear, adapter_backward, input_backward, linears_backward},
};

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

/// Backward of [`forward`](super::forward): `dx [M, D]`, the derivative by its result, becomes with `below` that by its input.
pub fn backward<D: Device>(
    pass: Pass<'_, D>,
    block: &DoubleBlock<D>,
    saved: DoubleSaved<D>,
    below: bool,
    dx: &mut D::Buffer,
    grads: &mut D::Buffer,
) -> Result<()> {
    let Pass { sequence, width, .. } = pass;
    let DoubleSaved { x, middle, v, attended, streams, heads } = saved;
    let parts = [(&block.text, TEXT), (&block.image, IMAGE)];
    let part = |i: usize| {
        let (stream, span): &(&Stream<D>, Span) = &parts[i];
        StreamPass { pass, stream, span: span.clone(), needs: needs(pass, block, stream, below) }
    };
    let mut d_attended = None;
    let mut halves = Vec::new();
    for (i, saved) in streams.into_iter().enumerate() {
        let StreamSaved { modulation, mut attention, mlp } = saved;
        let part = part(i);
        let mut sums = ModulationSums::new(pass, &part.stream.modulation);
        part.mlp_backward(mlp, &middle, &modulation, dx, sums.as_mut(), grads)?;
        if part.needs.middle {
            if part.needs.operands {
                d_attended.get_or_insert_with(|| pass.take(sequence.rows() * width));
            }
            let attended = (&attended, d_attended.as_mut());
            part.out_backward(&mut attention, attended, &modulation, dx, sums.as_mut(), grads)?;
        }
        halves.push((attention, modulation, sums));
    }
    drop(middle);
    let Some(d_attended) = d_attended else { return Ok(()) };

    let heads = match heads {
        Some((q, k)) => Heads { q, k, v },
        None => split_again(pass, &parts, halves.iter().map(|(attention, ..)| attention), v),
    };
    let d_heads = attend_backward(pass, ALL, &heads, &attended, &d_attended);
    drop((heads, d_attended, attended));
    for (i, (attention, modulation, sums)) in halves.into_iter().enumerate() {
        part(i).project_backward((attention, modulation), &x, &d_heads, dx, sums, grads)?;
    }
    Ok(())
}

/// Queries and keys by heads, from their rows before the norm.
fn split_again<'s, D: Device>(
    pass: Pass<'_, D>,
    parts: &[(&Stream<D>, Span); 2],
    saved: impl Iterator<Item = &'s AttentionSaved<D>>,
    v: D::Buffer,
) -> Heads<D> {
    let mut heads = Heads::with_values(pass, v);
    for ((stream, span), saved) in parts.iter().zip(saved) {
        let projection =
            |rows, weight, heads| Projection { span: span.clone(), rows, weight: Some(weight), heads };
        let q = projection(&saved.q, &stream.norm_q, &mut heads.q);
        split_heads(pass, [q, projection(&saved.k, &stream.norm_k, &mut heads.k)]);
    }
    heads
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

    /// From the stream's result to its middle.
    fn mlp_backward(
        &self,
        saved: MlpSaved<D>,
        middle: &D::Buffer,
        modulation: &Modulation<D>,
        dx: &mut D::Buffer,
        mut sums: Option<&mut ModulationSums<D>>,
        grads: &mut D::Buffer,
    ) -> Result<()> {
        let Self { pass, stream, needs, .. } = self;
        let MlpSaved { moments, mut up, up_inner, down_inner, gated, n: known_n, active: known_active } =
            saved;
        let Pass { ctx, width, .. } = *pass;
        let (rows, mlp) = (self.rows(), MLP_RATIO * width);
        let by_up = needs.middle || ctx.adapts(&stream.up);
        if !by_up && !ctx.adapts(&stream.down) {
            return Ok(());
        }
        let dx = self.pass.rows_of_mut(&self.span, dx);
        let dy = gated_add_backward(
            *pass,
            self.span.clone(),
            dx.read(),
            modulation,
            MLP_GATE,
            gated.as_ref(),
            sums.as_deref_mut(),
        )?;
        let activated = || known_active.unwrap_or_else(|| activated(*pass, rows, &up));
        let active = ctx.adapts(&stream.down).then(activated);
        let active_rows = active.as_ref().map(|x| View::new(x, mlp));
        let outputs = [(&stream.down, View::new(&dy, width))];
        let inner = adapter_backward(ctx, rows, active_rows, down_inner.as_ref(), &outputs, grads)?;
        drop((active, down_inner));
        if !by_up {
            return Ok(());
        }
        let mut d_active = pass.take(rows * mlp);
        let d = InputGrad { values: ViewMut::new(&mut d_active, mlp), accumulate: false };
        input_backward(ctx, rows, inner, &outputs, d)?;
        ctx.queue.gelu_backward((rows, mlp), View::new(&d_active, mlp), ViewMut::new(&mut up, mlp));
        let d_up = View::new(&up, mlp);
        drop(d_active);
        let middle = self.pass.rows_of(&self.span, middle);
        let normed =
            || known_n.unwrap_or_else(|| normed(*pass, self.span.clone(), middle, modulation, MLP).values);
        let n = ctx.adapts(&stream.up).then(normed);
        let mut dn = needs.middle.then_some(dy);
        linears_backward(
            ctx,
            rows,
            n.as_ref().map(|n| View::new(n, width)),
            up_inner.as_ref(),
            &[(&stream.up, d_up)],
            dn.as_mut().map(|d| InputGrad { values: ViewMut::new(d, width), accumulate: false }),
            grads,
        )?;
        if let Some(dn) = dn {
            normed_backward(
                *pass,
                self.span.clone(),
                self.span.clone(),
                middle,
                &moments,
                modulation,
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
        saved: &mut AttentionSaved<D>,
        (attended, d_attended): (&Attended<D>, Option<&mut D::Buffer>),
        modulation: &Modulation<D>,
        dx: &D::Buffer,
        sums: Option<&mut ModulationSums<D>>,
        grads: &mut D::Buffer,
    ) -> Result<()> {
        let Self { pass, stream, needs, .. } = self;
        let Pass { ctx, sequence, width, .. } = *pass;
        let rows = self.rows();
        let dy = gated_add_backward(
            *pass,
            self.span.clone(),
            self.pass.rows_of(&self.span, dx),
            modulation,
            ATTENTION_GATE,
            saved.gated.take().as_ref(),
            sums,
        )?;
        let known = saved.attended.take();
        let known_rows = || known.unwrap_or_else(|| attended_rows(*pass, self.span.clone(), attended));
        let x = ctx.adapts(&stream.out).then(known_rows);
        let mut d = needs.operands.then(|| pass.take(rows * width));
        linears_backward(
            ctx,
            rows,
            x.as_ref().map(|x| View::new(x, width)),
            saved.out_inner.take().as_ref(),
            &[(&stream.out, View::new(&dy, width))],
            d.as_mut().map(|d| InputGrad { values: ViewMut::new(d, width), accumulate: false }),
            grads,
        )?;
        if let Some((d, d_attended)) = d.zip(d_attended) {
            sequence.copy_to_joint(ctx, self.span.clone(), width, View::new(&d, width), d_attended);
        }
        Ok(())
    }

    /// From the attention's operands to the stream's input.
    fn project_backward(
        &self,
        (saved, modulation): (AttentionSaved<D>, Modulation<D>),
        x: &D::Buffer,
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
        let x = self.pass.rows_of(&self.span, x);
        let normed =
            || saved.n.unwrap_or_else(|| normed(*pass, span.clone(), x, &modulation, ATTENTION).values);
        let n = adapted.then(normed);
        let mut dn = needs.norm.then(take);
        linears_backward(
            ctx,
            rows,
            n.as_ref().map(|n| View::new(n, width)),
            saved.projection_inner.as_ref(),
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
            &modulation,
            ATTENTION,
            View::new(&dn, width),
            self.pass.rows_of_mut(&self.span, dx),
            sums.as_mut(),
        );
        match sums {
            Some(sums) => modulation.backward(*pass, &stream.modulation, &sums, grads),
            None => Ok(()),
        }
    }
}
