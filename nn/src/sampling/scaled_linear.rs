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

/// How the schedule ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terminal {
    /// As SDXL was published: a little of the signal is left at the last timestep, 0.0047 of its variance.
    Published,
    /// No signal is left: the schedule's roots are shifted and scaled so that the first one stays (arXiv 2305.08891, algorithm 1).
    ZeroSnr,
}

impl Terminal {
    /// That of a network which was trained with no signal at the last timestep, or was not.
    pub fn new(zero_snr: bool) -> Self {
        if zero_snr { Self::ZeroSnr } else { Self::Published }
    }

    /// The share of the signal's variance that is left at each timestep.
    pub fn kept(self) -> Vec<f64> {
        let mut kept = kept();
        if self == Self::ZeroSnr {
            let (first, last) = (kept[0].sqrt(), kept[TIMESTEPS - 1].sqrt());
            for kept in &mut kept {
                let root = (kept.sqrt() - last) * first / (first - last);
                *kept = root * root;
            }
        }
        kept
    }
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

/// The timesteps of a schedule that ends without signal: the last one, and down from it. Diffusers calls this spacing `trailing`.
///
/// # Panics
/// As [`timesteps`].
pub fn trailing(steps: usize) -> Vec<usize> {
    assert!((1..TIMESTEPS).contains(&steps), "{steps} steps: expected 1 to {}", TIMESTEPS - 1);
    let stride = TIMESTEPS as f64 / steps as f64;
    (0..steps).map(|i| (TIMESTEPS as f64 - i as f64 * stride).round_ties_even() as usize - 1).collect()
}

/// `sqrt((1 - kept) / kept)`: the noise, in units of the signal. Without signal it has no end: 2^-24 of it is as good as none.
pub(super) fn sigma(kept: f64) -> f64 {
    let kept = kept.max(f64::from(2.0f32.powi(-24)));
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
