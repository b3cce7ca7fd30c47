//! DPM-Solver++ of second order with two steps (arXiv 2211.01095, algorithm 2), on the sigmas of Karras et al.

use super::{Ddpm, Schedule, Step, scaled_linear};

/// Curvature of the sigmas (arXiv 2206.00364, Eq. 5).
const RHO: f64 = 7.0;

impl Schedule {
    /// `y' = q y + (1 - q) (x_0 + (x_0 - x_0 before) h / (2 h before))`, where `q = sigma' / sigma` and `h = -ln q`; the first step
    /// and the last one are Euler's.
    ///
    /// The same as `DPMSolverMultistepScheduler` of diffusers with `use_karras_sigmas`, which asks the network at the nearest whole timesteps.
    /// Its sigmas go from the last timestep's to the first one's.
    ///
    /// # Panics
    /// As [`Ddpm::timesteps`].
    pub fn dpmpp_2m_karras(network: &Ddpm) -> Self {
        let sigmas = karras(network);
        let mut steps: Vec<Step> = Vec::with_capacity(network.steps);
        let mut previous: Option<f64> = None;
        for (time, [here, there]) in sigmas {
            let ratio = there / here;
            let width = -libm::log(ratio);
            let bend = match previous {
                Some(before) if there > 0.0 => 0.5 * width / before,
                _ => 0.0,
            };
            let toward = 1.0 - ratio;
            let step = network.step(time, here, ratio, toward * (1.0 + bend));
            steps.push(Step { before: (-toward * bend) as f32, ..step });
            previous = Some(width);
        }
        Self::of_signal(steps)
    }
}

/// Timesteps, sigmas there, and the sigma where each step ends.
fn karras(network: &Ddpm) -> Vec<(f32, [f64; 2])> {
    let all: Vec<f64> = network.terminal.kept().into_iter().map(scaled_linear::sigma).collect();
    let root = |sigma: f64| libm::pow(sigma, 1.0 / RHO);
    let (most, least) = (root(all[all.len() - 1]), root(all[0]));
    let count = network.timesteps().len();
    let sigma = |i: usize| {
        let share = if count == 1 { 0.0 } else { i as f64 / (count - 1) as f64 };
        libm::pow(most + share * (least - most), RHO)
    };
    let sigmas: Vec<f64> = (0..count).map(sigma).chain([0.0]).collect();
    sigmas.array_windows().map(|&[here, there]| (nearest(&all, here), [here, there])).collect()
}

/// The whole timestep whose sigma is nearest, on a logarithmic scale.
fn nearest(all: &[f64], sigma: f64) -> f32 {
    let low = all.partition_point(|s| *s <= sigma).saturating_sub(1).min(all.len() - 2);
    let (a, b, here) = (libm::log(all[low]), libm::log(all[low + 1]), libm::log(sigma));
    let share = ((here - a) / (b - a)).clamp(0.0, 1.0);
    // Halves go to the even one, as NumPy rounds.
    (low as f64 + share).round_ties_even() as f32
}
