//! Guards against writing values that training has driven out of range, which would replace good ones.

use prefgraph_nn::lora::LARGEST_FACTOR;
use prefgraph_ops::NamedState;

/// Are all values of a cell finite?
///
/// # Errors
/// Naming the first that is not.
pub fn check_finite(cell: &str, state: &NamedState) -> Result<(), String> {
    state.tensors.iter().try_for_each(|t| match beyond(&t.values, f32::MAX) {
        Some(at) => Err(format!("`{cell}`, `{}` holds {} at element {at}", t.name, t.values[at])),
        None => Ok(()),
    })
}

/// Are all factors of an adapter within [`LARGEST_FACTOR`]? `name` gives the place of a value.
///
/// # Errors
/// Naming the first that is not.
pub fn check_range(values: &[f32], name: impl Fn(usize) -> String) -> Result<(), String> {
    match beyond(values, LARGEST_FACTOR) {
        Some(at) => Err(format!("`{}` holds {:e}", name(at), values[at])),
        None => Ok(()),
    }
}

/// The place of the first value that is larger than `largest`, or NaN.
fn beyond(values: &[f32], largest: f32) -> Option<usize> {
    // Parts are searched to their end: a loop with an early exit is not vectorised.
    const PART: usize = 1 << 12;
    // False for NaN, too.
    let within = |value: f32| value.abs() <= largest;
    let good = |part: &[f32]| part.iter().fold(true, |good, v| good & within(*v));
    let start = PART * values.chunks(PART).position(|part| !good(part))?;
    values[start..].iter().position(|v| !within(*v)).map(|inside| start + inside)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prefgraph_ops::NamedTensor;

    use super::*;

    #[test]
    fn the_first_value_out_of_range_is_named() {
        let state = |values: Vec<f32>| {
            let tensor =
                NamedTensor { name: "m.a".into(), dims: vec![values.len()], values: Arc::new(values) };
            NamedState { tensors: vec![tensor], counters: vec![] }
        };
        let mut values = vec![f32::MAX; 10_000];
        assert!(check_finite("moments", &state(values.clone())).is_ok());
        values[9_999] = f32::NAN;
        let error = check_finite("moments", &state(values.clone())).unwrap_err();
        assert_eq!(error, "`moments`, `m.a` holds NaN at element 9999");
        values[5_000] = f32::INFINITY;
        assert!(check_finite("moments", &state(values)).unwrap_err().contains("inf at element 5000"));
    }

    #[test]
    fn a_factor_that_is_finite_and_absurd_is_named_by_its_linear() {
        let name = |at: usize| format!("linear {at}");
        assert!(check_range(&[0.0, -1e18], name).is_ok());
        assert_eq!(check_range(&[0.0, -1e30], name).unwrap_err(), "`linear 1` holds -1e30");
        assert!(check_range(&[f32::NAN], name).unwrap_err().contains("NaN"));
    }
}
