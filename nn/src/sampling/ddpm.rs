//! What samplers of a network share that was trained on the scaled-linear schedule: where it is asked, and what follows from its
//! answer.
//!
//! Solvers but DDIM follow `y = x_0 + sigma eps`, in units of the signal; the network is given `y / sqrt(sigma^2 + 1)`, which has
//! the variance that it was trained on.

use super::{
    Schedule, Step,
    scaled_linear::{self, Terminal},
};

/// What a network on the scaled-linear schedule predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Predicts {
    /// The noise.
    Eps,
    /// `sqrt(a) eps - sqrt(1 - a) x_0`, where `a` is what is kept (arXiv 2202.00512).
    V,
}

/// A network to be sampled, and in how many steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ddpm {
    /// Passes of the network.
    pub steps: usize,
    /// What it predicts.
    pub predicts: Predicts,
    /// Was it trained down to no signal at all? Then sampling begins at the last timestep.
    pub terminal: Terminal,
}

impl Ddpm {
    /// SDXL's base, and most of what is tuned from it.
    pub fn eps(steps: usize) -> Self {
        Self { steps, predicts: Predicts::Eps, terminal: Terminal::Published }
    }

    /// The timesteps at which the network is asked, the noisiest first: `leading` of diffusers with an offset of 1, which is SDXL's, and
    /// `trailing` where there is no signal at the last one.
    ///
    /// # Panics
    /// If there is no step, or not a timestep for each.
    pub fn timesteps(&self) -> Vec<usize> {
        match self.terminal {
            Terminal::Published => scaled_linear::timesteps(self.steps),
            Terminal::ZeroSnr => scaled_linear::trailing(self.steps),
        }
    }

    /// Those timesteps with their sigmas, and the sigma where each step ends: 0 at the last.
    pub(super) fn sigmas(&self) -> Vec<(f32, [f64; 2])> {
        let kept = self.terminal.kept();
        let times = self.timesteps();
        let sigmas: Vec<f64> = times.iter().map(|&t| scaled_linear::sigma(kept[t])).chain([0.0]).collect();
        times.iter().map(|&t| t as f32).zip(sigmas.array_windows().copied()).collect()
    }

    /// The step in `y` from sigma to another one along the clean latents that the network sees, which are
    /// `clean.0 y + clean.1 prediction`: `y' = keep y + toward x_0`.
    pub(super) fn step(&self, time: f32, here: f64, keep: f64, toward: f64) -> Step {
        let variance = here * here + 1.0;
        let clean = match self.predicts {
            Predicts::Eps => (1.0, -here),
            Predicts::V => (1.0 / variance, -here / variance.sqrt()),
        };
        Step {
            time,
            input: (1.0 / variance.sqrt()) as f32,
            keep: (keep + toward * clean.0) as f32,
            add: (toward * clean.1) as f32,
            clean: (clean.0 as f32, clean.1 as f32),
            before: 0.0,
            fresh: 0.0,
        }
    }
}

impl Schedule {
    /// Steps in units of the signal, from noise of unit variance at the network's input.
    pub(super) fn of_signal(steps: Vec<Step>) -> Self {
        Self { start: steps.first().map_or(1.0, |s| 1.0 / s.input), steps }
    }
}
