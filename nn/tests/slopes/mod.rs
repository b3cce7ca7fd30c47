//! Derivatives by an adapter's factors, from finite differences.

use prefgraph_nn::lora::AdapterLayout;

/// The derivative of a value along the gradient of one factor, so that rounding is small beside the change.
pub struct Slope {
    /// The module, and A or B where it has both.
    pub factor: String,
    /// Norm of the factor's gradient.
    pub length: f64,
    /// What the gradient was multiplied by for a step either way.
    #[allow(dead_code, reason = "the bar of a U-Net depends on it")]
    pub step: f64,
    /// The difference of both values by twice the step.
    pub slope: f64,
}

impl Slope {
    /// What the slope should be.
    pub fn expected(&self) -> f64 {
        self.length.powi(2)
    }

    /// How far it is from that, relative to it.
    pub fn error(&self) -> f64 {
        (self.slope / self.expected() - 1.0).abs()
    }
}

/// The slope of `value` along `gradient` for every factor, and every linear that is trained whole, that has `values`; `step` follows from the norm of the factor's gradient.
pub fn along_every_factor(
    layout: &AdapterLayout,
    values: &[f32],
    gradient: &[f32],
    step: impl Fn(f64) -> f64,
    value: impl Fn(Vec<f32>) -> f64,
) -> Vec<Slope> {
    let factors = layout.modules.iter().zip(layout.ranges());
    let whole = layout.whole.iter().zip(layout.whole_ranges());
    factors
        .flat_map(|(module, (a, b))| [(format!("{} A", module.name), a), (format!("{} B", module.name), b)])
        .chain(whole.map(|(module, range)| (module.name.clone(), range)))
        .map(|(factor, range)| {
            let length = gradient[range.clone()].iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            assert!(length > 0.0, "{factor}: no derivative");
            let step = step(length);
            let moved = |sign: f64| {
                let mut values = values.to_vec();
                for i in range.clone() {
                    values[i] += (sign * step * f64::from(gradient[i])) as f32;
                }
                value(values)
            };
            let slope = (moved(1.0) - moved(-1.0)) / (2.0 * step);
            Slope { factor, length, step, slope }
        })
        .collect()
}
