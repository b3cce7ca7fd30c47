//! Scores as JSON: of every picture, of every subject, in all, and the rules that they follow.

use std::path::PathBuf;

use prefgraph_ops::operators::benchmark::BenchmarkSettings;
use serde_json::{Map, Value, json};

use super::{
    Scored,
    encoders::Encoders,
    faults,
    measure::{Against, Metric},
};
use crate::evaluate::{Interval, RESAMPLES, Resamples, Score, Tally};

/// Fields by which a report is known again.
pub(super) const REPORTED: [&str; 3] = ["preset", "rules", "departures"];

/// All that is reported.
pub(super) struct Report<'a> {
    pub ours: &'a Scored,
    pub theirs: Option<&'a (PathBuf, Scored)>,
    pub encoders: &'a Encoders,
    pub settings: &'a BenchmarkSettings,
}

/// A total, with its interval.
pub(super) struct Total {
    pub value: f64,
    pub interval: Option<Interval>,
}

/// The difference of two methods by one metric.
pub(super) struct Difference<'a> {
    pub metric: &'a str,
    pub against: Against,
    pub total: Total,
    /// Of the minima over the subjects of each picture.
    pub minimum: Total,
    /// By group: its number and the difference of its means.
    pub groups: Vec<(usize, f64)>,
    /// By picture that both have.
    pub pictures: Vec<(&'a str, f64)>,
}

fn ends(interval: Option<Interval>) -> Value {
    interval.map_or(Value::Null, |i| json!([i.low, i.high]))
}

impl Total {
    fn value(&self) -> Value {
        json!({"mean": self.value, "interval": ends(self.interval)})
    }
}

fn tallies(score: &Score, of: fn(&crate::evaluate::GroupScore) -> Tally) -> Vec<Tally> {
    score.groups.iter().map(of).collect()
}

/// The total of a metric; `None` where it has no pictures.
pub(super) fn total(metric: &Metric, resamples: &Resamples) -> Option<Total> {
    let interval = resamples.interval(&tallies(&metric.score, |g| g.tally));
    Some(Total { value: metric.score.total()?, interval })
}

/// The total of the minima over the subjects of each picture.
pub(super) fn minimum(metric: &Metric, resamples: &Resamples) -> Option<Total> {
    let interval = resamples.interval(&tallies(&metric.score, |g| g.minimum_tally));
    Some(Total { value: metric.score.minimum()?, interval })
}

impl Report<'_> {
    pub fn name_of(&self, group: usize) -> &str {
        &self.ours.survey.groups[group].name
    }

    /// Draws of the subjects that have pictures.
    pub fn resamples(&self) -> Resamples {
        let groups = self.ours.measurement.metrics.first().map_or(0, |metric| metric.score.groups.len());
        Resamples::new(groups)
    }

    /// Does a picture show several subjects?
    pub fn is_paired(&self) -> bool {
        self.ours.survey.preset.paired && !self.settings.real
    }

    /// Was something left out?
    pub fn is_incomplete(&self) -> bool {
        let others = self.theirs.is_some_and(|(_, theirs)| !theirs.survey.is_complete());
        !self.ours.survey.is_complete() || others
    }

    pub fn value(&self) -> Value {
        let (survey, measurement) = (&self.ours.survey, &self.ours.measurement);
        let resamples = self.resamples();
        let mut totals = Map::new();
        for metric in &measurement.metrics {
            totals.insert(metric.name.clone(), self.total_of(metric, &resamples));
        }
        let asked = if self.settings.real { survey.photographs.len() } else { survey.cases.len() };
        let mut value = json!({
            "preset": survey.preset.name,
            "rules": survey.preset.rules(),
            "departures": self.encoders.departures,
            "compared": if self.settings.real { "photographs with the other photographs of their subject" } else { "pictures with photographs and prompts" },
            "complete": survey.is_complete(),
            "pictures": {
                "folder": self.folder(),
                "asked_for": asked,
                "scored": measurement.ids.len(),
                "size": survey.size.map(|(height, width)| json!({"height": height, "width": width})),
                "left_out": faults::value(survey),
                "subjects_without_pictures": self.empty(),
            },
            "photographs": {
                "folder": self.settings.photographs.0,
                "count": survey.photographs.len(),
                "turned_by_exif": survey.turned,
                "files": survey.photographs.iter().map(|p| p.id.trim_start_matches("photograph/")).collect::<Vec<_>>(),
            },
            "encoders": self.encoders.report,
            "bootstrap": {"over": "subjects", "resamples": RESAMPLES, "coverage": 0.95, "interval": "percentile"},
            "total": totals,
            "subjects": self.subjects(),
            "scores": self.scores(),
        });
        if let Some((folder, theirs)) = self.theirs {
            value["compare"] = self.compare(folder, theirs);
        }
        value
    }

    fn folder(&self) -> &std::path::Path {
        let BenchmarkSettings { real, mapping, photographs, pictures, .. } = self.settings;
        match (real, mapping.is_empty()) {
            (true, _) => photographs.as_path(),
            (false, false) => mapping.as_path(),
            (false, true) => pictures.as_path(),
        }
    }

    fn empty(&self) -> Vec<&str> {
        let metric = self.ours.measurement.metrics.first();
        let there = |number: usize| metric.is_some_and(|m| m.score.groups.iter().any(|g| g.group == number));
        (0..self.ours.survey.groups.len()).filter(|n| !there(*n)).map(|n| self.name_of(n)).collect()
    }

    fn total_of(&self, metric: &Metric, resamples: &Resamples) -> Value {
        let Some(all) = total(metric, resamples) else { return Value::Null };
        let mut value = all.value();
        if let Some(lowest) = metric.score.lowest() {
            value["lowest"] = json!({"subject": self.name_of(lowest.group), "mean": lowest.mean});
        }
        if self.is_paired() && metric.against == Against::Photographs {
            value["minimum_over_subjects"] = minimum(metric, resamples).map_or(Value::Null, |m| m.value());
        }
        if let Some(nearest) = metric.nearest {
            let count = metric.pictures.len();
            value["nearest_is_of_the_same_subject"] =
                json!({"photographs": count, "hits": nearest, "share": nearest as f64 / count as f64});
        }
        value
    }

    fn subjects(&self) -> Vec<Value> {
        let metrics = &self.ours.measurement.metrics;
        let of = |(place, group): (usize, &crate::evaluate::GroupScore)| {
            let mut value = json!({"subject": self.name_of(group.group), "pictures": group.pictures});
            for metric in metrics {
                let score = &metric.score.groups[place];
                value[&metric.name] = json!({"mean": score.mean});
                if self.is_paired() && metric.against == Against::Photographs {
                    value[&metric.name]["minimum_over_subjects"] = json!(score.minimum);
                }
            }
            value
        };
        metrics.first().map_or(Vec::new(), |first| first.score.groups.iter().enumerate().map(of).collect())
    }

    fn scores(&self) -> Vec<Value> {
        let (survey, measurement) = (&self.ours.survey, &self.ours.measurement);
        let of = |(number, id): (usize, &String)| {
            let mut value = json!({"id": id});
            if let Some((case, _)) = survey.present.get(number) {
                let case = &survey.cases[*case];
                value["prompt"] = json!(case.prompt);
                value["file"] = json!(case.path);
            }
            for metric in &measurement.metrics {
                let measured = &metric.pictures[number];
                value[&metric.name] = match (&measured.by_subject[..], self.is_paired()) {
                    ([one], _) => json!(one),
                    (all, _) => {
                        let subjects = survey.groups[measured.group].subjects.iter();
                        let names = subjects.map(|s| survey.preset.subjects()[*s].name.to_owned());
                        let by_subject: Map<String, Value> =
                            names.zip(all.iter().map(|score| json!(score))).collect();
                        json!({"mean": measured.mean(), "minimum": measured.minimum(), "by_subject": by_subject})
                    }
                };
            }
            value
        };
        measurement.ids.iter().enumerate().map(of).collect()
    }

    /// Differences to another method, ours less theirs, over the pictures that both have.
    pub fn differences(&self) -> Vec<Difference<'_>> {
        let Some((_, theirs)) = self.theirs else { return Vec::new() };
        let ours = &self.ours.measurement;
        let order = self.ours.survey.preset.mean;
        let mut all = Vec::new();
        for (a, b) in ours.metrics.iter().zip(&theirs.measurement.metrics) {
            let (mut left, mut right, mut pictures) = (Vec::new(), Vec::new(), Vec::new());
            for (number, id) in ours.ids.iter().enumerate() {
                let Some(other) = theirs.measurement.ids.iter().position(|i| i == id) else { continue };
                let (mine, other) = (&a.pictures[number], &b.pictures[other]);
                pictures.push((id.as_str(), mine.mean() - other.mean()));
                left.push(mine.clone());
                right.push(other.clone());
            }
            let (left, right) = (Score::of(&left, order), Score::of(&right, order));
            let resamples = Resamples::new(left.groups.len());
            let total = |of: fn(&crate::evaluate::GroupScore) -> Tally| {
                let (left, right) = (tallies(&left, of), tallies(&right, of));
                let value = Tally::value(left.iter().copied())? - Tally::value(right.iter().copied())?;
                Some(Total { value, interval: resamples.interval_of_difference(&left, &right) })
            };
            let (Some(mean), Some(minimum)) = (total(|g| g.tally), total(|g| g.minimum_tally)) else {
                continue;
            };
            let groups = left.groups.iter().zip(&right.groups).map(|(l, r)| (l.group, l.mean - r.mean));
            let (groups, against) = (groups.collect(), a.against);
            all.push(Difference { metric: &a.name, against, total: mean, minimum, groups, pictures });
        }
        all
    }

    fn compare(&self, folder: &std::path::Path, theirs: &Scored) -> Value {
        let mut totals = Map::new();
        for difference in self.differences() {
            let higher = difference.groups.iter().filter(|(_, d)| *d > 0.0).count();
            let mut value = json!({
                "difference": difference.total.value,
                "interval": ends(difference.total.interval),
                "subjects": difference.groups.len(),
                "subjects_higher": higher,
                "by_subject": difference.groups.iter()
                    .map(|(group, d)| (self.name_of(*group).to_owned(), json!(d))).collect::<Map<_, _>>(),
                "by_picture": difference.pictures.iter()
                    .map(|(id, d)| ((*id).to_owned(), json!(d))).collect::<Map<_, _>>(),
            });
            if self.is_paired() && difference.against == Against::Photographs {
                value["minimum_over_subjects"] = json!({
                    "difference": difference.minimum.value, "interval": ends(difference.minimum.interval),
                });
            }
            totals.insert(difference.metric.to_owned(), value);
        }
        let shared =
            self.ours.measurement.ids.iter().filter(|id| theirs.measurement.ids.contains(id)).count();
        json!({
            "folder": folder,
            "complete": theirs.survey.is_complete(),
            "left_out": faults::value(&theirs.survey),
            "pictures_of_both": shared,
            "sign": "ours less theirs",
            "total": totals,
        })
    }
}
