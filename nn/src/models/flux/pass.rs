//! A whole pass: from latents to the prediction, and from its cotangent to the gradient of the adapter.
//!
//! `N` batch, `D` width, `M` rows of all tokens, `G` rows of the targets.

use std::sync::Arc;

use super::{
    Flux,
    block::{Modulation, Normed, Pass, RowMoments, normed, normed_backward},
    config::{PATCH, SINUSOID},
    double::{self, DoubleSaved},
    probe::Asked,
    rope::RotaryTables,
    sequence::{ALL, IMAGE, Sequence, TARGETS, TEXT},
    single::{self, SingleSaved},
    tokens,
    weights::Weights,
};
use crate::{
    backbone::{Inputs, Latents, Prediction, Probe},
    device::{Activation, Device, Kind, Queue, View, ViewMut},
    error::{Error, Result},
    layers::{Branches, Context, InputGrad, Output, linears, linears_backward, sinusoid},
    lora::{Adapter, AdapterGrad},
    models::{
        adapter::check_backward,
        checkpointing::{Checkpointing, Keep, Kept},
        inputs::{check_conditions, check_guidance, expect},
        queue::queue_of_pass,
    },
    tensor::Tensor,
};

/// Chunks of the last modulation; scale stands before shift here.
const FINAL: (usize, usize) = (1, 0);

/// What a backward needs of its pass. It owns the queue: the backward runs where the forward ran.
pub(super) struct SavedPass<D: Device> {
    queue: D::Queue,
    adapter: Adapter,
    branches: Branches<D>,
    sequence: Sequence,
    rotary: Arc<RotaryTables<D>>,
    condition: D::Buffer,
    /// From the first block that an adapter or a derivative reaches.
    double: Vec<Option<KeptBlock<D, DoubleSaved<D>>>>,
    single: Vec<Option<KeptBlock<D, SingleSaved<D>>>>,
    end: EndSaved<D>,
    grid: (usize, usize, usize, usize),
}

/// All that the backward of a block needs, or what the block has read.
type KeptBlock<D, S> = Kept<Arc<<D as Device>::Buffer>, S>;

/// Run a block on `x`, which becomes its result, and keep what is asked for: nothing, all that its backward needs, or its input.
fn keeping<D: Device, S>(
    pass: Pass<'_, D>,
    x: &mut Arc<D::Buffer>,
    run: impl FnOnce(Pass<'_, D>, &Arc<D::Buffer>) -> Result<(D::Buffer, Option<S>)>,
) -> Result<Option<KeptBlock<D, S>>> {
    let (y, saved) = run(Pass { keep: pass.keep.inside(), ..pass }, x)?;
    let input = std::mem::replace(x, Arc::new(y));
    Ok(if pass.keep == Keep::Input { Some(Kept::Input(input)) } else { saved.map(Kept::Inside) })
}

/// What the backward of the last norm and linear needs.
struct EndSaved<D: Device> {
    /// `[G, D]`.
    x: D::Buffer,
    moments: RowMoments<D>,
    modulation: Modulation<D>,
}

/// Shapes of a pass, checked.
struct Shapes {
    grid: (usize, usize, usize, usize),
    references: Vec<(usize, usize)>,
    text: usize,
}

impl<D: Device> Flux<D> {
    /// An adapter for a pass. Where blocks are recomputed its factors are those of [one block](Self::of_block) at a time: a pass would keep
    /// all of them until its backward.
    fn branches(&self, queue: &D::Queue, adapter: &Adapter) -> Result<Branches<D>> {
        let branches = Branches::new(queue, adapter, &self.layout.linears, &self.factors)?;
        Ok(match self.options.checkpointing {
            Checkpointing::None | Checkpointing::Selective => branches.with_all_factors(queue),
            Checkpointing::Blocks => branches,
        })
    }

    /// The adapter with the factors of a block, where the pass has none.
    fn of_block(&self, weights: &Weights<D>, ctx: Context<'_, D>, number: usize) -> Option<Branches<D>> {
        let branches = ctx.branches.filter(|_| self.options.checkpointing == Checkpointing::Blocks)?;
        Some(branches.with_factors_of(ctx.queue, &weights.block(number)))
    }

    fn shapes(&self, inputs: &Inputs) -> Result<Shapes> {
        let layout = &self.layout;
        let (n, c, h, w) = inputs.x_t.shape();
        let even = |h: usize, w: usize| h > 0 && w > 0 && h.is_multiple_of(PATCH) && w.is_multiple_of(PATCH);
        expect(
            "x_t",
            n > 0 && c == layout.channels && even(h, w),
            format!("[N, {}, H, W] with N > 0 and even H and W", layout.channels),
            format!("{:?}", inputs.x_t.dims()),
        )?;
        check_conditions(layout, n, inputs)?;
        for (i, reference) in inputs.references.iter().enumerate() {
            let (rn, rc, rh, rw) = reference.shape();
            expect(
                &format!("reference {i}"),
                rn == n && rc == layout.channels && even(rh, rw),
                format!("[{n}, {}, H, W] with even H and W", layout.channels),
                format!("{:?}", reference.dims()),
            )?;
        }
        check_guidance(layout, inputs)?;
        expect(
            "sizes of pictures",
            inputs.sizes.is_empty(),
            "none".into(),
            format!("{}", inputs.sizes.len()),
        )?;
        expect("image tokens", inputs.image_tokens.is_none(), "none".into(), "some".into())?;
        let references =
            inputs.references.iter().map(|r| (r.shape().2 / PATCH, r.shape().3 / PATCH)).collect();
        Ok(Shapes { grid: (n, c, h, w), references, text: inputs.text.shape().1 })
    }

    /// The prediction, and with `saving` what the backward needs.
    pub(super) fn forward(
        &self,
        weights: &Weights<D>,
        inputs: &Inputs,
        adapter: Option<&Adapter>,
        probe: &Probe<'_>,
        saving: bool,
    ) -> Result<(Prediction, Option<SavedPass<D>>)> {
        let shapes = self.shapes(inputs)?;
        let queue = queue_of_pass(&self.device, self.options.loading.precision, saving)?;
        let keep = Keep::of_pass(self.options.checkpointing, saving);
        let branches = adapter.map(|a| self.branches(&queue, a)).transpose()?;
        let ctx = Context { queue: &queue, branches: branches.as_ref() };
        let Begun { sequence, rotary, condition, mut x } = Begun::new(self, weights, ctx, inputs, &shapes)?;
        let pass = Pass {
            ctx,
            sequence: &sequence,
            rotary: &rotary,
            width: self.layout.width,
            heads: self.layout.heads,
            condition: &condition,
            keep,
        };
        let mut asked = Asked::new(pass, probe);
        let first = first_needed(weights, ctx);
        let order: Vec<usize> = (0..weights.double.len() + weights.single.len()).collect();
        let mut double = Vec::new();
        let mut single = Vec::new();
        for (i, block) in weights.double.iter().enumerate() {
            weights.approach(&queue, &order, i)?;
            weights.check(i)?;
            let own = self.of_block(weights, ctx, i);
            let pass = Pass { keep: keep.if_reached(i >= first), ..pass.with_branches(own.as_ref()) };
            let run = |pass: Pass<'_, D>, x: &Arc<D::Buffer>| double::forward(pass, block, x);
            double.push(keeping(pass, &mut x, run)?);
            asked.block(pass, i, &x)?;
        }
        for (i, block) in weights.single.iter().enumerate() {
            let number = weights.double.len() + i;
            // Of the last block's result there are only the rows of its span: nobody reads others.
            let span = match (i + 1 == weights.single.len(), probe.asks()) {
                (false, _) => ALL,
                (true, true) => IMAGE,
                (true, false) => TARGETS,
            };
            weights.approach(&queue, &order, number)?;
            weights.check(number)?;
            let own = self.of_block(weights, ctx, number);
            let pass = Pass { keep: keep.if_reached(number >= first), ..pass.with_branches(own.as_ref()) };
            let run = |pass: Pass<'_, D>, x: &Arc<D::Buffer>| single::forward(pass, block, span, x);
            single.push(keeping(pass, &mut x, run)?);
            asked.block(pass, number, &x)?;
        }
        let (latents, end) = finish(pass, weights, &x, shapes.grid)?;
        drop(x);
        let (scores, tokens) = asked.answer(pass)?;
        let latents = Tensor::new(&self.host, shapes.grid, latents)?;
        let prediction = Prediction { latents, scores, tokens };
        let saved = match (saving, adapter, branches) {
            (true, Some(adapter), Some(branches)) => Some(SavedPass {
                queue,
                adapter: adapter.clone(),
                branches,
                double,
                single,
                end,
                grid: shapes.grid,
                condition,
                rotary,
                sequence,
            }),
            _ => None,
        };
        Ok((prediction, saved))
    }

    pub(super) fn double_features(
        &self,
        weights: &Weights<D>,
        inputs: &Inputs,
    ) -> Result<Tensor<(usize, usize, usize)>> {
        let shapes = self.shapes(inputs)?;
        if weights.double.is_empty() {
            return Err(Error::Setting(
                "features are tokens of the last double block, and the model has none".into(),
            ));
        }
        let queue = self.queue()?;
        let ctx = Context { queue: &queue, branches: None };
        let Begun { sequence, rotary, condition, mut x } = Begun::new(self, weights, ctx, inputs, &shapes)?;
        let width = self.layout.width;
        let pass = Pass {
            ctx,
            sequence: &sequence,
            rotary: &rotary,
            width,
            heads: self.layout.heads,
            condition: &condition,
            keep: Keep::Nothing,
        };
        let order: Vec<usize> = (0..weights.double.len()).collect();
        for (i, block) in weights.double.iter().enumerate() {
            weights.approach(&queue, &order, i)?;
            weights.check(i)?;
            x = Arc::new(double::forward(pass, block, &x)?.0);
        }
        let rows = sequence.span_rows(TARGETS);
        let shape = (sequence.batch, rows.len() / sequence.batch, width);
        Tensor::new(&self.host, shape, queue.download(&x, rows.start * width, rows.len() * width)?)
    }

    pub(super) fn backward_pass(
        &self,
        weights: &Weights<D>,
        saved: SavedPass<D>,
        adapter: &Adapter,
        cotangent: &Latents,
    ) -> Result<AdapterGrad> {
        let SavedPass {
            queue,
            adapter: used,
            branches,
            sequence,
            rotary,
            condition,
            mut double,
            mut single,
            end,
            grid,
        } = saved;
        check_backward(&used, grid, adapter, cotangent)?;
        let ctx = Context { queue: &queue, branches: Some(&branches) };
        let width = self.layout.width;
        let pass = Pass {
            ctx,
            sequence: &sequence,
            rotary: &rotary,
            width,
            heads: self.layout.heads,
            condition: &condition,
            keep: Keep::Nothing,
        };
        let mut grads = queue.zeros_to_keep(adapter.values.len());
        let mut dx = if weights.single.is_empty() {
            // The last block has two streams: it takes the derivative of all rows, of which most are zero.
            queue.zeros(sequence.rows() * width, Kind::Activation)
        } else {
            pass.take(sequence.rows() * width)
        };
        end_backward(pass, weights, &end, cotangent, &mut dx, &mut grads)?;
        drop(end);
        let first = first_needed(weights, ctx);
        let count = weights.double.len();
        let order: Vec<usize> = (first..count + weights.single.len()).rev().collect();
        let gone = || Error::Internal("a block kept nothing for its backward".into());
        for (i, block) in weights.single.iter().enumerate().rev() {
            if count + i < first {
                break;
            }
            weights.approach(&queue, &order, weights.single.len() - 1 - i)?;
            let kept = single.pop().flatten().ok_or_else(gone)?;
            let span = if i + 1 == weights.single.len() { TARGETS } else { ALL };
            let own = self.of_block(weights, ctx, count + i);
            let pass = pass.with_branches(own.as_ref());
            let saved = kept.saved(|x| single::again(pass, block, span.clone(), &x))?;
            single::backward(pass, block, saved, span, count + i > first, &mut dx, &mut grads)?;
        }
        for (i, block) in weights.double.iter().enumerate().rev() {
            if i < first {
                break;
            }
            weights.approach(&queue, &order, weights.single.len() + count - 1 - i)?;
            let kept = double.pop().flatten().ok_or_else(gone)?;
            let own = self.of_block(weights, ctx, i);
            let pass = pass.with_branches(own.as_ref());
            let saved = kept.saved(|x| double::again(pass, block, &x))?;
            double::backward(pass, block, saved, i > first, &mut dx, &mut grads)?;
        }
        // While the queue still works.
        drop((dx, condition, branches));
        let values = queue.keep(grads, adapter.values.len())?;
        Ok(AdapterGrad { layout: Arc::clone(&adapter.layout), values })
    }
}

/// Number of the first block with an adapted linear: nothing below it needs a derivative.
fn first_needed<D: Device>(weights: &Weights<D>, ctx: Context<'_, D>) -> usize {
    let count = weights.double.len() + weights.single.len();
    (0..count).find(|n| weights.block(*n).into_iter().any(|l| ctx.adapts(l))).unwrap_or(count)
}

/// What stands before the first block.
struct Begun<D: Device> {
    sequence: Sequence,
    rotary: Arc<RotaryTables<D>>,
    condition: D::Buffer,
    /// `[M, D]`.
    x: Arc<D::Buffer>,
}

impl<D: Device> Begun<D> {
    fn new(
        model: &Flux<D>,
        weights: &Weights<D>,
        ctx: Context<'_, D>,
        inputs: &Inputs,
        shapes: &Shapes,
    ) -> Result<Self> {
        let queue = ctx.queue;
        let (n, c, h, w) = shapes.grid;
        let target = (h / PATCH, w / PATCH);
        let rotary = model.rotary((shapes.text, target, shapes.references.clone()))?;
        let counts: Vec<usize> = shapes.references.iter().map(|(h, w)| h * w).collect();
        let sequence = Sequence::new(n, shapes.text, target.0 * target.1, counts);

        let (width, text_width) = (model.layout.width, model.layout.text_width);
        let mut x = queue.take(sequence.rows() * width, Kind::Activation);
        let text = queue.upload(inputs.text.values(), Kind::Activation);
        let rows = inputs.text.shape().0 * shapes.text;
        for first in sequence.span_rows(TEXT).step_by(rows) {
            let to = ViewMut::new(&mut x, width).skip(first * width);
            linears(ctx, rows, View::new(&text, text_width), &mut [Output(&weights.text_in, to)])?;
        }
        let image = sequence.span_rows(IMAGE);
        let token = c * PATCH * PATCH;
        let packed = queue.fill(image.len() * token, Kind::Activation, |packed| {
            let (targets, references) = packed.split_at_mut(sequence.span_rows(TARGETS).len() * token);
            tokens::pack(inputs.x_t.values(), shapes.grid, targets, target.0 * target.1, 0);
            let stride: usize = sequence.reference_tokens.iter().sum();
            let mut offset = 0;
            for (reference, count) in inputs.references.iter().zip(&sequence.reference_tokens) {
                tokens::pack(reference.values(), reference.shape(), references, stride, offset);
                offset += count;
            }
        });
        let to = ViewMut::new(&mut x, width).skip(image.start * width);
        linears(ctx, image.len(), View::new(&packed, token), &mut [Output(&weights.image_in, to)])?;
        Ok(Self { condition: condition(weights, ctx, inputs)?, sequence, rotary, x: Arc::new(x) })
    }
}

/// Times in [0, 1] and guidance are multiplied by this before the sinusoid.
const TIME_SCALE: f32 = 1000.0;

/// `silu(temb)`, `[N, D]`.
fn condition<D: Device>(weights: &Weights<D>, ctx: Context<'_, D>, inputs: &Inputs) -> Result<D::Buffer> {
    let (n, queue) = (inputs.t.len(), ctx.queue);
    let width = weights.time.second.outputs();
    let sinusoids = |values: &[f32]| {
        let scaled: Vec<f32> = values.iter().map(|v| v * TIME_SCALE).collect();
        sinusoid(&scaled, SINUSOID)
    };
    let mut sum = weights.time.run(ctx, n, &sinusoids(&inputs.t))?;
    let mut add = |part: D::Buffer| {
        let part = View::new(&part, width);
        queue.add_scaled(1.0, part, ViewMut::new(&mut sum, width), n * width);
    };
    if let (Some(embedder), Some(guidance)) = (&weights.guidance, inputs.guidance) {
        add(embedder.run(ctx, n, &sinusoids(&vec![guidance; n]))?);
    }
    add(weights.pooled.run(ctx, n, inputs.pooled.values())?);
    let mut condition = queue.take(n * width, Kind::Activation);
    let (from, to) = (View::new(&sum, width), ViewMut::new(&mut condition, width));
    queue.activate(Activation::Silu, (n, width), from, to);
    Ok(condition)
}

/// The last norm and linear, on the targets' rows.
fn finish<D: Device>(
    pass: Pass<'_, D>,
    weights: &Weights<D>,
    x: &D::Buffer,
    grid: (usize, usize, usize, usize),
) -> Result<(Vec<f32>, EndSaved<D>)> {
    let (queue, width) = (pass.ctx.queue, pass.width);
    let rows = pass.sequence.span_rows(TARGETS);
    let from = pass.rows_of(&TARGETS, x);
    let targets = queue.copy(from, rows.len() * width, Kind::Activation);
    let modulation = Modulation::new(pass, &weights.final_modulation)?;
    let Normed { values, moments } = normed(pass, TARGETS, View::new(&targets, width), &modulation, FINAL);
    let token = weights.out.outputs();
    let mut tokens = queue.take(rows.len() * token, Kind::Exact);
    let output = Output(&weights.out, ViewMut::new(&mut tokens, token));
    linears(pass.ctx, rows.len(), View::new(&values, width), &mut [output])?;
    let tokens = queue.download(&tokens, 0, rows.len() * token)?;
    Ok((tokens::unpack(&tokens, grid), EndSaved { x: targets, moments, modulation }))
}

/// Backward of [`finish`]: the targets' rows of `dx [M, D]` are overwritten.
fn end_backward<D: Device>(
    pass: Pass<'_, D>,
    weights: &Weights<D>,
    end: &EndSaved<D>,
    cotangent: &Latents,
    dx: &mut D::Buffer,
    grads: &mut D::Buffer,
) -> Result<()> {
    let (queue, width) = (pass.ctx.queue, pass.width);
    let targets = pass.sequence.span_rows(TARGETS);
    let (rows, token) = (targets.len(), weights.out.outputs());
    let d_tokens = queue.fill(rows * token, Kind::Activation, |tokens| {
        tokens::pack(cotangent.values(), cotangent.shape(), tokens, rows / pass.sequence.batch, 0);
    });
    let mut dn = pass.take(rows * width);
    linears_backward(
        pass.ctx,
        rows,
        None,
        None,
        &[(&weights.out, View::new(&d_tokens, token))],
        Some(InputGrad { values: ViewMut::new(&mut dn, width), accumulate: false }),
        grads,
    )?;
    normed_backward(
        pass,
        TARGETS,
        TEXT,
        View::new(&end.x, width),
        &end.moments,
        &end.modulation,
        FINAL,
        View::new(&dn, width),
        pass.rows_of_mut(&TARGETS, dx),
        None,
    );
    Ok(())
}
