//! DDIM without noise of its own (arXiv 2010.02502, Eq. 12 with sigma = 0).

use super::{Ddpm, Predicts, Schedule, Step, scaled_linear::stride};

impl Schedule {
    /// `x' = sqrt(a') x_0 + sqrt(1 - a') eps`, with the `x_0` and `eps` that the network sees, where `a` is what the schedule keeps.
    ///
    /// The last step ends at timestep 0, not at a clean picture: as SDXL is sampled, and `DDIMScheduler` of diffusers
    /// with `set_alpha_to_one: false` and no clipping.
    ///
    /// # Panics
    /// As [`Ddpm::timesteps`].
    pub fn ddim(network: &Ddpm) -> Self {
        let kept = network.terminal.kept();
        let step = |t: usize| {
            let (here, there) = (kept[t], kept[t.saturating_sub(stride(network.steps))]);
            let (keep, add) = match network.predicts {
                Predicts::Eps => {
                    let keep = (there / here).sqrt();
                    (keep, (1.0 - there).sqrt() - keep * (1.0 - here).sqrt())
                }
                Predicts::V => (
                    (there * here).sqrt() + ((1.0 - there) * (1.0 - here)).sqrt(),
                    ((1.0 - there) * here).sqrt() - (there * (1.0 - here)).sqrt(),
                ),
            };
            Step { time: t as f32, input: 1.0, keep: keep as f32, add: add as f32, ..Step::default() }
        };
        Self { start: 1.0, steps: network.timesteps().into_iter().map(step).collect() }
    }
}
