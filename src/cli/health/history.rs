//! What a run has measured along its way, as numbers: the same means as those of its summary.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use prefgraph_ops::ports::Metric;

use super::{
    change::{Change, Pair, Steps},
    change_of_a_step,
    held_out::HeldOut,
    recorded,
    signs::WINDOW,
};
use crate::{
    cli::recent::{Mean, RecentValues},
    folder::{FolderError, Survey},
};

/// Which way is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Better {
    Higher,
    Lower,
}

/// A measurement after so many steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cli) struct Point {
    pub steps: u64,
    pub mean: Mean,
}

/// One thing that was measured again and again.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Measure {
    pub name: String,
    pub better: Better,
    pub points: Vec<Point>,
}

impl Measure {
    /// The last measurement.
    pub fn last(&self) -> Option<Point> {
        self.points.last().copied()
    }

    /// The best of all; the first of several.
    pub fn best(&self) -> Option<Point> {
        let sign = if self.better == Better::Higher { -1.0 } else { 1.0 };
        let finite = self.points.iter().filter(|p| p.mean.value.is_finite());
        finite.min_by(|a, b| (sign * a.mean.value).total_cmp(&(sign * b.mean.value))).copied()
    }
}

/// The measurements of one run.
pub(in crate::cli) struct History {
    loss: RecentValues,
    trained: Steps,
    held_out: BTreeMap<String, HeldOut>,
    /// Of those, which are being measured: a set is read batch by batch, in steps that follow each other.
    open: BTreeSet<String>,
    steps: u64,
    measures: Vec<Measure>,
}

impl Default for History {
    fn default() -> Self {
        Self {
            loss: RecentValues::new(WINDOW),
            trained: Steps::new(WINDOW),
            held_out: BTreeMap::new(),
            open: BTreeSet::new(),
            steps: 0,
            measures: Vec::new(),
        }
    }
}

/// What the run in a folder has measured, and how many steps it has made.
///
/// # Errors
/// If its metrics cannot be read.
pub(in crate::cli) fn measures_of(folder: &Path) -> Result<(Vec<Measure>, u64), FolderError> {
    let (mut history, mut steps) = (History::default(), 0);
    let mut line = |line: &serde_json::Value| {
        steps = line["step"].as_u64().map_or(steps, |step| step + 1);
        history.line(line);
    };
    Survey::of(folder, u64::MAX, &mut line)?;
    Ok((history.measures(), steps))
}

impl History {
    /// The next line of metrics.jsonl.
    pub fn line(&mut self, line: &serde_json::Value) {
        let Some((step, metrics)) = recorded(line) else { return };
        let mut measured = BTreeMap::new();
        HeldOut::observe(&mut measured, step, &metrics);
        let ended: Vec<String> = self.open.iter().filter(|p| !measured.contains_key(*p)).cloned().collect();
        ended.iter().for_each(|prefix| self.close(prefix));
        HeldOut::observe(&mut self.held_out, step, &metrics);
        self.open.extend(measured.into_keys());
        self.steps = step + 1;
        if let Some(loss) = metrics.get("loss").and_then(Metric::mean).filter(|loss| loss.is_finite()) {
            self.loss.push(loss);
            self.add("loss", Better::Lower, self.loss.mean());
        }
        if let Some(change) = change_of_a_step(&metrics, "w_diff", "l_diff") {
            self.trained
                .push(Pair { w_diff: change.w_diff.value, l_diff: change.l_diff.value }, change.accuracy);
            if let Some(change) = self.trained.change() {
                self.change("", change);
            }
        }
    }

    /// A set has been measured.
    fn close(&mut self, prefix: &str) {
        self.open.remove(prefix);
        if let Some(set) = self.held_out.get_mut(prefix) {
            set.settle();
        }
        for change in self.held_out.get(prefix).map(HeldOut::changes).unwrap_or_default() {
            self.change(&format!("{prefix}."), change);
        }
    }

    /// Add what has changed, under the names that metrics have; under a mask first where there is one.
    fn change(&mut self, prefix: &str, change: Change) {
        let seen = |name: &str| {
            let steps = self.steps;
            let measure = self.measures.iter().find(|m| m.name == format!("{prefix}{name}"));
            measure.and_then(Measure::last).is_some_and(|last| last.steps == steps)
        };
        // The second change of one measurement is that of whole pictures.
        let plain = if seen("w_diff") { "plain_" } else { "" };
        let accuracy = Mean { value: change.accuracy, error: f64::INFINITY };
        self.add(&format!("{prefix}{plain}w_diff"), Better::Lower, Some(change.w_diff));
        self.add(&format!("{prefix}{plain}margin"), Better::Higher, Some(change.margin));
        self.add(&format!("{prefix}{plain}accuracy"), Better::Higher, Some(accuracy));
    }

    fn add(&mut self, name: &str, better: Better, mean: Option<Mean>) {
        let Some(mean) = mean else { return };
        let point = Point { steps: self.steps, mean };
        match self.measures.iter_mut().find(|m| m.name == name) {
            Some(measure) => measure.points.push(point),
            None => self.measures.push(Measure { name: name.to_owned(), better, points: vec![point] }),
        }
    }

    /// Everything, with a set that is still being measured: those that are held out first.
    pub fn measures(mut self) -> Vec<Measure> {
        for prefix in std::mem::take(&mut self.open) {
            self.close(&prefix);
        }
        // A mean of fewer steps than a window has is none to compare, unless a run has no more.
        for measure in self.measures.iter_mut().filter(|m| !m.name.contains('.')) {
            let last = measure.points.len() - 1;
            measure.points.drain(..last.min(WINDOW - 1));
        }
        let mut measures = self.measures;
        measures.sort_by_key(|m| !m.name.contains('.'));
        measures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64, loss: f64, more: &str) -> serde_json::Value {
        serde_json::from_str(&format!("{{\"step\": {step}, \"loss\": {loss}{more}}}")).unwrap()
    }

    fn held_out(ids: &str, w: f64, l: f64) -> String {
        format!(
            ", \"held_out.id\": [\"{ids}\"], \"held_out.w_diff\": [{w}], \"held_out.l_diff\": [{l}], \
             \"held_out.plain_w_diff\": [{w}], \"held_out.plain_l_diff\": [{w}]"
        )
    }

    #[test]
    fn a_set_is_measured_once_for_all_its_batches_and_the_best_measurement_is_known() {
        let mut history = History::default();
        for step in 0..10 {
            let more = match step {
                2 => held_out("a", -1.0, 1.0),
                3 => held_out("b", -3.0, 1.0),
                8 => held_out("a", -1.0, 0.0),
                9 => held_out("b", -1.0, 0.0),
                _ => String::new(),
            };
            history.line(&line(step, 1.0 / (step + 1) as f64, &more));
        }
        let measures = history.measures();
        let names: Vec<&str> = measures.iter().map(|m| m.name.as_str()).collect();
        let sets = ["w_diff", "margin", "accuracy", "plain_w_diff", "plain_margin", "plain_accuracy"];
        assert_eq!(names[..6], sets.map(|name| format!("held_out.{name}")));
        let margin = &measures[1];
        let points: Vec<(u64, f64)> = margin.points.iter().map(|p| (p.steps, p.mean.value)).collect();
        assert_eq!(points, [(4, 3.0), (10, 1.0)]);
        assert_eq!(margin.best().unwrap().steps, 4);
        let loss = measures.iter().find(|m| m.name == "loss").unwrap();
        assert_eq!(loss.points.len(), 1, "a run shorter than a window has one mean");
    }
}
