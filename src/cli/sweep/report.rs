//! What a sweep has found: `sweep.json`, and the table on standard output.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Value, json};

use super::variants::{Sweep, Variant};
use crate::{
    cli::{
        Failure,
        health::{Better, History, Measure, Point},
        recent::Mean,
    },
    folder::Survey,
};

/// The file of a sweep.
pub(super) const NAME: &str = "sweep.json";

/// What training minimises.
const LOSS: &str = "loss";

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
            let mut history = History::default();
            let mut steps = 0;
            let mut line = |line: &Value| {
                steps = line["step"].as_u64().map_or(steps, |step| step + 1);
                history.line(line);
            };
            Survey::of(&out.join(&variant.folder), u64::MAX, &mut line).map_err(Failure::new)?;
            let diverged = diverged.get(&variant.number).map(String::as_str);
            Ok(Row { variant, steps, diverged, measures: history.measures() })
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
        let names = self.names();
        let held_out = names.iter().find(|name| name.ends_with(".margin"));
        let found = held_out.or_else(|| names.iter().find(|name| **name == "margin"));
        let loss = || names.iter().find(|name| **name == LOSS && self.sweep.has_one_loss());
        found.or_else(loss).copied()
    }

    pub fn better(&self, name: &str) -> Better {
        self.rows.iter().find_map(|row| row.measure(name)).map_or(Better::Lower, |m| m.better)
    }

    /// The row whose last measurement of that name is the best; none of losses that differ in what they are.
    pub fn best(&self, name: &str) -> Option<usize> {
        if name == LOSS && !self.sweep.has_one_loss() {
            return None;
        }
        let sign = if self.better(name) == Better::Higher { -1.0 } else { 1.0 };
        let value = |row: &Row<'_>| row.last(name).map(|p| sign * p.mean.value).filter(|v| v.is_finite());
        let found = self.rows.iter().enumerate().filter_map(|(at, row)| Some((at, value(row)?)));
        found.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(at, _)| at)
    }

    /// Measures in the order of the table and the figure.
    pub fn shown(&self) -> Vec<&str> {
        const LAST: [&str; 4] = ["margin", "w_diff", "accuracy", "plain_w_diff"];
        let names = self.names();
        let place = |name: &str| LAST.iter().position(|last| name.rsplit('.').next() == Some(last));
        let mut shown: Vec<&str> = names.iter().copied().filter(|name| place(name).is_some()).collect();
        shown.sort_by_key(|name| {
            (!name.contains('.'), name.split('.').next().filter(|_| name.contains('.')), place(name))
        });
        let held_out = shown.iter().any(|name| name.contains('.'));
        // What is measured on the training pairs says less where others were measured.
        shown.retain(|name| name.contains('.') || !held_out);
        shown.extend(names.into_iter().filter(|name| *name == LOSS));
        shown
    }

    pub fn json(&self, steps: u64) -> Value {
        let variants: Vec<Value> = self.rows.iter().map(row_json).collect();
        let axes = self.sweep.overs.axes();
        let axes: Vec<Value> = axes
            .into_iter()
            .map(|(settings, values)| json!({"settings": settings, "values": values}))
            .collect();
        let chosen = self.chosen();
        let best = chosen.and_then(|name| self.best(name)).map(|at| self.rows[at].variant.number);
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
        let mut lines = vec![titles];
        for (at, row) in self.rows.iter().enumerate() {
            let mut cells = vec![row.variant.number.to_string()];
            cells.extend(row.variant.values.iter().map(|(_, value)| shortened(value)));
            for name in &shown {
                let star = if self.best(name) == Some(at) && self.rows.len() > 1 { " *" } else { "" };
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
        if self.rows.len() > 1 && shown.iter().any(|name| self.best(name).is_some()) {
            text += "* the best of its column; the others may differ from it by chance: compare with the standard errors\n";
        }
        if self.rows.len() > 1 && !self.sweep.has_one_loss() {
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

/// The variants that a `sweep.json` says to have diverged; none where it is damaged.
pub(super) fn diverged(text: &str) -> Option<Diverged> {
    let value: Value = serde_json::from_str(text).ok()?;
    let variants = value["variants"].as_array()?;
    let one =
        |v: &Value| Some((u32::try_from(v["number"].as_u64()?).ok()?, v["diverged"].as_str()?.to_owned()));
    Some(variants.iter().filter_map(one).collect())
}

/// A value of a measure: accuracies and losses as they are, changes with their sign.
pub(super) fn value(name: &str, x: f64) -> String {
    match name.rsplit('.').next() {
        Some("loss") => format!("{x:.4}"),
        Some(last) if last.ends_with("accuracy") => format!("{x:.2}"),
        _ => format!("{x:+.2e}"),
    }
}

fn number(name: &str, mean: Mean) -> String {
    let error = match name.rsplit('.').next() {
        _ if !mean.error.is_finite() => String::new(),
        Some("loss") => format!(" ± {:.4}", mean.error),
        _ => format!(" ± {:.1e}", mean.error),
    };
    value(name, mean.value) + &error
}

/// A value of a setting, without the middle of a long one.
pub(super) fn shortened(text: &str) -> String {
    const HALF: usize = 12;
    let chars: Vec<char> = text.chars().collect();
    if chars.len() <= 2 * HALF + 3 {
        return text.to_owned();
    }
    let part = |chars: &[char]| chars.iter().collect::<String>();
    format!("{}...{}", part(&chars[..HALF]), part(&chars[chars.len() - HALF..]))
}

/// Columns one below the other.
fn aligned(lines: &[Vec<String>]) -> String {
    let width = |column: usize| {
        lines.iter().filter_map(|l| l.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let line = |cells: &Vec<String>| {
        let padded: Vec<String> =
            cells.iter().enumerate().map(|(at, cell)| format!("{cell:<width$}", width = width(at))).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    lines.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_that_diverged_are_known_again() {
        let text = json!({"variants": [{"number": 1, "diverged": null}, {"number": 7, "diverged": "step 3: it is so"}]});
        assert_eq!(diverged(&text.to_string()), Some(Diverged::from([(7, "step 3: it is so".to_owned())])));
        assert_eq!(diverged("{"), None);
    }

    #[test]
    fn numbers_have_the_form_of_their_measure() {
        let mean = |value, error| Mean { value, error };
        assert_eq!(number("held_out.margin", mean(2.8e-4, 1.6e-4)), "+2.80e-4 ± 1.6e-4");
        assert_eq!(number("accuracy", mean(0.625, f64::INFINITY)), "0.62");
        assert_eq!(number("loss", mean(0.75123, 0.001)), "0.7512 ± 0.0010");
        assert_eq!(shortened("0.1"), "0.1");
        assert_eq!(
            shortened("/a/very/long/path/to/some/adapter.safetensors"),
            "/a/very/long...".to_owned() + ".safetensors"
        );
    }
}
