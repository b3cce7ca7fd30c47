//! Sigmas of flow matching: evenly spaced, then shifted towards noise.

/// The sigmas of `steps` steps, `steps + 1` values from 1 to 0: `shift u / (1 + (shift - 1) u)` of `u` evenly from 1 to 0.
///
/// A shift of 1 changes nothing. It is the formula of Stable Diffusion 3 (arXiv 2403.03206, Eq. 23), with `shift` in
/// the place of `sqrt(m / n)`; 3 is its value for pictures of 1024 pixels a side.
pub fn sigmas(steps: usize, shift: f64) -> Vec<f32> {
    let even = |i: usize| (steps - i) as f64 / steps as f64;
    (0..=steps).map(|i| shifted(even(i), shift) as f32).collect()
}

/// One time in [0, 1], shifted.
pub fn shifted(u: f64, shift: f64) -> f64 {
    shift * u / (1.0 + (shift - 1.0) * u)
}

/// The logarithm of the shift for a picture of so many tokens: a line through 0.5 at 256 and 1.15 at 4096.
///
/// FLUX.1 and UNO shift by `exp(mu)`; theirs is written `exp(mu) / (exp(mu) + 1 / u - 1)`, which is [`shifted`].
pub fn mu(tokens: f64) -> f64 {
    const FEW: (f64, f64) = (256.0, 0.5);
    const MANY: (f64, f64) = (4096.0, 1.15);
    FEW.1 + (MANY.1 - FEW.1) * (tokens - FEW.0) / (MANY.0 - FEW.0)
}

/// The shift of FLUX.1 for a target of so many tokens, `exp(mu)`.
pub fn dynamic_shift(tokens: usize) -> f64 {
    libm::exp(mu(tokens as f64))
}

/// The shift with which UNO was published for sampling: it counts a token for every 16x16 cells of the latent grid,
/// where a token is 2x2, so that mu is 0.459 for 512x512 pixels, not the 0.63 that it was trained with.
pub fn uno_shift(height: usize, width: usize) -> f64 {
    dynamic_shift(height * width / (16 * 16))
}
