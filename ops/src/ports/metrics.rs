//! Metrics: the numbers that a step reports.

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

/// What a [`Metric`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// One number for the step.
    Number,
    /// One number a sample.
    PerSample,
    /// One text a sample.
    Texts,
}

impl MetricKind {
    /// For people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Number => "number",
            Self::PerSample => "number a sample",
            Self::Texts => "text a sample",
        }
    }
}

impl Metric {
    /// What it holds.
    pub fn kind(&self) -> MetricKind {
        match self {
            Self::Number(_) => MetricKind::Number,
            Self::PerSample(_) => MetricKind::PerSample,
            Self::Texts(_) => MetricKind::Texts,
        }
    }
}

/// A metric that an operator measures: `graph-run ops NAME` and `docs/metrics.md` show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricDoc {
    /// The name under which it is recorded.
    pub name: &'static str,
    /// What is recorded.
    pub kind: MetricKind,
    /// What it means, in a sentence or two.
    pub doc: &'static str,
}

impl MetricDoc {
    /// A number for the step.
    pub const fn number(name: &'static str, doc: &'static str) -> Self {
        Self { name, kind: MetricKind::Number, doc }
    }

    /// A number a sample.
    pub const fn per_sample(name: &'static str, doc: &'static str) -> Self {
        Self { name, kind: MetricKind::PerSample, doc }
    }

    /// A text a sample.
    pub const fn texts(name: &'static str, doc: &'static str) -> Self {
        Self { name, kind: MetricKind::Texts, doc }
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

    /// Add a metric; a name that is taken gets a number, `loss_2`.
    pub fn push_unique(&mut self, name: &str, metric: Metric) {
        let free = |name: &String| self.get(name).is_none();
        let mut names = std::iter::once(name.to_owned()).chain((2..).map(|n| format!("{name}_{n}")));
        let name = names.find(free).unwrap_or_else(|| name.to_owned());
        self.0.push((name, metric));
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
