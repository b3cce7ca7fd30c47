//! What losses record of the samples of a batch, beside their errors: times and ids.

use crate::ports::{Metric, MetricDoc, Metrics, Process, Texts};

pub(super) const SIGMA: MetricDoc =
    MetricDoc::per_sample("sigma", "Time of a sample of a flow, in [0, 1]: the share of noise.");
pub(super) const TIMESTEP: MetricDoc =
    MetricDoc::per_sample("timestep", "Time of a sample of DDPM, 0 to 999, instead of `sigma`.");
pub(super) const ID: MetricDoc =
    MetricDoc::texts("id", "The samples of the batch, by the ids of their pairs file.");

/// Record times and ids, as far as they are connected.
pub(super) fn record(metrics: &mut Metrics, times: Option<(Process, &[f32])>, ids: Option<&Texts>) {
    if let Some((process, times)) = times {
        metrics.per_sample(process.time_name(), times.iter().map(|t| f64::from(*t)).collect());
    }
    if let Some(ids) = ids {
        metrics.0.push(("id".into(), Metric::Texts(ids.0.to_vec())));
    }
}
