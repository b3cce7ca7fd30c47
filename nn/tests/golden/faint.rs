//! Comparing the change of an adapter with a golden run, fairly to values whose gradient is near zero.

use prefgraph_nn::AdapterGrad;

/// Values whose gradient is, at some step, so near zero that rounding decides where AdamW moves them: its first steps are
/// as long as the rate whatever the size of the gradient. They have a bar of their own: no further from the golden run than
/// those steps could take them in opposite directions.
#[derive(Default)]
pub struct Faint {
    /// For every value, the rates of the steps at which its gradient was faint, summed.
    travel: Vec<f64>,
}

impl Faint {
    /// A gradient is faint below this share of the root mean square of its factor: in f32 its digits are noise.
    const SHARE: f64 = 1e-4;
    /// At most this share of all values may be read so.
    const MOST: f64 = 5e-3;

    /// Note the gradient of a step, which moves values at this rate.
    pub fn see(&mut self, gradient: &AdapterGrad, rate: f64) {
        self.travel.resize(gradient.values.len(), 0.0);
        let all = gradient.values.host().unwrap();
        for factor in gradient.layout.ranges().into_iter().flat_map(|(a, b)| [a, b]) {
            let values = &all[factor.clone()];
            let size = norm(values.iter().map(|g| f64::from(*g))) / (values.len() as f64).sqrt();
            for (travel, g) in self.travel[factor].iter_mut().zip(values) {
                // A value without any gradient is not moved by it, in any precision.
                if *g != 0.0 && f64::from(g.abs()) < Self::SHARE * size {
                    *travel += rate;
                }
            }
        }
    }

    /// Compare two changes of an adapter: values that were never faint by their relative distance, which is returned; the
    /// others one by one.
    pub fn compare(&self, found: &[f64], golden: &[f64], bar: f64) -> f64 {
        let clear: Vec<usize> = (0..found.len()).filter(|i| self.travel[*i] == 0.0).collect();
        let share = 1.0 - clear.len() as f64 / found.len() as f64;
        assert!(share <= Self::MOST, "{share} of all gradients are faint");
        let of = |values: &[f64]| clear.iter().map(|i| values[*i]).collect::<Vec<f64>>();
        let off = relative(&of(found), &of(golden));
        assert!(off <= bar, "the adapter's change is off by {off:e}");
        for (i, travel) in self.travel.iter().enumerate().filter(|(_, travel)| **travel > 0.0) {
            let (off, bar) = ((found[i] - golden[i]).abs(), 2.0 * travel + bar * golden[i].abs());
            assert!(off <= bar, "value {i}, whose gradient was faint, is off by {off:e}: at most {bar:e}");
        }
        off
    }
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|x| x * x).sum::<f64>().sqrt()
}

/// Distance of two vectors, relative to the second.
pub fn relative(found: &[f64], golden: &[f64]) -> f64 {
    assert_eq!(found.len(), golden.len());
    let distance = norm(found.iter().zip(golden).map(|(f, g)| f - g));
    distance / norm(golden.iter().copied())
}
