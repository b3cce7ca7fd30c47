//! AdamW (Loshchilov and Hutter 2019): its settings, and the numbers of one update.

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

/// One update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Settings.
    pub settings: AdamW,
    /// Its number, counted from 1.
    pub number: u64,
    /// What the gradient is multiplied by: less than 1 where it is clipped.
    pub factor: f32,
}

/// One update, with the corrections of the moments worked out: every device computes with these same numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub factor: f32,
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
    /// If the update's number is zero.
    pub(crate) fn new(&Update { settings, number, factor }: &Update) -> Self {
        assert!(number > 0, "updates of AdamW count from 1");
        let correction1 = 1.0 - libm::pow(settings.beta1, number as f64);
        let correction2 = 1.0 - libm::pow(settings.beta2, number as f64);
        Self {
            factor,
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
