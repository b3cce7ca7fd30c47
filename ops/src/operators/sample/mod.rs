//! `sample`: latents drawn by a network.
//!
//! Shape letters: `B` samples, `C` latent channels, `H` `W` latent grid, `L` text tokens, `E` text width, `P` pooled width.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use dfdx::shapes::{HasShape, Shape};
use prefgraph_nn::{
    self as nn, Adapter, AdapterLayout, BackboneLayout, DeviceKind, Probe,
    backbone::Time,
    sampling::{
        Ddpm, Predicts, Schedule, flow,
        scaled_linear::{TIMESTEPS, Terminal},
    },
};

use super::{
    pass::{ConditionShapes, Conditions, Rows, check_adapter, forward_cost, prediction, reference_places},
    tensors::Fixed,
};
use crate::{
    choices,
    operator::{Cost, Ctx, InShapes, OpError, Operator, OutShapes},
    port::T,
    ports::{
        BackboneHandle, Clean, ImagePrompt, Latents, List, Pooled, Process, Sizes, TextTokens, TimeShape,
        Timesteps,
    },
    random::Random,
    role::As,
    row_major::RowMajor,
    settings,
    shape::{Axes, Axis},
    words::count,
};

choices! {
    /// Which times the network is asked at, and what is made of its answers.
    pub enum SampleSchedule {
        /// Flow, Euler; the shift grows with the number of target tokens: FLUX.1, and UNO as it was trained.
        Dynamic = "dynamic",
        /// Flow, Euler; the shift is `shift`: SD3, FLUX.1-schnell with 1.
        Static = "static",
        /// Flow, Euler; dynamic, but with the few tokens that UNO's published sampler counts.
        Uno = "uno",
        /// DDIM on SDXL's schedule, for networks that predict eps or v.
        Ddim = "ddim",
        /// Euler on SDXL's schedule.
        Euler = "euler",
        /// Euler on SDXL's schedule, with fresh noise at every step.
        EulerAncestral = "euler_ancestral",
        /// DPM-Solver++ with two steps on the sigmas of Karras et al.: what most programs call DPM++ 2M Karras.
        Dpmpp2mKarras = "dpmpp_2m_karras",
    }
}

settings! {
    /// Settings of [`Sample`].
    pub struct SampleSettings {
        /// Passes of the network from noise to latents.
        pub steps: usize = 25,
        /// Guidance value, for networks that take one. FLUX.1 is sampled with 3.5, UNO with 4.
        pub guidance: Option<f64> = None,
        /// Which times the network is asked at.
        pub schedule: SampleSchedule = SampleSchedule::Dynamic,
        /// Of `static`: 3 for a picture of 1024 pixels a side.
        pub shift: f64 = 3.0,
        /// Of `ddim` to `dpmpp_2m_karras`: what the network predicts, `ddpm_eps` or `ddpm_v`; eps where it is not given.
        pub process: Option<Process> = None,
        /// Of the same: the network was trained with no signal at the last timestep (`zero_snr` of `noise`). It predicts v then.
        pub zero_snr: bool = false,
        /// Classifier-free guidance: predictions are `negative + cfg (prediction - negative)`, with the negative conditions connected. 1 is
        /// none; SDXL is sampled with 5 to 7.
        pub cfg: f64 = 1.0,
        /// What the attention over image tokens is multiplied by; `ip_scale` of the backbone where it is not given. With 0 the network draws as without its IP-Adapter.
        pub ip_scale: Option<f64> = None,
        /// What the adapter's branch is multiplied by: 1 is as it was trained, 0 the frozen network.
        pub lora_scale: f64 = 1.0,
        /// Of the noise; the run's where it is not given.
        pub seed: Option<u64> = None,
    }
}

/// Latents drawn from a network by its own passes: those of `reference` without an adapter, those of `forward` with one,
/// bit for bit.
///
/// The noise depends on the seed and the element alone, not on the node and not on the step. So samples of several networks
/// begin at the same noise, and so do those of one network along a run: what differs is what was learned.
pub struct Sample<C = usize, H = usize, W = usize> {
    settings: SampleSettings,
    axes: Fixed<C, H, W>,
}

impl<C: Axis, H: Axis, W: Axis> Sample<C, H, W> {
    /// Is it one of the solvers on SDXL's schedule?
    fn is_ddpm(&self) -> bool {
        use SampleSchedule::{Ddim, Dpmpp2mKarras, Euler, EulerAncestral};
        matches!(self.settings.schedule, Ddim | Euler | EulerAncestral | Dpmpp2mKarras)
    }

    fn process(&self) -> Process {
        if self.is_ddpm() { self.settings.process.unwrap_or(Process::DdpmEps) } else { Process::Flow }
    }

    /// The shift of the sigmas of a latent grid; `None` where there are no sigmas to shift.
    fn shift(&self, layout: &BackboneLayout, (height, width): (usize, usize)) -> Option<f64> {
        match self.settings.schedule {
            SampleSchedule::Static => Some(self.settings.shift),
            SampleSchedule::Dynamic => {
                Some(flow::dynamic_shift((height / layout.patch) * (width / layout.patch)))
            }
            SampleSchedule::Uno => Some(flow::uno_shift(height, width)),
            _ => None,
        }
    }

    fn schedule(&self, layout: &BackboneLayout, grid: (usize, usize)) -> Schedule {
        let steps = self.settings.steps;
        if let Some(shift) = self.shift(layout, grid) {
            return Schedule::flow(&flow::sigmas(steps, shift));
        }
        let predicts = if self.process() == Process::DdpmV { Predicts::V } else { Predicts::Eps };
        let terminal = Terminal::new(self.settings.zero_snr);
        let network = Ddpm { steps, predicts, terminal };
        match self.settings.schedule {
            SampleSchedule::Ddim => Schedule::ddim(&network),
            SampleSchedule::EulerAncestral => Schedule::euler_ancestral(&network),
            SampleSchedule::Dpmpp2mKarras => Schedule::dpmpp_2m_karras(&network),
            _ => Schedule::euler(&network),
        }
    }

    /// The layout of an adapter with `lora_scale` times its alpha.
    fn scaled(&self, layout: &Arc<AdapterLayout>) -> Result<Arc<AdapterLayout>, OpError> {
        let scale = self.settings.lora_scale;
        match scale == 1.0 {
            true => Ok(Arc::clone(layout)),
            false if !layout.whole.is_empty() => Err(OpError::new(format!(
                "lora_scale is {scale}, but the adapter has {} trained whole, which have no scale",
                count(layout.whole.len(), "linear")
            ))),
            false => {
                let alpha = layout.alpha * scale as f32;
                if !alpha.is_finite() {
                    return Err(OpError::new(format!(
                        "lora_scale {scale} is too large for an alpha of {}",
                        layout.alpha
                    )));
                }
                Ok(Arc::new(AdapterLayout { alpha, ..(**layout).clone() }))
            }
        }
    }

    /// Are there two passes for each step?
    fn guided(&self) -> bool {
        self.settings.cfg != 1.0
    }

    fn cost_on(
        &self,
        on: DeviceKind,
        (backbone, adapter, like, text, _, references, _, _, _, image_prompt, _): &InShapes<Self>,
    ) -> Cost {
        let grids = reference_places(backbone.layout(), references.as_ref(), image_prompt.as_ref());
        let adapter = adapter.as_ref().map(|a| a.0.as_ref());
        let size = (like.2.size(), like.3.size());
        let pass = forward_cost(&backbone.0.cost(on, like.0, size, &grids, text.1, adapter));
        let passes = (self.settings.steps * (1 + usize::from(self.guided()))) as f64;
        Cost { forward_flops: passes * pass.forward_flops, moved_bytes: passes * pass.moved_bytes, ..pass }
    }
}

/// Rows for every sample of a batch, of which there may be one for all.
fn for_all<S: Axes>(ctx: &Ctx<'_>, rows: T<S>, of_batch: impl Fn(S) -> S) -> Result<T<S>, OpError> {
    let found = *HasShape::shape(&rows);
    let wanted = of_batch(found);
    let times = wanted.num_elements() / found.num_elements().max(1);
    if times == 1 { Ok(rows) } else { super::tensors::tensor(ctx, wanted, rows.row_major().repeat(times)) }
}

impl<C: Axis, H: Axis, W: Axis> Operator for Sample<C, H, W> {
    const NAME: &'static str = "sample";
    const DOC: &'static str = "Draw latents from the network, with the adapter as it is at this step or without one. \
                               Of `like` only the axes are used. The noise is the same at every step and for every \
                               network, so that samples can be compared.";
    const IN: [&'static str; 11] = [
        "backbone",
        "adapter",
        "like",
        "text",
        "pooled",
        "references",
        "negative_text",
        "negative_pooled",
        "sizes",
        "image_prompt",
        "negative_image_prompt",
    ];
    const OUT: [&'static str; 1] = ["latents"];
    type Settings = SampleSettings;
    type In = (
        BackboneHandle,
        Option<Adapter>,
        Latents<C, H, W>,
        TextTokens,
        Pooled,
        Option<List<Latents>>,
        Option<TextTokens>,
        Option<Pooled>,
        Option<Sizes>,
        Option<ImagePrompt>,
        Option<ImagePrompt>,
    );
    type Out = (Clean<C, H, W>,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: SampleSettings) -> Result<Self, OpError> {
        let SampleSettings { steps, shift, cfg, process, zero_snr, lora_scale, .. } = settings;
        if !(1..TIMESTEPS).contains(&steps) {
            return Err(OpError::new(format!("steps {steps}: 1 to {} are possible", TIMESTEPS - 1)));
        }
        if !(shift > 0.0 && shift.is_finite()) {
            return Err(OpError::new(format!("shift {shift}: a positive number is needed")));
        }
        if let Some(scale) = settings.ip_scale.filter(|scale| !scale.is_finite()) {
            return Err(OpError::new(format!("ip_scale {scale}: a number is needed")));
        }
        if !lora_scale.is_finite() {
            return Err(OpError::new(format!("lora_scale {lora_scale}: a number is needed")));
        }
        if !cfg.is_finite() {
            return Err(OpError::new(format!("cfg {cfg}: a number is needed")));
        }
        let op = Self { settings, axes: Fixed::default() };
        let of_ddpm = process.is_none_or(|process| process != Process::Flow);
        if (process.is_some() || zero_snr) && !(op.is_ddpm() && of_ddpm) {
            return Err(OpError::new(
                "`process` and `zero_snr` are settings of ddim, euler, euler_ancestral and dpmpp_2m_karras: `ddpm_eps` or `ddpm_v`",
            ));
        }
        if zero_snr && op.process() != Process::DdpmV {
            return Err(OpError::new(
                "zero_snr: where no signal is left, eps says nothing of the picture; set `process: ddpm_v`",
            ));
        }
        Ok(op)
    }

    fn shapes(
        &self,
        (
            backbone,
            adapter,
            like,
            text,
            pooled,
            references,
            negative_text,
            negative_pooled,
            sizes,
            image_prompt,
            negative_image_prompt,
        ): InShapes<Self>,
        _: usize,
    ) -> Result<OutShapes<Self>, OpError> {
        if self.process().time() != backbone.layout().time {
            let (kind, schedules) = match backbone.layout().time {
                Time::Sigma => ("a flow", "dynamic, static or uno"),
                Time::Step => ("DDPM", "ddim, euler, euler_ancestral or dpmpp_2m_karras"),
            };
            return Err(OpError::new(format!(
                "schedule `{}` is not for the {}, which is {kind}: set {schedules}",
                self.settings.schedule.name(),
                backbone.layout().kind
            )));
        }
        let conditions = ConditionShapes {
            t: &TimeShape { batch: like.0, process: self.process() },
            text: &text,
            pooled: &pooled,
            references: references.as_ref(),
            sizes: sizes.as_ref(),
            image_prompt: image_prompt.as_ref(),
            guidance: self.settings.guidance,
        };
        conditions.check(backbone.layout(), like.concrete(), Rows::OfSamples)?;
        if let Some(scale) = self.settings.ip_scale.filter(|_| !backbone.layout().image_tokens) {
            return Err(OpError::new(format!(
                "ip_scale is {scale}, but the {} has no IP-Adapter to scale: leave it out, or set `ip_adapter` on its node",
                backbone.layout().kind
            )));
        }
        match (&negative_text, &negative_pooled) {
            (Some(away), Some(pooled)) => {
                if self.guided() && image_prompt.is_some() && negative_image_prompt.is_none() {
                    return Err(OpError::new(format!(
                        "cfg {}: connect `negative_image_prompt`, tokens of no picture (`image-prompt` with `negative: true`)",
                        self.settings.cfg
                    )));
                }
                // One sample stands for all of the batch.
                let all = |batch: usize| if batch == 1 { text.0 } else { batch };
                let tokens = |&(batch, count, width): &(usize, usize, usize)| (all(batch), count, width);
                let (away, pooled) = (tokens(away), (all(pooled.0), pooled.1));
                let image_prompt = negative_image_prompt.as_ref().map(tokens).or(image_prompt);
                let negative = ConditionShapes {
                    text: &away,
                    pooled: &pooled,
                    image_prompt: image_prompt.as_ref(),
                    ..conditions
                };
                negative.check(backbone.layout(), like.concrete(), Rows::OfSamples)?;
            }
            (None, None) if self.guided() => {
                return Err(OpError::new(format!(
                    "cfg {}: connect `negative_text` and `negative_pooled`, those of the empty prompt where nothing is to be avoided",
                    self.settings.cfg
                )));
            }
            (None, None) => {}
            _ => {
                return Err(OpError::new(
                    "`negative_text` and `negative_pooled` belong together: connect both",
                ));
            }
        }
        let scale = self.settings.lora_scale;
        match &adapter {
            Some(adapter) => {
                check_adapter(backbone.layout(), &adapter.0)?;
                self.scaled(&adapter.0)?;
            }
            None if scale != 1.0 => {
                return Err(OpError::new(format!(
                    "lora_scale is {scale}, and no adapter is connected that it could scale"
                )));
            }
            None => {}
        }
        Ok((like,))
    }

    fn cost(&self, inputs: &InShapes<Self>, _: &OutShapes<Self>) -> Cost {
        self.cost_on(DeviceKind::Cpu, inputs)
    }

    fn gpu_cost(&self, inputs: &InShapes<Self>, _: &OutShapes<Self>) -> Option<Cost> {
        Some(self.cost_on(DeviceKind::Cuda, inputs))
    }

    fn notes(&self, (backbone, _, like, _, _, _, negative_text, ..): &InShapes<Self>) -> Vec<String> {
        let steps = self.settings.steps;
        let shift = self.shift(backbone.layout(), (like.2.size(), like.3.size()));
        let shifted = shift.map(|shift| format!(", sigmas shifted by {shift:.3}"));
        let passes = if self.guided() { 2 * steps } else { steps };
        let mut notes =
            vec![format!("{} for a sample{}", count(passes, "pass"), shifted.unwrap_or_default())];
        if !self.guided() && negative_text.is_some() {
            notes.push(
                "cfg is 1, which is no guidance: what `negative_text` says is not avoided; set `cfg`, e.g. to 5.0".into(),
            );
        }
        notes
    }

    fn forward(
        &self,
        ctx: &Ctx<'_>,
        (
            backbone,
            adapter,
            like,
            text,
            pooled,
            references,
            negative_text,
            negative_pooled,
            sizes,
            image_prompt,
            negative_image_prompt,
        ): Self::In,
    ) -> Result<(Self::Out, ()), OpError> {
        let shape = *HasShape::shape(&like);
        let dims @ (rows, _, height, width) = (shape.0, shape.1.size(), shape.2.size(), shape.3.size());
        let t = Timesteps::new(self.process(), vec![0.0; rows]);
        let conditions = Conditions {
            t: &t,
            text: &text,
            pooled: &pooled,
            references: references.as_ref(),
            sizes: sizes.as_ref(),
            image_prompt: image_prompt.as_ref(),
            guidance: self.settings.guidance,
        };
        // What is in `like`, and the times, every pass replaces by its own.
        let mut inputs = conditions.inputs(ctx, &like)?;
        let mut negative = match (negative_text, negative_pooled) {
            (Some(away), Some(pooled)) if self.guided() => {
                let samples = HasShape::shape(&text).0;
                let away = for_all(ctx, away, |(_, count, width)| (samples, count, width))?;
                let pooled = for_all(ctx, pooled, |(_, width)| (samples, width))?;
                let image = negative_image_prompt.map(|As(_, tokens)| {
                    for_all(ctx, tokens, |(_, count, width)| (samples, count, width)).map(ImagePrompt::from)
                });
                let image = image.transpose()?;
                let avoided =
                    Conditions { text: &away, pooled: &pooled, image_prompt: image.as_ref(), ..conditions };
                Some(avoided.inputs(ctx, &like)?)
            }
            _ => None,
        };
        for inputs in std::iter::once(&mut inputs).chain(&mut negative) {
            inputs.image_scale = self.settings.ip_scale.map(|scale| scale as f32);
        }
        let seed = self.settings.seed.unwrap_or(ctx.seed);
        let normals =
            |purpose: &str| Random::new(seed, Self::NAME, u64::MAX, purpose).normals(shape.num_elements());
        let fresh = |step: usize| normals(&format!("noise of step {step}"));
        let schedule = self.schedule(backbone.0.layout(), (height, width));
        let placed = |adapter: Adapter| -> Result<_, OpError> {
            let layout = self.scaled(&adapter.layout)?;
            Ok(backbone.0.place(Adapter { layout, ..adapter })?)
        };
        let adapter = adapter.map(placed).transpose()?;
        let pass = |inputs: &mut nn::Inputs, x: &[f32], time: f32| -> Result<_, OpError> {
            inputs.x_t = nn::Tensor::new(ctx.cpu, dims, x)?;
            inputs.t.fill(time);
            let found = backbone.0.predict(inputs, adapter.as_ref(), &Probe::NOTHING)?.latents;
            Ok(prediction(ctx, shape, found)?.row_major())
        };
        let latents = schedule.sample(normals("noise"), fresh, |x, time| {
            let mut found = pass(&mut inputs, &x, time)?;
            if let Some(negative) = &mut negative {
                let cfg = self.settings.cfg as f32;
                for (found, away) in found.iter_mut().zip(pass(negative, &x, time)?) {
                    *found = away + cfg * (*found - away);
                }
            }
            Ok::<_, OpError>(found)
        })?;
        // Without an adapter it is the network that is at fault, and who decodes the latents says so.
        if let Some(value) = adapter.and_then(|_| latents.iter().find(|value| !value.is_finite())) {
            let SampleSettings { lora_scale, cfg, .. } = self.settings;
            let large =
                [("lora_scale", lora_scale), ("cfg", cfg)].into_iter().filter(|(_, v)| v.abs() > 100.0);
            let asked: Vec<String> =
                large.map(|(name, v)| format!("`{name}` {v:e} is too large, or ")).collect();
            return Err(OpError::diverged(format!(
                "the latents that were drawn with the adapter hold {value}: {}the training has diverged, or the adapter's file is damaged",
                asked.concat()
            )));
        }
        Ok(((super::tensors::tensor(ctx, shape, latents)?.into(),), ()))
    }
}
