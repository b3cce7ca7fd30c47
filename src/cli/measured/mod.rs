//! Pairs that are not trained on, as a run sums them up, and the best adapter so far.
//!
//! ```text
//!  state   what a checkpoint holds of them, so that a resumed run goes on with the same bits
//!  files   the folder of the best adapter
//! ```
//!
//! All of it is a function of the steps of a run. What counts is the checkpoint: files that a killed run has left behind, of steps
//! that run again, are put right when it is resumed.

mod files;
mod state;

pub(super) use state::of_other_pairs;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use prefgraph_nn::{Adapter, lora::AdapterFormat};
use prefgraph_ops::{
    Operator,
    operators::measure::{ALL, Measure, pooled, summary},
    ports::{Candidate, Criterion, MeasuredPair, Measurement, Metric, Metrics},
    words,
};

use super::{
    Failure,
    trained::{check_adapter, origin},
};
use crate::{
    checkpoint::{Checkpoint, Kept},
    folder::{FolderError, RunFolder},
    graph::{Endpoint, Graph},
    plan::Plan,
};

/// Every node that measures, by its id.
#[derive(Debug, Default)]
pub(super) struct Measurements(BTreeMap<String, Measured>);

/// What one node has measured.
#[derive(Debug, Default)]
struct Measured {
    /// Of the best adapter, in the folder of the run.
    folder: String,
    /// The adapter that the node reads, if it reads one.
    adapter: Option<Endpoint>,
    /// The newest parts: those that may still belong to a measurement.
    parts: Vec<Part>,
    /// Of the measurements that are compared.
    compared: Compared,
    /// Is there another best adapter than its folder has, or none any more?
    changed: bool,
    /// The step of the best adapter that the run was resumed with.
    recalled: Option<u64>,
    /// That step, once the adapter can no longer be compared: its folder is kept under another name.
    aside: Option<u64>,
}

/// What a step has measured.
#[derive(Clone, Debug, PartialEq)]
struct Part {
    step: u64,
    /// Steps of a measurement.
    over: u64,
    pairs: Arc<[MeasuredPair]>,
}

/// Measurements of the same pairs by the same criterion.
#[derive(Clone, Debug, Default)]
struct Compared {
    /// Of the pairs, their times and the criterion: another one is not comparable.
    subject: u64,
    count: u64,
    last: Option<Point>,
    best: Option<Best>,
}

/// What is compared of a measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Point {
    /// Steps that had been made.
    made: u64,
    value: f64,
}

/// The best measurement and its adapter.
#[derive(Clone, Debug)]
struct Best {
    at: Point,
    criterion: Criterion,
    summary: Metrics,
    /// In the host's memory.
    adapter: Adapter,
    formats: Vec<AdapterFormat>,
}

impl Measurements {
    /// Those of a run of this graph that has not begun.
    pub fn new(graph: &Graph) -> Self {
        let nodes: Vec<_> = graph.nodes().filter(|(_, node)| node.op.name() == Measure::NAME).collect();
        let alone = nodes.len() == 1;
        let measured = nodes.into_iter().map(|(_, node)| {
            let folder = if alone { "best".to_owned() } else { format!("best-{}", node.id) };
            let adapter = node.wires.first().and_then(|wires| wires.first()).copied();
            (node.id.clone(), Measured { folder, adapter, ..Measured::default() })
        });
        Self(measured.collect())
    }

    /// Go on from what a checkpoint holds.
    pub fn recall(
        &mut self,
        graph: &Graph,
        plan: &Plan,
        kept: &BTreeMap<String, Kept>,
    ) -> Result<(), Failure> {
        for (node, measured) in &mut self.0 {
            if let Some(kept) = kept.get(node) {
                measured.recall(node, graph, plan, kept)?;
            }
        }
        Ok(())
    }

    /// For a checkpoint after so many steps.
    pub fn kept(&self, made: u64) -> Result<BTreeMap<String, Kept>, String> {
        let kept = self.0.iter().filter_map(|(node, measured)| {
            let kept = measured.kept(made).transpose()?;
            Some(kept.map(|kept| (node.clone(), kept)))
        });
        kept.collect()
    }

    /// A node has measured a part: the sums, if it completes a measurement. An error if the adapter that would be the best is out of
    /// range.
    pub fn observe(&mut self, node: &str, step: u64, part: &Measurement) -> Result<Metrics, String> {
        self.0.get_mut(node).map_or_else(|| Ok(Metrics::default()), |measured| measured.observe(step, part))
    }

    /// Write the best adapters that are others than their folders have, and remove those that are none any more.
    pub fn write_changed(
        &mut self,
        folder: &RunFolder,
        origin: &[(String, String)],
    ) -> Result<(), FolderError> {
        for measured in self.0.values_mut().filter(|measured| measured.changed) {
            files::keep_aside(measured, folder)?;
            files::write(measured, folder, origin)?;
            measured.changed = false;
        }
        Ok(())
    }

    /// Have the files of the best adapters be those of the steps that were made; returns the folders that were put right.
    pub fn put_right(
        &self,
        folder: &RunFolder,
        origin: &[(String, String)],
    ) -> Result<Vec<String>, FolderError> {
        let mut righted = Vec::new();
        for measured in self.0.values() {
            if !files::are_right(measured, folder)? {
                files::write(measured, folder, origin)?;
                righted.push(measured.folder.clone());
            }
        }
        Ok(righted)
    }

    /// What the run says of each at its end, or when it is interrupted, after so many steps.
    pub fn sentences(&self, folder: &Path, made: u64) -> Vec<String> {
        self.0.values().filter_map(|measured| measured.sentence(folder, made)).collect()
    }
}

/// Have the files of a complete run's best adapters be what its checkpoint says; returns the folders that were put right.
pub(super) fn complete_best(
    folder: &RunFolder,
    graph: &Graph,
    plan: &Plan,
    checkpoint: &Checkpoint,
) -> Result<Vec<String>, Failure> {
    let mut measurements = Measurements::new(graph);
    measurements.recall(graph, plan, &checkpoint.kept)?;
    measurements.put_right(folder, &origin(graph)).map_err(Failure::new)
}

impl Measured {
    fn observe(&mut self, step: u64, part: &Measurement) -> Result<Metrics, String> {
        let over = part.over;
        self.parts.retain(|p| p.step < step && p.step + p.over.max(over) > step);
        self.parts.push(Part { step, over, pairs: part.pairs.clone() });
        let own: Vec<&Part> = self.parts.iter().filter(|p| p.step + over > step).collect();
        // A run may be shorter than a measurement.
        if !part.ends || (own.len() as u64) < over {
            return Ok(Metrics::default());
        }
        let pairs = pooled(own.into_iter().map(|p| (p.step, &*p.pairs)), over);
        let sums = summary(part.process, part.levels, &pairs);
        if let Some(candidate) = &part.best {
            let subject = subject(candidate.criterion, &pairs);
            let known = self.compared.best.as_ref().map(|best| best.at.made);
            // Where a row of steps does not measure all pairs, every measurement is of others: only what the run began with is kept.
            if subject != self.compared.subject && known.is_some() && known == self.recalled {
                self.aside = known;
            }
            self.changed |= self.compared.observe(step + 1, subject, candidate, &sums)?;
        }
        let prefix = if part.prefix.is_empty() { String::new() } else { format!("{}.", part.prefix) };
        let named = sums.0.into_iter().map(|(name, metric)| (format!("{prefix}{name}"), metric));
        Ok(Metrics(named.collect()))
    }

    /// Where a best adapter of this step is kept that can no longer be compared.
    fn folder_aside(&self, step: u64) -> String {
        format!("{}-step-{step}", self.folder)
    }

    fn sentence(&self, folder: &Path, made: u64) -> Option<String> {
        let Compared { count, last, best, .. } = &self.compared;
        let last = last.as_ref().filter(|_| self.adapter.is_some())?;
        let measurements = words::count(*count, "measurement");
        let aside = self.aside.map_or_else(String::new, |step| {
            format!(
                "; what was best by another criterion or of other pairs is in `{}`",
                self.folder_aside(step)
            )
        });
        Some(match best {
            Some(Best { at, criterion, summary, adapter: _, formats }) => {
                let file = formats.first().map(|format| format.file_name("adapter")).unwrap_or_default();
                let path = folder.join(&self.folder).join(file);
                let frozen = frozen(*criterion, summary);
                let of_frozen = frozen.map_or_else(String::new, |frozen| {
                    let none = if at.value < frozen { "" } else { ", and none was better than that" };
                    format!("; the frozen network {}{none}", shown(*criterion, frozen))
                });
                let barred = match last.value < at.value {
                    true => ", with an error on winners above the frozen network's",
                    false => "",
                };
                format!(
                    "best step {} of {made} by {} {} (last {}{barred}{of_frozen}), of {measurements}: `{}`{aside}",
                    at.made,
                    name(*criterion),
                    shown(*criterion, at.value),
                    shown(*criterion, last.value),
                    path.display()
                )
            }
            None => format!(
                "no best step: the error on held-out winners, under the mask (`w_diff`) or of whole pictures (`plain_w_diff`), was above the frozen \
                 network's or not finite in {}{aside}",
                if *count == 1 { "the only measurement".into() } else { format!("all {count} measurements") }
            ),
        })
    }
}

impl Compared {
    /// Another measurement; is there another best one, or none any more?
    fn observe(
        &mut self,
        made: u64,
        subject: u64,
        candidate: &Candidate,
        sums: &Metrics,
    ) -> Result<bool, String> {
        let had = self.best.is_some();
        if subject != self.subject {
            *self = Self { subject, ..Self::default() };
        }
        let value = candidate.criterion.value(sums).unwrap_or(f64::NAN);
        self.count += 1;
        self.last = Some(Point { made, value });
        // The earlier of two that are equal.
        let better = self.best.as_ref().is_none_or(|best| value < best.at.value);
        if !better || !candidate.criterion.admits(sums) {
            return Ok(had && self.best.is_none());
        }
        check_adapter(&candidate.adapter)?;
        // And what a run writes in any case, where the stated formats do not hold all of it.
        let mut formats = candidate.formats.clone();
        let any = candidate.adapter.layout.formats();
        formats.extend(any.into_iter().filter(|format| !candidate.formats.contains(format)));
        let values = candidate.adapter.values.host().map_err(|e| e.to_string())?;
        self.best = Some(Best {
            at: Point { made, value },
            criterion: candidate.criterion,
            summary: sums.clone(),
            adapter: Adapter {
                layout: candidate.adapter.layout.clone(),
                values: prefgraph_nn::device::DeviceVec::Host(values),
            },
            formats,
        });
        Ok(true)
    }
}

/// Of what a criterion is compared: measurements of other pairs, or at other times, have other values.
fn subject(criterion: Criterion, pairs: &[&MeasuredPair]) -> u64 {
    let mut hash = blake3::Hasher::new();
    hash.update(criterion.name().as_bytes());
    for pair in pairs {
        hash.update(&(pair.id.len() as u64).to_le_bytes());
        hash.update(pair.id.as_bytes());
        hash.update(&pair.time.to_bits().to_le_bytes());
    }
    let bytes = hash.finalize();
    bytes.as_bytes().iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// What is compared, in words.
fn name(criterion: Criterion) -> &'static str {
    match criterion {
        Criterion::Loss => "held-out loss",
        Criterion::Winner => "the held-out winners' error against the frozen network's,",
    }
}

/// What the frozen network has by a criterion, where it is not 0 by what is compared.
fn frozen(criterion: Criterion, summary: &Metrics) -> Option<f64> {
    match (criterion, summary.get(&format!("{ALL}.ref_loss"))) {
        (Criterion::Loss, Some(Metric::Number(value))) => Some(*value),
        _ => None,
    }
}

fn shown(criterion: Criterion, value: f64) -> String {
    match criterion {
        Criterion::Loss => format!("{value:.4}"),
        Criterion::Winner => format!("{value:+.2e}"),
    }
}

/// The means over all pairs of a summary, and over those of each level, by name.
fn groups(summary: &Metrics) -> Vec<(&str, Vec<(&str, f64)>)> {
    let mut groups: Vec<(&str, Vec<(&str, f64)>)> = Vec::new();
    for (name, metric) in &summary.0 {
        let (Some((group, figure)), Metric::Number(value)) = (name.rsplit_once('.'), metric) else {
            continue;
        };
        match groups.iter_mut().find(|(name, _)| *name == group) {
            Some((_, figures)) => figures.push((figure, *value)),
            None => groups.push((group, vec![(figure, *value)])),
        }
    }
    debug_assert!(groups.first().is_none_or(|(name, _)| *name == ALL));
    groups
}

#[cfg(test)]
mod tests;
