//! AdamW (Loshchilov and Hutter 2019): its settings, and the numbers of one step.

/// Settings of AdamW, as PyTorch has them.
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
    /// Decay of the values, by `lr * weight_decay` before each step.
    pub weight_decay: f64,
}

/// One step, with the corrections of the moments worked out: every device computes with these same numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub keep: f32,
    pub step_size: f32,
    pub root2: f32,
    pub eps: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub rest1: f32,
    pub rest2: f32,
}

impl Step {
    /// # Panics
    /// If the step is zero.
    pub(crate) fn new(settings: &AdamW, step: u64) -> Self {
        assert!(step > 0, "steps of AdamW count from 1");
        let correction1 = 1.0 - libm::pow(settings.beta1, step as f64);
        let correction2 = 1.0 - libm::pow(settings.beta2, step as f64);
        Self {
            keep: (1.0 - settings.lr * settings.weight_decay) as f32,
            step_size: (settings.lr / correction1) as f32,
            root2: correction2.sqrt() as f32,
            eps: settings.eps as f32,
            beta1: settings.beta1 as f32,
            beta2: settings.beta2 as f32,
            rest1: (1.0 - settings.beta1) as f32,
            rest2: (1.0 - settings.beta2) as f32,
        }
    }
}
