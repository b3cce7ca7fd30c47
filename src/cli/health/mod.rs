//! The health of a run: warnings along the way, each once, and a summary at the end.
//!
//! ```text
//!  change     how errors have changed, over some pairs or some steps
//!  held_out   the newest measurement of every held-out pair
//!  signs      what the numbers of a moment are signs of, with all thresholds
//!  advice     what to say of a sign, with the settings that help
//!  summary    what a run has achieved, in a few lines
//!  history    the same as numbers, along the run
//! ```
//!
//! Everything here follows from the metrics of steps: it changes nothing and costs nothing.

mod advice;
mod change;
mod held_out;
mod history;
mod signs;
mod summary;

use std::collections::{BTreeMap, BTreeSet};

use prefgraph_ops::ports::{Metric, Metrics};

pub(super) use self::history::{Better, Measure, Point, measures_of};
use self::{
    change::{Change, Pair, Steps},
    held_out::HeldOut,
    signs::{LOSS_WINDOW, Moment, Sign, WINDOW},
};

use super::recent::{Mean, RecentValues};
use crate::graph::Graph;

/// Held-out pairs below which nothing is made of their mean on the way.
const ENOUGH_PAIRS: usize = 8;

/// Names of the nodes whose settings an advice is about.
#[derive(Clone, Debug)]
struct Names {
    /// The node that moves the adapter.
    update: String,
    /// The node that gives the loss.
    loss: String,
}

impl Names {
    fn of(graph: &Graph) -> Self {
        let update = graph.nodes().find(|(_, node)| node.op.name() == "lora-update");
        Self {
            update: update.map_or_else(|| "update".into(), |(_, node)| node.id.clone()),
            loss: graph.loss().map_or_else(|| "loss".into(), |at| graph[at.node].id.clone()),
        }
    }
}

/// Metrics of which the last value counts.
#[derive(Clone, Copy, Debug, Default)]
struct Latest {
    updates: Option<f64>,
    travel: Option<f64>,
    /// The largest so far.
    gradient: Option<f64>,
    ref_loss: Option<f64>,
    /// The highest so far: a schedule ends at zero.
    lr: f64,
}

/// The numbers of a run, as far as its health is to be read off them.
pub(super) struct Health {
    names: Names,
    /// Under the mask, if there is one.
    trained: Steps,
    /// Of whole pictures, where there is a mask.
    whole: Steps,
    gradient_factor: RecentValues,
    logit_size: RecentValues,
    first_loss: RecentValues,
    recent_loss: RecentValues,
    loss: RecentValues,
    latest: Latest,
    held_out: BTreeMap<String, HeldOut>,
    said: BTreeSet<Sign>,
}

impl Health {
    /// Of a run of this graph.
    pub fn new(graph: &Graph) -> Self {
        Self {
            names: Names::of(graph),
            trained: Steps::new(WINDOW),
            whole: Steps::new(WINDOW),
            gradient_factor: RecentValues::new(WINDOW),
            logit_size: RecentValues::new(WINDOW),
            first_loss: RecentValues::new(LOSS_WINDOW),
            recent_loss: RecentValues::new(LOSS_WINDOW),
            loss: RecentValues::new(WINDOW),
            latest: Latest::default(),
            held_out: BTreeMap::new(),
            said: BTreeSet::new(),
        }
    }

    /// A step from before the run was resumed, from its line of metrics.jsonl: what was said of it then is not said again.
    pub fn recall(&mut self, line: &serde_json::Value) {
        if let Some((step, metrics)) = recorded(line) {
            self.observe(step, &metrics);
        }
    }

    /// The run has made all its steps, the last of which end a measurement.
    pub fn complete(&mut self) {
        self.held_out.values_mut().for_each(HeldOut::settle);
    }

    /// Held-out pairs are others from now on: what was measured of those before is not told with theirs.
    pub fn forget_held_out(&mut self) {
        self.held_out.clear();
    }

    /// A step has finished. What is to be said of it now: every sign that was not there before.
    pub fn observe(&mut self, step: u64, metrics: &Metrics) -> Vec<String> {
        let mean = |name: &str| metrics.get(name).and_then(Metric::mean).filter(|v| v.is_finite());
        for (steps, w, l) in
            [(&mut self.trained, "w_diff", "l_diff"), (&mut self.whole, "plain_w_diff", "plain_l_diff")]
        {
            if let Some(change) = change_of_a_step(metrics, w, l) {
                steps
                    .push(Pair { w_diff: change.w_diff.value, l_diff: change.l_diff.value }, change.accuracy);
            }
        }
        mean("gradient_factor").into_iter().for_each(|factor| self.gradient_factor.push(factor));
        metrics.get("logit").and_then(mean_size).into_iter().for_each(|size| self.logit_size.push(size));
        if let Some(loss) = mean("loss") {
            if self.first_loss.full().is_none() {
                self.first_loss.push(loss);
            }
            self.recent_loss.push(loss);
            self.loss.push(loss);
        }
        let latest = &mut self.latest;
        latest.updates = mean("update").or(latest.updates);
        latest.travel = mean("travel").or(latest.travel);
        latest.gradient =
            mean("grad_norm").map(|norm| norm.max(latest.gradient.unwrap_or(0.0))).or(latest.gradient);
        latest.ref_loss = mean("ref_loss").or(latest.ref_loss);
        latest.lr = latest.lr.max(mean("lr").unwrap_or(0.0));
        HeldOut::observe(&mut self.held_out, step, metrics);
        let signs = Sign::of(&self.moment(step));
        let new: Vec<Sign> = signs.into_iter().filter(|sign| self.said.insert(*sign)).collect();
        new.into_iter().map(|sign| self.advice(sign)).collect()
    }

    /// What is known at this step.
    fn moment(&self, step: u64) -> Moment {
        let value = |window: &RecentValues| window.full().map(|m| m.value);
        // A set is read batch by batch: only between two measurements are all of its pairs as new as each other.
        let settled = |h: &&HeldOut| h.step() < step && h.len() >= ENOUGH_PAIRS;
        Moment {
            loss: value(&self.recent_loss),
            first_loss: self.latest.ref_loss.or(value(&self.first_loss)),
            trained: self.trained.full(),
            whole: self.whole.full(),
            gradient_factor: value(&self.gradient_factor),
            logit_size: value(&self.logit_size),
            updates: self.latest.updates,
            travel: self.latest.travel,
            gradient: self.latest.gradient,
            held_out: self.held_out.values().filter(settled).flat_map(HeldOut::changes).collect(),
        }
    }
}

/// The step and the metrics of a line of metrics.jsonl.
fn recorded(line: &serde_json::Value) -> Option<(u64, Metrics)> {
    let (step, fields) = (line["step"].as_u64()?, line.as_object()?);
    let metric = |value: &serde_json::Value| match value {
        serde_json::Value::Number(number) => number.as_f64().map(Metric::Number),
        serde_json::Value::Array(all) => {
            let numbers = all.iter().map(serde_json::Value::as_f64).collect::<Option<Vec<f64>>>();
            let texts =
                || all.iter().map(|text| text.as_str().map(str::to_owned)).collect::<Option<Vec<String>>>();
            numbers.map(Metric::PerSample).or_else(|| texts().map(Metric::Texts))
        }
        _ => None,
    };
    let metrics = fields.iter().filter_map(|(name, value)| Some((name.clone(), metric(value)?)));
    Some((step, Metrics(metrics.collect())))
}

/// What the batch of a step says; `None` where it is not measured, or holds what is not finite.
fn change_of_a_step(metrics: &Metrics, w: &str, l: &str) -> Option<Change> {
    let (Metric::PerSample(w), Metric::PerSample(l)) = (metrics.get(w)?, metrics.get(l)?) else {
        return None;
    };
    let pairs: Vec<Pair> = w.iter().zip(l).map(|(w, l)| Pair { w_diff: *w, l_diff: *l }).collect();
    let finite = pairs.iter().all(|p| p.w_diff.is_finite() && p.l_diff.is_finite());
    if finite { Change::of(pairs.into_iter()) } else { None }
}

/// Mean over samples of the size of a metric.
fn mean_size(metric: &Metric) -> Option<f64> {
    let Metric::PerSample(values) = metric else { return None };
    Mean::of(values.iter().map(|x| x.abs())).map(|m| m.value).filter(|v| v.is_finite())
}
