//! Euler's method in units of the signal (arXiv 2206.00364, algorithm 1 without churn), and with fresh noise.

use super::{Ddpm, Predicts, Schedule, Step};

impl Schedule {
    /// `y' = y + (sigma' - sigma) eps`, with the `eps` that the network sees.
    ///
    /// The same as `EulerDiscreteScheduler` of diffusers with SDXL's configuration.
    ///
    /// # Panics
    /// As [`Ddpm::timesteps`].
    pub fn euler(network: &Ddpm) -> Self {
        let step = |(time, [here, there]): (f32, [f64; 2])| {
            let step = network.step(time, here, there / here, 1.0 - there / here);
            match network.predicts {
                // The same without rounding twice.
                Predicts::Eps => Step { keep: 1.0, add: (there - here) as f32, ..step },
                Predicts::V => step,
            }
        };
        Self::of_signal(network.sigmas().into_iter().map(step).collect())
    }

    /// Euler's method to less noise than wanted, and fresh noise for the rest: `sigma'^2 = down^2 + up^2` with
    /// `up^2 = sigma'^2 (sigma^2 - sigma'^2) / sigma^2`.
    ///
    /// The same as `EulerAncestralDiscreteScheduler` of diffusers with SDXL's configuration.
    ///
    /// # Panics
    /// As [`Ddpm::timesteps`].
    pub fn euler_ancestral(network: &Ddpm) -> Self {
        let step = |(time, [here, there]): (f32, [f64; 2])| {
            let up = there * (1.0 - (there / here) * (there / here)).sqrt();
            let down = there * there / here;
            Step { fresh: up as f32, ..network.step(time, here, down / here, 1.0 - down / here) }
        };
        Self::of_signal(network.sigmas().into_iter().map(step).collect())
    }
}
