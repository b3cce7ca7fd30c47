//! Euler's method in units of the signal (arXiv 2206.00364, algorithm 1 without churn), for networks that predict eps.

use super::{
    Schedule, Step,
    scaled_linear::{kept, sigma, timesteps},
};

impl Schedule {
    /// `x' = x + (sigma' - sigma) eps`, where the network is given `x / sqrt(sigma^2 + 1)`.
    ///
    /// The same as `EulerDiscreteScheduler` of diffusers with SDXL's configuration.
    ///
    /// # Panics
    /// As [`timesteps`].
    pub fn euler(steps: usize) -> Self {
        let kept = kept();
        let times = timesteps(steps);
        let sigmas: Vec<f64> = times.iter().map(|&t| sigma(kept[t])).chain([0.0]).collect();
        let steps = times.iter().zip(sigmas.array_windows()).map(|(&t, [here, there])| Step {
            time: t as f32,
            input: (1.0 / (here * here + 1.0).sqrt()) as f32,
            keep: 1.0,
            add: (there - here) as f32,
        });
        Self { start: (sigmas[0] * sigmas[0] + 1.0).sqrt() as f32, steps: steps.collect() }
    }
}
