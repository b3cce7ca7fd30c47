//! SDXL's noise schedule: beta from 0.00085 to 0.012 over 1000 timesteps, linear in its root.

/// Timesteps of the schedule.
pub const TIMESTEPS: usize = 1000;

/// The cumulated products of `1 - beta`: the share of the signal's variance that is left at each timestep.
pub fn kept() -> Vec<f64> {
    let (first, last) = (0.00085f64.sqrt(), 0.012f64.sqrt());
    let mut product = 1.0;
    (0..TIMESTEPS)
        .map(|i| {
            let root = first + (last - first) * i as f64 / (TIMESTEPS - 1) as f64;
            product *= 1.0 - root * root;
            product
        })
        .collect()
}

/// Timesteps between two of `steps` samples.
pub(super) fn stride(steps: usize) -> usize {
    TIMESTEPS / steps
}

/// The timesteps at which a sampler of `steps` steps asks the network, the noisiest first: multiples of the stride, plus
/// one. Diffusers calls this spacing `leading` with an offset of 1, which is SDXL's.
///
/// # Panics
/// If there is no step, or not a timestep for each.
pub fn timesteps(steps: usize) -> Vec<usize> {
    assert!((1..TIMESTEPS).contains(&steps), "{steps} steps: expected 1 to {}", TIMESTEPS - 1);
    (0..steps).rev().map(|i| i * stride(steps) + 1).collect()
}

/// `sqrt((1 - kept) / kept)`: the noise, in units of the signal.
pub(super) fn sigma(kept: f64) -> f64 {
    ((1.0 - kept) / kept).sqrt()
}

/// The sigmas of [`timesteps`], and the zero at which sampling ends.
///
/// # Panics
/// As [`timesteps`].
pub fn sigmas(steps: usize) -> Vec<f32> {
    let kept = kept();
    timesteps(steps).iter().map(|&t| sigma(kept[t]) as f32).chain([0.0]).collect()
}
