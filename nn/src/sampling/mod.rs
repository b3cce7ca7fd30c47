//! From noise to a picture's latents: schedules and solvers, as plain numbers.
//!
//! ```text
//!  flow           sigmas of flow matching: shifted by a constant, by the number of tokens, as UNO does
//!  scaled_linear  SDXL's noise schedule: what is kept at each of 1000 timesteps
//!  ddim, euler    the two usual solvers on it
//! ```
//!
//! Every one of these solvers is linear in the latents and in what the network predicts, with numbers that depend on the
//! step alone. So a [`Schedule`] holds those numbers, and sampling is one loop for all of them.

mod ddim;
mod euler;
pub mod flow;
pub mod scaled_linear;

/// What one step does: the network is given `input * x` and `time`, and `x` becomes `keep * x + add * prediction`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// As the network takes it: sigma in [0, 1] for a flow model, a timestep in 0..1000 on the scaled-linear schedule.
    pub time: f32,
    /// Scale of the latents at the network's input.
    pub input: f32,
    /// Weight of the latents.
    pub keep: f32,
    /// Weight of the prediction.
    pub add: f32,
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
        let step = |pair: &[f32; 2]| Step { time: pair[0], input: 1.0, keep: 1.0, add: pair[1] - pair[0] };
        Self {
            start: sigmas.first().copied().unwrap_or(1.0),
            steps: sigmas.array_windows().map(step).collect(),
        }
    }

    /// Latents from standard normal `noise`; `predict` is given the network's input and the time.
    ///
    /// # Errors
    /// The first of `predict`.
    ///
    /// # Panics
    /// If `predict` gives another number of values than it was given.
    pub fn sample<E>(
        &self,
        noise: Vec<f32>,
        mut predict: impl FnMut(Vec<f32>, f32) -> Result<Vec<f32>, E>,
    ) -> Result<Vec<f32>, E> {
        let mut x = noise;
        x.iter_mut().for_each(|x| *x *= self.start);
        for step in &self.steps {
            let predicted = predict(x.iter().map(|x| step.input * x).collect(), step.time)?;
            assert_eq!(predicted.len(), x.len(), "a prediction has the axes of the latents");
            step.advance(&mut x, &predicted);
        }
        Ok(x)
    }
}

impl Step {
    /// `x` after the step.
    fn advance(&self, x: &mut [f32], predicted: &[f32]) {
        for (x, p) in x.iter_mut().zip(predicted) {
            *x = self.keep * *x + self.add * p;
        }
    }
}
