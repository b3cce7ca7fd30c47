//! Numbers for people, gathered on the way.

use crate::{
    port::{NoGrad, Port},
    shape::PortShape,
};

/// One measured quantity.
#[derive(Clone, Debug, PartialEq)]
pub enum Metric {
    /// One number for the step.
    Number(f64),
    /// One number a sample.
    PerSample(Vec<f64>),
    /// One text a sample.
    Texts(Vec<String>),
}

impl Metric {
    /// The number, or the mean over samples.
    pub fn mean(&self) -> Option<f64> {
        match self {
            Self::Number(x) => Some(*x),
            Self::PerSample(x) if !x.is_empty() => Some(x.iter().sum::<f64>() / x.len() as f64),
            _ => None,
        }
    }
}

/// Named quantities, in the order in which they were measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics(pub Vec<(String, Metric)>);

impl Metrics {
    /// The quantity of that name.
    pub fn get(&self, name: &str) -> Option<&Metric> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, m)| m)
    }

    /// Add a number for the step.
    pub fn number(&mut self, name: &str, value: f64) {
        self.0.push((name.into(), Metric::Number(value)));
    }

    /// Add one number a sample.
    pub fn per_sample(&mut self, name: &str, values: Vec<f64>) {
        self.0.push((name.into(), Metric::PerSample(values)));
    }
}

/// Shape of [`Metrics`]: nothing is known before they are measured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetricsShape;

impl PortShape for MetricsShape {
    fn describe(&self) -> String {
        "metrics".into()
    }
    fn bytes(&self) -> usize {
        1024
    }
}

impl Port for Metrics {
    type Grad = NoGrad;
    type Shape = MetricsShape;

    fn label() -> String {
        "metrics".into()
    }
    fn shape(&self) -> MetricsShape {
        MetricsShape
    }
}
