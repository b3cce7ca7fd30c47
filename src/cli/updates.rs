//! The loss of an update that spans several steps.

use prefgraph_ops::ports::{Metric, Metrics};

/// The loss of an update of several micro-batches: the mean of theirs.
#[derive(Clone, Debug, Default)]
pub(super) struct Updates {
    sum: f64,
    count: u64,
}

impl Updates {
    /// Count a step; returns the loss of the update if the step completes one of several micro-batches.
    pub fn step(&mut self, metrics: &Metrics) -> Option<f64> {
        let number = |name: &str| metrics.get(name).and_then(Metric::mean);
        self.add(number("micro_batch")?, number("micro_batches")?, number("loss")?)
    }

    /// Count a step from before the run was resumed, from its line of metrics.jsonl.
    pub fn recall(&mut self, line: &serde_json::Value) {
        let number = |name: &str| line.get(name)?.as_f64();
        if let (Some(batch), Some(of), Some(loss)) =
            (number("micro_batch"), number("micro_batches"), number("loss"))
        {
            self.add(batch, of, loss);
        }
    }

    fn add(&mut self, batch: f64, of: f64, loss: f64) -> Option<f64> {
        if batch <= 1.0 {
            *self = Self::default();
        }
        self.sum += loss;
        self.count += 1;
        // If a line of metrics.jsonl was lost, the mean is unknown.
        (batch >= of && self.count as f64 == batch).then(|| self.sum / self.count as f64)
    }
}
