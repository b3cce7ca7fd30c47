//! Diffusion time.

use std::sync::Arc;

use prefgraph_nn::backbone::Time;

use crate::{
    choices,
    port::{NoGrad, Port},
    shape::PortShape,
};

choices! {
    /// How clean latents become noise, and what the network predicts.
    pub enum Process {
        /// Rectified flow: x_t = (1 - sigma) x_0 + sigma eps; the target is eps - x_0.
        Flow = "flow",
        /// DDPM on SDXL's scaled-linear schedule of 1000 timesteps; the target is eps.
        DdpmEps = "ddpm_eps",
        /// The same, with the target v = sqrt(abar) eps - sqrt(1 - abar) x_0.
        DdpmV = "ddpm_v",
    }
}

impl Process {
    /// Are its times whole timesteps 0..1000, rather than sigmas in [0, 1]?
    pub fn is_discrete(self) -> bool {
        self != Self::Flow
    }

    /// What its times are called in metrics and listings.
    pub fn time_name(self) -> &'static str {
        if self.is_discrete() { "timestep" } else { "sigma" }
    }

    /// The time that a network takes which was trained on it.
    pub fn time(self) -> Time {
        if self.is_discrete() { Time::Step } else { Time::Sigma }
    }
}

/// The time of every sample, `[B]`: sigma in [0, 1] for a flow, whole timesteps for DDPM. A discrete port.
#[derive(Clone, Debug, PartialEq)]
pub struct Timesteps {
    /// Which scale the values are on.
    pub process: Process,
    /// One a sample.
    pub values: Arc<[f32]>,
}

impl Timesteps {
    /// Times of a batch.
    pub fn new(process: Process, values: Vec<f32>) -> Self {
        Self { process, values: values.into() }
    }
}

/// Shape of [`Timesteps`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeShape {
    /// `B`.
    pub batch: usize,
    /// Which scale the values are on.
    pub process: Process,
}

impl PortShape for TimeShape {
    fn describe(&self) -> String {
        format!("{}[{}]", self.process.time_name(), self.batch)
    }
    fn bytes(&self) -> usize {
        self.batch.saturating_mul(size_of::<f32>())
    }
}

impl Port for Timesteps {
    type Grad = NoGrad;
    type Shape = TimeShape;

    fn label() -> String {
        "times[_]".into()
    }
    fn shape(&self) -> TimeShape {
        TimeShape { batch: self.values.len(), process: self.process }
    }
}
