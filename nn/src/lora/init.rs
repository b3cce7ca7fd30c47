//! What an adapter starts from: A random, B zero, so that the first pass is that of the frozen base.

use std::sync::Arc;

use super::adapter::{Adapter, AdapterLayout};

/// How A starts; B is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Init {
    /// Uniform in +-1/sqrt(inputs): PEFT's default (Kaiming uniform with a = sqrt(5)).
    #[default]
    KaimingUniform,
    /// Normal with deviation 1/rank: PEFT's `gaussian`.
    Gaussian,
}

impl Adapter {
    /// A new adapter. For the name of each module `numbers` gives a source of independent numbers, uniform in [0, 1):
    /// where it depends on the name alone, other targets leave the factors of a module as they are.
    pub fn new<N: FnMut() -> f64>(
        layout: Arc<AdapterLayout>,
        init: Init,
        mut numbers: impl FnMut(&str) -> N,
    ) -> Self {
        let mut values = vec![0.0; layout.len()];
        for (module, (a, _)) in layout.modules.iter().zip(layout.ranges()) {
            let mut uniform = numbers(&module.name);
            let a = &mut values[a];
            match init {
                Init::KaimingUniform => {
                    let bound = 1.0 / (module.inputs as f64).sqrt();
                    a.fill_with(|| (bound * (2.0 * uniform() - 1.0)) as f32);
                }
                Init::Gaussian => {
                    let deviation = 1.0 / layout.rank as f32;
                    for pair in a.chunks_mut(2) {
                        let (first, second) = normal_pair(&mut uniform);
                        let normal = [first, second];
                        // Rounded, then scaled: the bits that runs have always started from.
                        pair.iter_mut().zip(normal).for_each(|(v, n)| *v = deviation * n as f32);
                    }
                }
            }
        }
        Self { layout, values: values.into() }
    }
}

/// Two independent standard normal numbers from two that are uniform in [0, 1) (Box and Muller).
pub fn normal_pair(mut uniform: impl FnMut() -> f64) -> (f64, f64) {
    // One minus a number in [0, 1) is never zero, so the logarithm is finite.
    let radius = (-2.0 * libm::log(1.0 - uniform())).sqrt();
    let angle = std::f64::consts::TAU * uniform();
    (radius * libm::cos(angle), radius * libm::sin(angle))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{linears::LinearLayout, models::flux::NAMES};

    /// A Weyl sequence: equidistributed, which is enough for moments.
    fn uniform() -> impl FnMut() -> f64 {
        let mut at = 0.0;
        move || {
            at = (at + 0.754_877_666_246_692_7) % 1.0;
            at
        }
    }

    fn deviation_of_a(init: Init) -> f64 {
        let modules = vec![LinearLayout { name: "a".into(), inputs: 400, outputs: 3, window: None }];
        let layout = Arc::new(AdapterLayout::of_factors(&NAMES, modules, 8, 8.0));
        let adapter = Adapter::new(layout, init, |_| uniform());
        let values = adapter.values.host().unwrap();
        let (a, b) = values.split_at(8 * 400);
        assert_eq!(*b, [0.0; 24]);
        assert!(a.iter().all(|v| v.is_finite()));
        (a.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / a.len() as f64).sqrt()
    }

    #[test]
    fn factors_have_the_deviation_that_peft_gives_them_and_b_is_zero() {
        let uniform = 1.0 / (3.0f64 * 400.0).sqrt();
        assert!((deviation_of_a(Init::KaimingUniform) / uniform - 1.0).abs() < 0.02);
        assert!((deviation_of_a(Init::Gaussian) * 8.0 - 1.0).abs() < 0.05);
    }
}
