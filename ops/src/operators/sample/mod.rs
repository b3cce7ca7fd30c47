//! `sample`: latents drawn by a network.
//!
//! Shape letters: `B` samples, `C` latent channels, `H` `W` latent grid, `L` text tokens, `E` text width, `P` pooled width.

#[cfg(test)]
mod tests;

use dfdx::shapes::{HasShape, Shape};
use prefgraph_nn::{
    self as nn, Adapter, BackboneLayout, DeviceKind, Probe,
    sampling::{Schedule, flow, scaled_linear::TIMESTEPS},
};

use super::{
    pass::{ConditionShapes, Conditions, check_adapter, forward_cost, prediction, reference_grids},
    tensors::Fixed,
};
use crate::{
    choices,
    operator::{Cost, Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{BackboneHandle, Clean, Latents, List, Pooled, Process, TextTokens, TimeShape, Timesteps},
    random::Random,
    settings,
    shape::Axis,
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
        /// DDIM on SDXL's schedule, for networks that predict eps.
        Ddim = "ddim",
        /// Euler on SDXL's schedule, for networks that predict eps.
        Euler = "euler",
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
    fn process(&self) -> Process {
        match self.settings.schedule {
            SampleSchedule::Ddim | SampleSchedule::Euler => Process::DdpmEps,
            _ => Process::Flow,
        }
    }

    /// The shift of the sigmas of a latent grid; `None` where there are no sigmas to shift.
    fn shift(&self, layout: &BackboneLayout, (height, width): (usize, usize)) -> Option<f64> {
        match self.settings.schedule {
            SampleSchedule::Static => Some(self.settings.shift),
            SampleSchedule::Dynamic => {
                Some(flow::dynamic_shift((height / layout.patch) * (width / layout.patch)))
            }
            SampleSchedule::Uno => Some(flow::uno_shift(height, width)),
            SampleSchedule::Ddim | SampleSchedule::Euler => None,
        }
    }

    fn schedule(&self, layout: &BackboneLayout, grid: (usize, usize)) -> Schedule {
        let steps = self.settings.steps;
        match (self.settings.schedule, self.shift(layout, grid)) {
            (_, Some(shift)) => Schedule::flow(&flow::sigmas(steps, shift)),
            (SampleSchedule::Ddim, None) => Schedule::ddim(steps),
            (_, None) => Schedule::euler(steps),
        }
    }

    fn cost_on(
        &self,
        on: DeviceKind,
        (backbone, adapter, like, text, _, references): &InShapes<Self>,
    ) -> Cost {
        let grids = reference_grids(references.as_ref());
        let adapter = adapter.as_ref().map(|a| a.0.as_ref());
        let size = (like.2.size(), like.3.size());
        let pass = forward_cost(&backbone.0.cost(on, like.0, size, &grids, text.1, adapter));
        let passes = self.settings.steps as f64;
        Cost { forward_flops: passes * pass.forward_flops, moved_bytes: passes * pass.moved_bytes, ..pass }
    }
}

impl<C: Axis, H: Axis, W: Axis> Operator for Sample<C, H, W> {
    const NAME: &'static str = "sample";
    const DOC: &'static str = "Draw latents from the network, with the adapter as it is at this step or without one. \
                               Of `like` only the axes are used. The noise is the same at every step and for every \
                               network, so that samples can be compared.";
    const IN: [&'static str; 6] = ["backbone", "adapter", "like", "text", "pooled", "references"];
    const OUT: [&'static str; 1] = ["latents"];
    type Settings = SampleSettings;
    type In = (BackboneHandle, Option<Adapter>, Latents<C, H, W>, TextTokens, Pooled, Option<List<Latents>>);
    type Out = (Clean<C, H, W>,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: SampleSettings) -> Result<Self, OpError> {
        let SampleSettings { steps, shift, .. } = settings;
        if !(1..TIMESTEPS).contains(&steps) {
            return Err(OpError::new(format!("steps {steps}: 1 to {} are possible", TIMESTEPS - 1)));
        }
        if !(shift > 0.0 && shift.is_finite()) {
            return Err(OpError::new(format!("shift {shift}: a positive number is needed")));
        }
        Ok(Self { settings, axes: Fixed::default() })
    }

    fn shapes(
        &self,
        (backbone, adapter, like, text, pooled, references): InShapes<Self>,
        _: usize,
    ) -> Result<OutShapes<Self>, OpError> {
        let conditions = ConditionShapes {
            t: &TimeShape { batch: like.0, process: self.process() },
            text: &text,
            pooled: &pooled,
            references: references.as_ref(),
            guidance: self.settings.guidance,
        };
        conditions.check(backbone.layout(), like.concrete())?;
        if let Some(adapter) = adapter {
            check_adapter(backbone.layout(), &adapter.0)?;
        }
        Ok((like,))
    }

    fn cost(&self, inputs: &InShapes<Self>, _: &OutShapes<Self>) -> Cost {
        self.cost_on(DeviceKind::Cpu, inputs)
    }

    fn gpu_cost(&self, inputs: &InShapes<Self>, _: &OutShapes<Self>) -> Option<Cost> {
        Some(self.cost_on(DeviceKind::Cuda, inputs))
    }

    fn notes(&self, (backbone, _, like, ..): &InShapes<Self>) -> Vec<String> {
        let steps = self.settings.steps;
        let shift = self.shift(backbone.layout(), (like.2.size(), like.3.size()));
        let shifted = shift.map(|shift| format!(", sigmas shifted by {shift:.3}"));
        vec![format!("{steps} passes for a sample{}", shifted.unwrap_or_default())]
    }

    fn forward(
        &self,
        ctx: &Ctx<'_>,
        (backbone, adapter, like, text, pooled, references): Self::In,
    ) -> Result<(Self::Out, ()), OpError> {
        let shape = *HasShape::shape(&like);
        let dims @ (rows, _, height, width) = (shape.0, shape.1.size(), shape.2.size(), shape.3.size());
        let conditions = Conditions {
            t: &Timesteps::new(self.process(), vec![0.0; rows]),
            text: &text,
            pooled: &pooled,
            references: references.as_ref(),
            guidance: self.settings.guidance,
        };
        // What is in `like`, and the times, every pass replaces by its own.
        let mut inputs = conditions.inputs(ctx, &like)?;
        let seed = self.settings.seed.unwrap_or(ctx.seed);
        let noise = Random::new(seed, Self::NAME, u64::MAX, "noise").normals(shape.num_elements());
        let schedule = self.schedule(backbone.0.layout(), (height, width));
        let adapter = adapter.map(|adapter| backbone.0.place(adapter)).transpose()?;
        let latents = schedule.sample(noise, |x, time| -> Result<_, OpError> {
            inputs.x_t = nn::Tensor::new(ctx.cpu, dims, x)?;
            inputs.t.fill(time);
            let found = backbone.0.predict(&inputs, adapter.as_ref(), &Probe::NOTHING)?.latents;
            Ok(prediction(ctx, shape, found)?.as_vec())
        })?;
        Ok(((super::tensors::tensor(ctx, shape, latents)?.into(),), ()))
    }
}
