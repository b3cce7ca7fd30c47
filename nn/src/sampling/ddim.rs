//! DDIM without noise of its own (arXiv 2010.02502, Eq. 12 with sigma = 0), for networks that predict eps.

use super::{
    Schedule, Step,
    scaled_linear::{kept, stride, timesteps},
};

impl Schedule {
    /// `x' = sqrt(a'/a) x + (sqrt(1-a') - sqrt(a'/a) sqrt(1-a)) eps`, where `a` is what the scaled-linear schedule keeps.
    ///
    /// The last step ends at timestep 0, not at a clean picture: as SDXL is sampled, and `DDIMScheduler` of diffusers
    /// with `set_alpha_to_one: false` and no clipping.
    ///
    /// # Panics
    /// As [`timesteps`].
    pub fn ddim(steps: usize) -> Self {
        let kept = kept();
        let step = |t: usize| {
            let (here, there) = (kept[t], kept[t.saturating_sub(stride(steps))]);
            let keep = (there / here).sqrt();
            let add = (1.0 - there).sqrt() - keep * (1.0 - here).sqrt();
            Step { time: t as f32, input: 1.0, keep: keep as f32, add: add as f32 }
        };
        Self { start: 1.0, steps: timesteps(steps).into_iter().map(step).collect() }
    }
}
