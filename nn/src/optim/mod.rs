//! The optimiser: AdamW (Loshchilov and Hutter 2019) and clipping by the global norm.
//!
//! An update runs where the gradient lives, and what it changes moves there: the state of a training follows its network.

mod values;

use crate::{
    cpu::Cpu,
    device::{DeviceVec, Update},
    error::{Error, Result},
    lora::{Adapter, AdapterGrad},
};

pub use crate::device::AdamW;

impl Default for AdamW {
    fn default() -> Self {
        Self { lr: 1e-5, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

impl AdamW {
    /// Are the settings in their ranges?
    ///
    /// # Errors
    /// Naming the setting that is not.
    pub fn check(&self) -> Result<()> {
        let decay = |name, value| (name, value, (0.0..1.0).contains(&value), "in [0, 1)");
        let positive =
            |name, value: f64| (name, value, value >= 0.0 && value.is_finite(), "finite and at least 0");
        for (name, value, good, range) in [
            positive("lr", self.lr),
            decay("beta1", self.beta1),
            decay("beta2", self.beta2),
            // While B is zero, A's gradient and moments are zero: 0 / (0 + eps), in f32.
            (
                "eps",
                self.eps,
                self.eps as f32 > 0.0 && self.eps.is_finite(),
                "finite and above 0 as a number of 32 bits",
            ),
            positive("weight_decay", self.weight_decay),
        ] {
            if !good {
                return Err(Error::Setting(format!("{name} of AdamW is {value}: expected {range}")));
            }
        }
        Ok(())
    }
}

/// What AdamW remembers: running means of the gradient and of its square, and the number of updates.
#[derive(Clone, Debug)]
pub struct OptimizerState {
    /// Running mean of the gradient.
    pub first_moment: DeviceVec,
    /// Running mean of the squared gradient.
    pub second_moment: DeviceVec,
    /// Updates made so far.
    pub updates: u64,
}

impl OptimizerState {
    /// Before the first update of this many values.
    pub fn new(len: usize) -> Self {
        let zeros = DeviceVec::from(vec![0.0; len]);
        Self { first_moment: zeros.clone(), second_moment: zeros, updates: 0 }
    }

    /// One update of the adapter. Values that nobody else holds are changed in place, others are copied first.
    ///
    /// # Errors
    /// If settings are out of their ranges, or adapter, gradient and state have different layouts; if a device fails.
    pub fn step(
        &mut self,
        cpu: &Cpu,
        settings: &AdamW,
        adapter: &mut Adapter,
        gradient: &AdapterGrad,
    ) -> Result<()> {
        self.step_scaled(cpu, settings, adapter, (gradient, 1.0))
    }

    /// The same with a gradient times a factor, that of [`clip_factor`]: a gradient that others hold is not copied for it.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn step_scaled(
        &mut self,
        cpu: &Cpu,
        settings: &AdamW,
        adapter: &mut Adapter,
        (gradient, factor): (&AdapterGrad, f32),
    ) -> Result<()> {
        settings.check()?;
        if gradient.layout != adapter.layout {
            return Err(Error::Setting("the gradient belongs to an adapter of another layout".into()));
        }
        let len = adapter.values.len();
        for (what, found) in [
            ("the gradient", gradient.values.len()),
            ("the first moment", self.first_moment.len()),
            ("the second moment", self.second_moment.len()),
        ] {
            if found != len {
                return Err(Error::shape(format!("values of {what}"), len, found));
            }
        }
        let moments = [&mut self.first_moment, &mut self.second_moment];
        let update = Update { settings: *settings, number: self.updates + 1, factor };
        values::adamw(cpu, &update, &mut adapter.values, &gradient.values, moments)?;
        self.updates += 1;
        Ok(())
    }
}

impl AdapterGrad {
    /// The L2 norm over all factors, summed in f64.
    ///
    /// # Errors
    /// If the device of the values fails.
    pub fn norm(&self, cpu: &Cpu) -> Result<f64> {
        Ok(self.values.sum_of_squares(cpu)?.sqrt())
    }

    /// Scale so that the norm is at most `limit` (PyTorch's `clip_grad_norm_`). Returns the norm before.
    ///
    /// # Errors
    /// If the device of the values fails.
    pub fn clip(&mut self, cpu: &Cpu, limit: f64) -> Result<f64> {
        let norm = self.norm(cpu)?;
        let factor = clip_factor(norm, limit);
        if factor < 1.0 {
            self.values.scale(cpu, factor)?;
        }
        Ok(norm)
    }
}

/// What a gradient of this norm is multiplied by so that its norm is at most `limit`, which is positive: at most 1.
pub fn clip_factor(norm: f64, limit: f64) -> f32 {
    // PyTorch's constant, which keeps a norm of zero from dividing by zero.
    (limit / (norm + 1e-6)).min(1.0) as f32
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{linears::LinearLayout, lora::AdapterLayout, models::flux::NAMES};

    fn layout() -> Arc<AdapterLayout> {
        let modules = vec![LinearLayout { name: "a".into(), inputs: 2, outputs: 1, window: None }];
        Arc::new(AdapterLayout::of_factors(&NAMES, modules, 1, 1.0))
    }

    #[test]
    fn two_steps_are_those_of_the_formula() {
        let device = Cpu::new(1).unwrap();
        let settings = AdamW { lr: 0.1, weight_decay: 0.5, ..AdamW::default() };
        let mut adapter = Adapter { layout: layout(), values: vec![1.0, -2.0, 0.0].into() };
        let gradients = [[0.5f32, -0.25, 0.0], [0.1, 0.3, 0.0]];
        let mut state = OptimizerState::new(3);
        let mut expected = [1.0f64, -2.0, 0.0];
        let (mut m, mut v) = ([0.0f64; 3], [0.0f64; 3]);
        for (step, g) in gradients.iter().enumerate() {
            let gradient = AdapterGrad { layout: layout(), values: g.to_vec().into() };
            state.step(&device, &settings, &mut adapter, &gradient).unwrap();
            for i in 0..3 {
                let g = f64::from(g[i]);
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.999 * v[i] + 0.001 * g * g;
                let n = step as i32 + 1;
                let unbiased = (m[i] / (1.0 - 0.9f64.powi(n)), v[i] / (1.0 - 0.999f64.powi(n)));
                expected[i] = expected[i] * (1.0 - 0.1 * 0.5) - 0.1 * unbiased.0 / (unbiased.1.sqrt() + 1e-8);
            }
        }
        assert_eq!(state.updates, 2);
        for (found, expected) in adapter.values.host().unwrap().iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < 1e-6, "{found} {expected}");
        }
    }

    #[test]
    fn clipping_scales_only_what_is_too_long() {
        let device = Cpu::new(1).unwrap();
        let mut gradient = AdapterGrad { layout: layout(), values: vec![3.0, 0.0, 4.0].into() };
        assert_eq!(gradient.clip(&device, 10.0).unwrap(), 5.0);
        assert_eq!(*gradient.values.host().unwrap(), [3.0, 0.0, 4.0]);
        assert_eq!(gradient.clip(&device, 1.0).unwrap(), 5.0);
        assert!((gradient.norm(&device).unwrap() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn an_update_with_a_factor_has_the_bits_of_one_after_clipping() {
        let device = Cpu::new(1).unwrap();
        let gradient = || AdapterGrad { layout: layout(), values: vec![0.3, -7.0, 4.1].into() };
        let run = |gradient: AdapterGrad, factor| {
            let mut adapter = Adapter { layout: layout(), values: vec![1.0, -2.0, 0.5].into() };
            let mut state = OptimizerState::new(3);
            let settings = AdamW { lr: 0.1, eps: 1.0, ..AdamW::default() };
            state.step_scaled(&device, &settings, &mut adapter, (&gradient, factor)).unwrap();
            [adapter.values, state.first_moment, state.second_moment].map(|v| v.host().unwrap())
        };
        let mut clipped = gradient();
        let norm = clipped.clip(&device, 0.7).unwrap();
        let factor = clip_factor(norm, 0.7);
        assert!(factor < 0.1);
        assert_eq!(run(gradient(), factor), run(clipped, 1.0));
        assert_ne!(run(gradient(), factor), run(gradient(), 1.0));
        assert_eq!(clip_factor(0.0, 0.7), 1.0);
    }

    #[test]
    fn a_setting_out_of_its_range_is_named() {
        let error = AdamW { beta2: 1.0, ..AdamW::default() }.check().unwrap_err().to_string();
        assert!(error.contains("beta2") && error.contains("[0, 1)"), "{error}");
        assert!(AdamW { lr: f64::NAN, ..AdamW::default() }.check().is_err());
    }
}
