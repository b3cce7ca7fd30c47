//! What a sweep has found: `sweep.json`, and the table on standard output.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Value, json};

use super::variants::{Sweep, Variant};
use crate::cli::{
    Failure,
    health::{Better, Measure, Point, measures_of},
    tables::{self, LOSS, aligned, number, value},
};

/// The file of a sweep.
pub(super) const NAME: &str = "sweep.json";

/// The variants that have diverged, by number: why.
pub(super) type Diverged = BTreeMap<u32, String>;

/// One variant with what was measured of it.
pub(super) struct Row<'a> {
    pub variant: &'a Variant,
    /// Steps that it has made.
    pub steps: u64,
    /// Why it was left out, if it was.
    pub diverged: Option<&'a str>,
    pub measures: Vec<Measure>,
}

impl Row<'_> {
    /// Are all figures of both the same, to the bit?
    fn has_figures_of(&self, other: &Self) -> bool {
        let bits = |p: &Point| (p.steps, p.mean.value.to_bits(), p.mean.error.to_bits());
        let figures = |row: &Self| -> Vec<(String, Vec<_>)> {
            row.measures.iter().map(|m| (m.name.clone(), m.points.iter().map(bits).collect())).collect()
        };
        figures(self) == figures(other)
    }

    pub fn measure(&self, name: &str) -> Option<&Measure> {
        self.measures.iter().find(|m| m.name == name)
    }

    /// The last measurement of that name; none of a variant that has diverged.
    pub fn last(&self, name: &str) -> Option<Point> {
        self.measure(name).filter(|_| self.diverged.is_none()).and_then(Measure::last)
    }
}

/// Everything that the folders of the variants say, after so many steps.
pub(super) struct Report<'a> {
    sweep: &'a Sweep,
    pub rows: Vec<Row<'a>>,
}

impl<'a> Report<'a> {
    /// Read it from the folders of the variants in `out`.
    pub fn read(sweep: &'a Sweep, out: &Path, diverged: &'a Diverged) -> Result<Self, Failure> {
        let row = |variant: &'a Variant| {
            let (measures, steps) = measures_of(&out.join(&variant.folder)).map_err(Failure::new)?;
            let diverged = diverged.get(&variant.number).map(String::as_str);
            Ok(Row { variant, steps, diverged, measures })
        };
        Ok(Self { sweep, rows: sweep.variants.iter().map(row).collect::<Result<_, Failure>>()? })
    }

    /// Names of all measures, those of held-out pairs first; every one that some variant has.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for measure in self.rows.iter().flat_map(|row| &row.measures) {
            if !names.contains(&measure.name.as_str()) {
                names.push(&measure.name);
            }
        }
        names.sort_by_key(|name| !name.contains('.'));
        names
    }

    /// What the variants are compared by: the margin of held-out pairs where there are some, else that of training, else the
    /// loss, if it is the same function for all of them.
    pub fn chosen(&self) -> Option<&str> {
        // What is the same for all of them tells nothing: the margin is 0 where winners stand in the place of losers.
        let names: Vec<&str> = self.names().into_iter().filter(|name| self.tells(name)).collect();
        let held_out = names.iter().find(|name| name.ends_with(".margin"));
        let winners = || names.iter().find(|name| name.ends_with(".w_diff"));
        let found = held_out.or_else(|| names.iter().find(|name| **name == "margin")).or_else(winners);
        let loss = || names.iter().find(|name| **name == LOSS && self.sweep.one_loss);
        found.or_else(loss).copied()
    }

    pub fn better(&self, name: &str) -> Better {
        self.rows.iter().find_map(|row| row.measure(name)).map_or(Better::Lower, |m| m.better)
    }

    /// The row whose last measurement of that name is the best; none of losses that differ in what they are.
    pub fn best(&self, name: &str) -> Option<usize> {
        if name == LOSS && !self.sweep.one_loss {
            return None;
        }
        let sign = if self.better(name) == Better::Higher { -1.0 } else { 1.0 };
        let value = |row: &Row<'_>| row.last(name).map(|p| sign * p.mean.value).filter(|v| v.is_finite());
        let found = self.rows.iter().enumerate().filter_map(|(at, row)| Some((at, value(row)?)));
        found.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(at, _)| at)
    }

    /// The numbers of variants of which every figure is the same.
    fn without_difference(&self) -> Vec<Vec<u32>> {
        let mut groups: Vec<(&Row<'_>, Vec<u32>)> = Vec::new();
        for row in self.rows.iter().filter(|row| row.diverged.is_none() && !row.measures.is_empty()) {
            match groups.iter_mut().find(|(first, _)| first.has_figures_of(row)) {
                Some((_, numbers)) => numbers.push(row.variant.number),
                None => groups.push((row, vec![row.variant.number])),
            }
        }
        groups.into_iter().map(|(_, numbers)| numbers).filter(|numbers| numbers.len() > 1).collect()
    }

    /// Do variants differ in this measure? One alone differs from nothing.
    fn tells(&self, name: &str) -> bool {
        let mut values = self.rows.iter().filter_map(|row| Some(row.last(name)?.mean.value.to_bits()));
        let first = values.next();
        self.rows.len() == 1 || values.any(|value| Some(value) != first)
    }

    /// Has no other row the value of this one, so that it is the best of several?
    fn is_alone(&self, at: usize, name: &str) -> bool {
        let value = |row: &Row<'_>| row.last(name).map(|point| point.mean.value.to_bits());
        let others = || self.rows.iter().enumerate().filter(|(other, _)| *other != at);
        self.rows.len() > 1 && others().all(|(_, row)| value(row) != value(&self.rows[at]))
    }

    /// Measures in the order of the table and the figure.
    pub fn shown(&self) -> Vec<&str> {
        tables::shown(&self.names())
    }

    pub fn json(&self, steps: u64) -> Value {
        let variants: Vec<Value> = self.rows.iter().map(row_json).collect();
        let axes = self.sweep.overs.axes();
        let axes: Vec<Value> = axes
            .into_iter()
            .map(|(settings, values)| json!({"settings": settings, "values": values}))
            .collect();
        let chosen = self.chosen();
        let best = chosen.and_then(|name| self.best(name).filter(|at| self.is_alone(*at, name)));
        let best = best.map(|at| self.rows[at].variant.number);
        json!({
            "name": self.sweep.all.graph.name, "steps": steps, "axes": axes, "variants": variants,
            "compared_by": chosen, "best": best,
        })
    }

    /// The table for people.
    pub fn table(&self) -> String {
        let axes = self.sweep.overs.axes();
        let settings: Vec<&String> = axes.iter().flat_map(|(names, _)| names).collect();
        let mut titles: Vec<String> = vec!["#".into()];
        titles.extend(settings.iter().map(|name| (*name).clone()));
        let shown = self.shown();
        titles.extend(shown.iter().map(|name| (*name).to_owned()));
        let chosen = self
            .chosen()
            .filter(|name| self.rows.iter().any(|r| r.measure(name).is_some_and(|m| m.points.len() > 1)));
        titles.extend(chosen.map(|name| format!("best {name}")));
        let (mut lines, mut starred) = (vec![titles], false);
        for (at, row) in self.rows.iter().enumerate() {
            let mut cells = vec![row.variant.number.to_string()];
            cells.extend(row.variant.values.iter().map(|(_, value)| shortened(value)));
            for name in &shown {
                let is_best = self.best(name) == Some(at) && self.is_alone(at, name);
                starred |= is_best;
                let star = if is_best { " *" } else { "" };
                cells.push(match (row.diverged, row.last(name)) {
                    (Some(_), _) => "diverged".into(),
                    (None, Some(point)) => number(name, point.mean) + star,
                    (None, None) => "-".into(),
                });
            }
            if let Some(name) = chosen {
                let best = row.measure(name).and_then(Measure::best);
                cells.push(
                    best.map_or("-".into(), |p| format!("{} after {}", value(name, p.mean.value), p.steps)),
                );
            }
            lines.push(cells);
        }
        let mut text = aligned(&lines);
        for same in self.without_difference() {
            let numbers: Vec<String> = same.iter().map(u32::to_string).collect();
            text += &format!(
                "{} have the same figures to the last digit: what is varied between them has had no effect so far\n",
                numbers.join(", ")
            );
        }
        if starred {
            text += "* the best of its column; the others may differ from it by chance: compare with the standard errors\n";
        }
        if self.rows.len() > 1 && !self.sweep.one_loss {
            text += "the losses are of different settings and cannot be compared\n";
        }
        text
    }
}

fn row_json(row: &Row<'_>) -> Value {
    let finite = |x: f64| Some(x).filter(|x| x.is_finite());
    let point =
        |p: Point| json!({"steps": p.steps, "value": finite(p.mean.value), "error": finite(p.mean.error)});
    let measures: serde_json::Map<String, Value> = row
        .measures
        .iter()
        .map(|m| {
            let points: Option<Vec<Value>> =
                m.name.contains('.').then(|| m.points.iter().copied().map(point).collect());
            let better = if m.better == Better::Higher { "higher" } else { "lower" };
            let value = json!({
                "better": better, "last": m.last().map(point), "best": m.best().map(point), "points": points,
            });
            (m.name.clone(), value)
        })
        .collect();
    let settings: serde_json::Map<String, Value> =
        row.variant.values.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
    json!({
        "number": row.variant.number, "folder": row.variant.folder, "settings": settings, "steps": row.steps,
        "diverged": row.diverged, "measures": measures,
    })
}

/// The variants of a `sweep.json`: number, folder, and why it has diverged if it has; none where it is damaged.
pub(super) fn recorded(text: &str) -> Option<Vec<(u32, String, Option<String>)>> {
    let value: Value = serde_json::from_str(text).ok()?;
    let one = |v: &Value| {
        let number = u32::try_from(v["number"].as_u64()?).ok()?;
        Some((number, v["folder"].as_str()?.to_owned(), v["diverged"].as_str().map(str::to_owned)))
    };
    value["variants"].as_array()?.iter().map(one).collect()
}

/// A value of a setting, without the middle of a long one; of a path its end, where two of them mostly differ.
pub(super) fn shortened(text: &str) -> String {
    const MOST: usize = 25;
    let chars: Vec<char> = text.chars().collect();
    let part = |chars: &[char]| chars.iter().collect::<String>();
    match chars.len() {
        length if length <= MOST + 2 => text.to_owned(),
        length if text.contains('/') => format!("...{}", part(&chars[length - MOST..])),
        length => format!("{}...{}", part(&chars[..MOST / 2]), part(&chars[length - MOST / 2..])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_that_diverged_are_known_again() {
        let variants = json!([
            {"number": 1, "folder": "1-tau=0.1", "diverged": null},
            {"number": 7, "folder": "7-tau=0.2", "diverged": "step 3: it is so"},
        ]);
        let found = recorded(&json!({"variants": variants}).to_string());
        let second = (7, "7-tau=0.2".to_owned(), Some("step 3: it is so".to_owned()));
        assert_eq!(found, Some(vec![(1, "1-tau=0.1".to_owned(), None), second]));
        for damaged in ["{", "{}", r#"{"variants": [{"number": 1}]}"#] {
            assert_eq!(recorded(damaged), None, "{damaged}");
        }
    }

    #[test]
    fn a_long_value_keeps_what_tells_it_from_others() {
        assert_eq!(shortened("0.1"), "0.1");
        let paths = ["one", "two"]
            .map(|run| shortened(&format!("/a/very/long/path/to/runs/{run}/adapter.safetensors")));
        assert_eq!(paths, ["...s/one/adapter.safetensors", "...s/two/adapter.safetensors"]);
        assert_eq!(shortened("[attn.to_q, attn.to_k, attn.to_v]"), "[attn.to_q, ..., attn.to_v]");
    }
}
