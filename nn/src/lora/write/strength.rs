//! Folds the scale of an adapter into its factors, for formats that cannot store alpha.

use std::sync::Arc;

use crate::{
    error::{Error, Result},
    lora::adapter::{AdapterLayout, HostAdapter},
};

/// An adapter whose alpha is the rank.
pub(super) struct Folded {
    pub adapter: HostAdapter,
    /// The largest relative rounding of a value of B; 0 where all products are exact.
    pub rounding: f64,
}

/// Multiply alpha / rank into B.
///
/// # Errors
/// If a product is too large for f32.
pub(super) fn folded(adapter: &HostAdapter) -> Result<Folded> {
    let layout = &adapter.layout;
    let rank = layout.rank as f64;
    if layout.alpha == layout.rank as f32 {
        return Ok(Folded { adapter: adapter.clone(), rounding: 0.0 });
    }
    let mut values = adapter.values.to_vec();
    let mut rounding = 0.0f64;
    for (module, (_, b)) in layout.modules.iter().zip(layout.ranges()) {
        for value in &mut values[b] {
            let exact = f64::from(*value) * f64::from(layout.alpha) / rank;
            *value = exact as f32;
            if !value.is_finite() {
                return Err(Error::Setting(format!(
                    "B of `{}` times alpha / rank, {} / {}, is too large for f32",
                    module.name, layout.alpha, layout.rank
                )));
            }
            if f64::from(*value) != exact {
                rounding = rounding.max(((f64::from(*value) - exact) / exact).abs());
            }
        }
    }
    let layout = AdapterLayout { alpha: layout.rank as f32, ..(**layout).clone() };
    Ok(Folded { adapter: HostAdapter { layout: Arc::new(layout), values: Arc::new(values) }, rounding })
}
