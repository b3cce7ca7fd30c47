//! From noise to a picture's latents: schedules and solvers, as plain numbers.
//!
//! ```text
//!  flow           sigmas of flow matching: shifted by a constant, by the number of tokens, as UNO does
//!  scaled_linear  SDXL's noise schedule: what is kept at each of 1000 timesteps
//!  ddpm           a network on it: timesteps, eps or v, and what clean latents it sees
//!  ddim, euler    solvers on it: deterministic, and Euler's with fresh noise
//!  dpm            DPM-Solver++ with two steps, on the sigmas of Karras et al.
//! ```
//!
//! Every one of these solvers is linear in the latents, in what the network predicts, and in the clean latents that it saw a step
//! before, with numbers that depend on the step alone. So a [`Schedule`] holds those numbers, and sampling is one loop for all of
//! them.

mod ddim;
mod ddpm;
mod dpm;
mod euler;
pub mod flow;
pub mod scaled_linear;

pub use ddpm::{Ddpm, Predicts};

/// What one step does: the network is given `input * x` and `time`, and `x` becomes
/// `keep * x + add * prediction + before * clean before + fresh * noise`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Step {
    /// As the network takes it: sigma in [0, 1] for a flow model, a timestep in 0..1000 on the scaled-linear schedule.
    pub time: f32,
    /// Scale of the latents at the network's input.
    pub input: f32,
    /// Weight of the latents.
    pub keep: f32,
    /// Weight of the prediction.
    pub add: f32,
    /// Weights of latents and prediction in the clean latents that the network sees at this step.
    pub clean: (f32, f32),
    /// Weight of the clean latents that it saw a step before.
    pub before: f32,
    /// Weight of standard normal noise, new at this step.
    pub fresh: f32,
}

/// All steps from noise to clean latents.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// Standard deviation of the noise that sampling starts from.
    pub start: f32,
    /// In the order in which they are made, from much noise to none.
    pub steps: Vec<Step>,
}

impl Schedule {
    /// Explicit Euler on a flow with these sigmas, the last of which is where sampling ends:
    /// `x += (sigma' - sigma) v`, where the network predicts `v = eps - x_0`.
    ///
    /// The same as `FlowMatchEulerDiscreteScheduler` of diffusers.
    ///
    /// ```
    /// use prefgraph_nn::sampling::{Schedule, flow};
    /// let schedule = Schedule::flow(&flow::sigmas(4, 3.0));
    /// assert_eq!(schedule.steps[0].time, 1.0);
    /// assert_eq!(schedule.steps.len(), 4);
    /// ```
    pub fn flow(sigmas: &[f32]) -> Self {
        let step = |pair: &[f32; 2]| Step {
            time: pair[0],
            input: 1.0,
            keep: 1.0,
            add: pair[1] - pair[0],
            ..Step::default()
        };
        Self {
            start: sigmas.first().copied().unwrap_or(1.0),
            steps: sigmas.array_windows().map(step).collect(),
        }
    }

    /// Latents from standard normal `noise`; `predict` is given the network's input and the time, and `fresh` the number of a step
    /// that needs noise of its own, as much as there are latents.
    ///
    /// # Errors
    /// The first of `predict`.
    ///
    /// # Panics
    /// If `predict` or `fresh` gives another number of values than there are latents.
    pub fn sample<E>(
        &self,
        noise: Vec<f32>,
        mut fresh: impl FnMut(usize) -> Vec<f32>,
        mut predict: impl FnMut(Vec<f32>, f32) -> Result<Vec<f32>, E>,
    ) -> Result<Vec<f32>, E> {
        let mut x = noise;
        x.iter_mut().for_each(|x| *x *= self.start);
        let mut clean: Option<Vec<f32>> = None;
        for (i, step) in self.steps.iter().enumerate() {
            let predicted = predict(x.iter().map(|x| step.input * x).collect(), step.time)?;
            assert_eq!(predicted.len(), x.len(), "a prediction has the axes of the latents");
            let sees = self.steps.get(i + 1).filter(|next| next.before != 0.0).map(|_| {
                x.iter().zip(&predicted).map(|(x, p)| step.clean.0 * x + step.clean.1 * p).collect()
            });
            for (x, p) in x.iter_mut().zip(&predicted) {
                *x = step.keep * *x + step.add * p;
            }
            for (x, before) in x.iter_mut().zip(clean.iter().flatten().filter(|_| step.before != 0.0)) {
                *x += step.before * before;
            }
            if step.fresh != 0.0 {
                let noise = fresh(i);
                assert_eq!(noise.len(), x.len(), "noise has the axes of the latents");
                x.iter_mut().zip(noise).for_each(|(x, noise)| *x += step.fresh * noise);
            }
            clean = sees;
        }
        Ok(x)
    }
}
