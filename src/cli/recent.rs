//! The mean of a metric over the last steps, with its standard error.

use std::collections::VecDeque;

/// A mean of measurements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Mean {
    /// The mean.
    pub value: f64,
    /// Its standard error, as if the measurements were independent; infinite of a single one.
    pub error: f64,
}

impl Mean {
    /// Of all of these; `None` if there are none.
    pub fn of(values: impl ExactSizeIterator<Item = f64> + Clone) -> Option<Self> {
        let count = values.len() as f64;
        if values.len() == 0 {
            return None;
        }
        let value = values.clone().sum::<f64>() / count;
        let squares: f64 = values.map(|v| (v - value) * (v - value)).sum();
        let error = if count > 1.0 { (squares / (count - 1.0) / count).sqrt() } else { f64::INFINITY };
        Some(Self { value, error })
    }

    /// Is it above zero by more than so many of its standard errors?
    pub fn is_above_zero(&self, errors: f64) -> bool {
        self.value > errors * self.error
    }

    /// Is it below zero by more than so many of its standard errors?
    pub fn is_below_zero(&self, errors: f64) -> bool {
        -self.value > errors * self.error
    }
}

/// The newest values of a metric, at most so many.
#[derive(Clone, Debug)]
pub(super) struct RecentValues {
    values: VecDeque<f64>,
    length: usize,
}

impl RecentValues {
    /// For this many values.
    pub fn new(length: usize) -> Self {
        Self { values: VecDeque::with_capacity(length), length }
    }

    /// A new value; the oldest goes if there are too many.
    pub fn push(&mut self, value: f64) {
        if self.values.len() == self.length {
            self.values.pop_front();
        }
        self.values.push_back(value);
    }

    /// Their mean, however many there are.
    pub fn mean(&self) -> Option<Mean> {
        Mean::of(self.values.iter().copied())
    }

    /// Their mean, once there are as many as there can be.
    pub fn full(&self) -> Option<Mean> {
        if self.values.len() == self.length { self.mean() } else { None }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.values.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_forgets_the_oldest_and_is_full_only_when_it_is() {
        let mut window = RecentValues::new(3);
        assert_eq!(window.mean(), None);
        window.push(10.0);
        let one = window.mean().unwrap();
        assert!(one.value == 10.0 && one.error.is_infinite() && !one.is_above_zero(1.0));
        [1.0, 2.0].into_iter().for_each(|v| window.push(v));
        assert!(window.full().is_some());
        window.push(3.0);
        let mean = window.full().unwrap();
        assert_eq!((mean.value, window.len()), (2.0, 3));
        assert!((mean.error - (1.0f64 / 3.0).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn a_mean_is_off_zero_only_beyond_its_error() {
        let mean = Mean { value: 3.0, error: 1.0 };
        assert!(mean.is_above_zero(2.0) && !mean.is_above_zero(3.0) && !mean.is_below_zero(0.0));
        assert!(Mean { value: -3.0, error: 1.0 }.is_below_zero(2.0));
        let nothing = Mean { value: 0.0, error: 0.0 };
        assert!(!nothing.is_above_zero(3.0) && !nothing.is_below_zero(3.0));
    }
}
