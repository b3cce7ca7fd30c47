//! A whole pass: from latents to the prediction, and from its cotangent to the gradient of the adapter.
//!
//! `N` batch, `C` channels, `H` `W` latent grid, `L` text tokens, `K` image tokens, `E` their width, `D` width of the time's embedding.

use std::sync::Arc;

use super::{
    UNet,
    context::{Grads, Pass, Route, Tokens},
    probe::Asked,
    resnet::{self, Inputs as ResnetInputs, ResnetSaved, add},
    transformer::{self, TransformerSaved},
    weights::{StageWeights, WeighedStep, Weights},
};
use crate::{
    backbone::{Inputs, Latents, Prediction, Probe},
    device::{Activation, Device, Kind, Queue, View, ViewMut},
    error::{Error, Result},
    layers::{Branches, Context, Map, sinusoid},
    lora::{Adapter, AdapterGrad},
    models::{
        adapter::check_backward,
        checkpointing::{Keep, Kept},
        inputs::{check_conditions, check_guidance, expect},
        queue::queue_of_pass,
    },
    tensor::Tensor,
    vision::resampler::ResamplerSaved,
};

/// What a pass is given, on the device.
struct Conditions<D: Device> {
    batch: usize,
    /// `silu(temb)`, `[N, D]`.
    condition: D::Buffer,
    text: (D::Buffer, usize),
    image: Option<(D::Buffer, usize)>,
    /// What was kept of the pass that made image tokens, where it is trained.
    resampled: Option<ResamplerSaved<D>>,
    image_scale: f32,
    /// `E`.
    width: usize,
}

impl<D: Device> Conditions<D> {
    fn pass<'a>(&'a self, ctx: Context<'a, D>, keep: Keep) -> Pass<'a, D> {
        let tokens = |(values, count): &'a (D::Buffer, usize)| Tokens {
            values: View::new(values, self.width),
            count: *count,
        };
        Pass {
            ctx,
            batch: self.batch,
            condition: &self.condition,
            text: tokens(&self.text),
            image: self.image.as_ref().map(tokens),
            image_scale: self.image_scale,
            keep,
        }
    }
}

/// What a backward needs of its pass. It owns the queue: the backward runs where the forward ran.
pub(super) struct SavedPass<D: Device> {
    queue: D::Queue,
    adapter: Adapter,
    branches: Branches<D>,
    conditions: Conditions<D>,
    /// The noised latents, where the first convolution is adapted.
    start: Option<Map<D>>,
    /// From the first step that an adapter or a derivative reaches.
    steps: Vec<Option<StageSaved<D>>>,
    /// What the last norm reads.
    end: Arc<Map<D>>,
    grid: (usize, usize, usize, usize),
}

/// What was kept of a step.
enum StageSaved<D: Device> {
    Resnet(Kept<ResnetInputs<D>, ResnetSaved<D>>),
    Transformer(TransformerSaved<D>),
    /// Rows and columns before a halving or a doubling, and what was halved or doubled where its convolution is adapted.
    Resampled((usize, usize), Option<Arc<Map<D>>>),
}

impl<D: Device> UNet<D> {
    /// Whether the inputs are what the model takes.
    fn check(&self, inputs: &Inputs) -> Result<()> {
        let layout = &self.layout;
        let (n, c, h, w) = inputs.x_t.shape();
        let cell = self.config.cell();
        let whole = |side: usize| side > 0 && side.is_multiple_of(cell);
        expect(
            "x_t",
            n > 0 && c == layout.channels && whole(h) && whole(w),
            format!("[N, {}, H, W] with N > 0 and H and W multiples of {cell}", layout.channels),
            format!("{:?}", inputs.x_t.dims()),
        )?;
        check_conditions(layout, n, inputs)?;
        let sizes = inputs.sizes.len();
        expect("sizes of pictures", sizes == n, format!("{n} of them"), format!("{sizes}"))?;
        expect(
            "references",
            inputs.references.is_empty(),
            "none among the latents: a U-Net sees references as image tokens".into(),
            format!("{}", inputs.references.len()),
        )?;
        check_guidance(layout, inputs)?;
        if let Some(scale) = inputs.image_scale.filter(|scale| !(layout.image_tokens && scale.is_finite())) {
            return Err(Error::Setting(format!(
                "image tokens of a pass at the scale {scale}: expected a number, and a U-Net with an IP-Adapter"
            )));
        }
        match (&inputs.image_tokens, layout.image_tokens) {
            (None, false) => Ok(()),
            (None, true) => Err(Error::Setting(
                "the U-Net has an IP-Adapter, and so takes image tokens, but none were given".into(),
            )),
            (Some(_), false) => Err(Error::Setting(
                "image tokens were given, but the U-Net has no IP-Adapter that would read them".into(),
            )),
            (Some(tokens), true) => {
                let (image_n, count, given) = tokens.shape();
                let (width, whole) = (layout.prompt_width(), layout.prompt_tokens(count).is_some());
                let (what, of) = match layout.pictures {
                    None => ("image tokens", String::new()),
                    Some(pictures) => {
                        ("tokens of the image encoder", format!(" and a multiple of {}", pictures.count))
                    }
                };
                expect(
                    what,
                    image_n == n && count > 0 && whole && given == width,
                    format!("[{n}, K, {width}] with K > 0{of}"),
                    format!("{:?}", tokens.dims()),
                )
            }
        }
    }

    fn conditions(
        &self,
        weights: &Weights<D>,
        ctx: Context<'_, D>,
        inputs: &Inputs,
        saving: bool,
    ) -> Result<Conditions<D>> {
        let n = inputs.t.len();
        // Tokens of fewer samples than there are rows are repeated.
        let upload = |tokens: &Tensor<(usize, usize, usize)>| {
            let (samples, count, width) = tokens.shape();
            let (once, len) = (ctx.queue.upload(tokens.values(), Kind::Activation), samples * count * width);
            if samples == n {
                return (once, count);
            }
            let mut all = ctx.queue.take(n * count * width, Kind::Activation);
            for at in (0..n * count * width).step_by(len) {
                ctx.queue.copy_to(View::new(&once, len), len, ViewMut::new(&mut all, len).skip(at));
            }
            (all, count)
        };
        let (mut image, mut resampled) = (inputs.image_tokens.as_ref().map(upload), None);
        if let (Some(resampler), Some(pictures)) = (&weights.resampler, self.layout.pictures) {
            let seen = image.as_ref().and_then(|(_, given)| self.layout.prompt_tokens(*given));
            if let Some(((given, count), seen)) = image.take().zip(seen) {
                let saving = saving && resampler.adapted(ctx);
                let sizes = (n * (count / pictures.count), pictures.count);
                let (tokens, saved) = resampler.forward(ctx, sizes, given, saving)?;
                (image, resampled) = (Some((tokens, seen)), saved);
            }
        }
        Ok(Conditions {
            batch: n,
            condition: self.condition(weights, ctx, inputs)?,
            text: upload(&inputs.text),
            image,
            resampled,
            image_scale: inputs.image_scale.unwrap_or_else(|| self.image_scale()),
            width: self.layout.text_width,
        })
    }

    /// `silu(temb)`, `[N, D]`: of the time, and of pooled text beside the sizes of the picture.
    fn condition(&self, weights: &Weights<D>, ctx: Context<'_, D>, inputs: &Inputs) -> Result<D::Buffer> {
        let (n, queue, width) = (inputs.t.len(), ctx.queue, self.config.time_width());
        let mut sum = weights.time.run(ctx, n, &sinusoid(&inputs.t, self.config.sinusoid()))?;
        let pooled = inputs.pooled.values().chunks_exact(self.layout.pooled_width);
        let rows: Vec<f32> = pooled
            .zip(&inputs.sizes)
            .flat_map(|(pooled, sizes)| [pooled, &sinusoid(sizes, self.config.addition_width())].concat())
            .collect();
        let added = weights.added.run(ctx, n, &rows)?;
        queue.add_scaled(1.0, View::new(&added, width), ViewMut::new(&mut sum, width), n * width);
        let mut condition = queue.take(n * width, Kind::Activation);
        let (from, to) = (View::new(&sum, width), ViewMut::new(&mut condition, width));
        queue.activate(Activation::Silu, (n, width), from, to);
        Ok(condition)
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
        self.check(inputs)?;
        let grid = inputs.x_t.shape();
        let queue = queue_of_pass(&self.device, self.options.loading.precision, saving)?;
        let branches = |adapter| Branches::new(&queue, adapter, &self.layout.linears, &self.factors);
        let branches = adapter.map(branches).transpose()?.map(|branches| branches.with_all_factors(&queue));
        let ctx = Context { queue: &queue, branches: branches.as_ref() };
        let conditions = self.conditions(weights, ctx, inputs, saving)?;
        let pass = conditions.pass(ctx, Keep::of_pass(self.options.checkpointing, saving));
        let mut asked = Asked::new(probe, (grid.2, grid.3), pass.image.map(|image| image.count))?;
        let route = Route::forward(weights, ctx);

        let noised = Map::of_samples(&queue, inputs.x_t.values(), grid, |v| v);
        let mut x = Arc::new(weights.conv_in.run_in(ctx, &noised, Kind::Activation)?);
        let start = (saving && ctx.adapts(weights.conv_in.linear())).then_some(noised);
        let mut skips = vec![Arc::clone(&x)];
        let mut steps = Vec::new();
        for step in &weights.steps {
            let skip = if step.pops { Some(skips.pop().ok_or_else(no_skip)?) } else { None };
            let pass = Pass { keep: pass.keep.if_reached(step.units.end > route.first), ..pass };
            let (y, saved) = run_step(pass, &route, step, x, skip, &mut asked)?;
            x = Arc::new(y);
            if step.pushes {
                skips.push(Arc::clone(&x));
            }
            steps.push(saved);
        }
        let normed = weights.norm_out.run(&queue, &x, true);
        // Not rounded to the precision of activations.
        let out = weights.conv_out.run_in(ctx, &normed, Kind::Exact)?;
        drop(normed);
        let mut latents = vec![0.0; out.len()];
        out.write_planes(&queue, &mut latents)?;
        let (scores, tokens) = asked.answer(&queue)?;
        let prediction = Prediction { latents: Tensor::new(&self.host, grid, latents)?, scores, tokens };
        let saved = match (saving, adapter, branches) {
            (true, Some(adapter), Some(branches)) => Some(SavedPass {
                queue,
                adapter: adapter.clone(),
                branches,
                conditions,
                start,
                steps,
                end: x,
                grid,
            }),
            _ => None,
        };
        Ok((prediction, saved))
    }

    pub(super) fn backward_pass(
        &self,
        weights: &Weights<D>,
        saved: SavedPass<D>,
        adapter: &Adapter,
        cotangent: &Latents,
    ) -> Result<AdapterGrad> {
        let SavedPass { queue, adapter: used, branches, mut conditions, start, mut steps, end, grid } = saved;
        check_backward(&used, grid, adapter, cotangent)?;
        let ctx = Context { queue: &queue, branches: Some(&branches) };
        let resampled = conditions.resampled.take();
        let pass = conditions.pass(ctx, Keep::Nothing);
        let route = Route::backward(weights, ctx);
        let image_values = pass.image.map_or(0, |image| pass.batch * image.count * conditions.width);
        let mut grads = Grads::<D> {
            adapter: queue.zeros_to_keep(adapter.values.len()),
            // Not rounded to the precision of activations: all cross-attentions add to it.
            image: resampled.is_some().then(|| queue.zeros(image_values, Kind::Exact)),
        };

        let d = Map::of_samples(&queue, cotangent.values(), grid, |v| v);
        let out = &weights.conv_out;
        let read = ctx.adapts(out.linear()).then(|| weights.norm_out.run(&queue, &end, true));
        let d = out.backward_in(ctx, read.as_ref(), (grid.2, grid.3), &d, true, &mut grads.adapter)?;
        let d = d.ok_or_else(|| Error::Internal("the last convolution gave no derivative".into()))?;
        let mut below = Some(weights.norm_out.backward(&queue, &end, true, &d));
        drop((d, read, end));
        // Of what was kept on the way down, in the order in which the way up popped it.
        let mut d_skips: Vec<Map<D>> = Vec::new();
        for step in weights.steps.iter().rev() {
            if step.units.end <= route.first {
                break;
            }
            let Some(mut dx) = below.take() else { break };
            if step.pushes {
                add(&queue, &mut dx, &d_skips.pop().ok_or_else(no_skip)?);
            }
            let saved = steps.pop().flatten();
            let saved =
                saved.ok_or_else(|| Error::Internal("a step kept nothing for its backward".into()))?;
            let found = step_backward(pass, &route, step, saved, dx, &mut grads)?;
            let (d, d_skip) = found.unzip();
            below = d;
            d_skips.extend(d_skip.flatten());
        }
        if let (Some(start), Some(mut dx)) = (start, below) {
            add(&queue, &mut dx, &d_skips.pop().ok_or_else(no_skip)?);
            let size = (grid.2, grid.3);
            weights.conv_in.backward_in(ctx, Some(&start), size, &dx, false, &mut grads.adapter)?;
        }
        if let (Some(resampler), Some(saved), Some(d)) = (&weights.resampler, resampled, grads.image.take()) {
            let d = queue.copy(View::new(&d, image_values), image_values, Kind::Activation);
            resampler.backward(ctx, saved, &d, &mut grads.adapter)?;
        }
        // While the queue still works.
        drop((conditions, branches));
        let values = queue.keep(grads.adapter, adapter.values.len())?;
        Ok(AdapterGrad { layout: Arc::clone(&adapter.layout), values })
    }
}

fn no_skip() -> Error {
    Error::Internal("the way up pops more than the way down has pushed".into())
}

/// The result of a step, and what is kept of it.
fn run_step<D: Device>(
    pass: Pass<'_, D>,
    route: &Route<'_, D>,
    step: &WeighedStep<D>,
    x: Arc<Map<D>>,
    skip: Option<Arc<Map<D>>>,
    asked: &mut Asked<'_, D>,
) -> Result<(Map<D>, Option<StageSaved<D>>)> {
    let unit = step.units.start;
    match &step.stage {
        StageWeights::Resnet(resnet) => {
            route.approach(unit)?;
            let inputs = ResnetInputs { x, skip };
            if pass.keep == Keep::Input {
                let (y, _) =
                    resnet::forward(Pass { keep: pass.keep.inside(), ..pass }, resnet, inputs.clone())?;
                return Ok((y, Some(StageSaved::Resnet(Kept::Input(inputs)))));
            }
            let (y, saved) = resnet::forward(pass, resnet, inputs)?;
            Ok((y, saved.map(|saved| StageSaved::Resnet(Kept::Inside(saved)))))
        }
        StageWeights::Transformer(transformer) => {
            let (y, saved) = transformer::forward(pass, route, transformer, unit, x, asked)?;
            Ok((y, saved.map(StageSaved::Transformer)))
        }
        StageWeights::Down(conv) | StageWeights::Up(conv) => {
            route.approach(unit)?;
            let y = conv.run_in(pass.ctx, &x, Kind::Activation)?;
            let size = (x.height, x.width);
            let kept = pass.ctx.adapts(conv.linear()).then_some(x);
            Ok((y, pass.keep.is_some().then_some(StageSaved::Resampled(size, kept))))
        }
    }
}

/// Backward of [`run_step`]: the cotangents of its input and of what it popped; nothing where the way ends in it.
#[expect(clippy::type_complexity, reason = "two cotangents, or none")]
fn step_backward<D: Device>(
    pass: Pass<'_, D>,
    route: &Route<'_, D>,
    step: &WeighedStep<D>,
    saved: StageSaved<D>,
    dy: Map<D>,
    grads: &mut Grads<D>,
) -> Result<Option<(Map<D>, Option<Map<D>>)>> {
    let unit = step.units.start;
    match (&step.stage, saved) {
        (StageWeights::Resnet(resnet), StageSaved::Resnet(kept)) => {
            route.approach(unit)?;
            let saved = kept.saved(|inputs| resnet::again(pass, resnet, inputs))?;
            resnet::backward(pass, resnet, saved, &dy, grads).map(Some)
        }
        (StageWeights::Transformer(transformer), StageSaved::Transformer(saved)) => {
            let dx = transformer::backward(pass, route, transformer, unit, saved, dy, grads)?;
            Ok(dx.map(|dx| (dx, None)))
        }
        (StageWeights::Down(conv) | StageWeights::Up(conv), StageSaved::Resampled(size, x)) => {
            route.approach(unit)?;
            let dx = conv.backward_in(pass.ctx, x.as_deref(), size, &dy, true, &mut grads.adapter)?;
            Ok(dx.map(|dx| (dx, None)))
        }
        _ => Err(Error::Internal("a step kept what belongs to another".into())),
    }
}
