//! AdamW over flat slices, and the sum of squares for clipping.

use super::Cpu;

/// Settings of one AdamW step (Loshchilov and Hutter 2019, as in PyTorch).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Number of this step, from 1.
    pub step: u64,
}

/// One step: `parameters` and both moments are updated in place.
///
/// # Panics
/// If the slices differ in length, or the step is zero.
pub fn adamw(
    _cpu: &Cpu,
    settings: &AdamW,
    parameters: &mut [f32],
    gradient: &[f32],
    first_moment: &mut [f32],
    second_moment: &mut [f32],
) {
    let n = parameters.len();
    assert!(settings.step > 0, "steps of AdamW count from 1");
    assert!(gradient.len() == n && first_moment.len() == n && second_moment.len() == n, "values of AdamW");
    let correction1 = 1.0 - settings.beta1.powf(settings.step as f64);
    let correction2 = 1.0 - settings.beta2.powf(settings.step as f64);
    let keep = (1.0 - settings.lr * settings.weight_decay) as f32;
    let step_size = (settings.lr / correction1) as f32;
    let root2 = correction2.sqrt() as f32;
    let (beta1, beta2, eps) = (settings.beta1 as f32, settings.beta2 as f32, settings.eps as f32);
    let (rest1, rest2) = ((1.0 - settings.beta1) as f32, (1.0 - settings.beta2) as f32);
    for i in 0..n {
        let g = gradient[i];
        first_moment[i] = beta1 * first_moment[i] + rest1 * g;
        second_moment[i] = beta2 * second_moment[i] + rest2 * (g * g);
        let denominator = second_moment[i].sqrt() / root2 + eps;
        parameters[i] = parameters[i] * keep - step_size * (first_moment[i] / denominator);
    }
}

/// Sum of squares in f64, in an order that depends on the length only.
pub fn sum_of_squares(_cpu: &Cpu, x: &[f32]) -> f64 {
    x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum()
}
