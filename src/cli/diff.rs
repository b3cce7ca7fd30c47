//! `graph-run diff`: how two graphs differ, and two runs in what they have measured.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::Path,
};

use prefgraph_ops::words::count;

use super::{
    Failure,
    health::{Measure, measures_of},
    system, tables,
};
use crate::{
    registry::Registry,
    spec::{Change, Facts, Outline, compare},
};

/// Where a changed line is not about a node.
const GRAPH: &str = "the graph";
const INPUT: &str = "in.";
/// What is said of the loss itself.
const THE_LOSS: &str = "the loss";

/// Print the differences: nodes that only one graph has, and what the others say differently.
pub(super) fn diff(old: &Path, new: &Path, registry: &Registry) -> Result<u8, Failure> {
    let (a, b) = (Outline::open(old, &[], registry)?, Outline::open(new, &[], registry)?);
    let (says_a, says_b) = (a.facts()?, b.facts()?);
    let only = |this: &Outline<'_>, other: &Facts| -> Vec<String> {
        this.ids().filter(|id| !other.contains_key(*id)).map(str::to_owned).collect()
    };
    let (only_a, only_b) = (only(&a, &says_b), only(&b, &says_a));
    let mut by_node: BTreeMap<String, Vec<Change>> = BTreeMap::new();
    for change in compare(&says_a, &says_b) {
        // A whole node that came or went is listed with its kind.
        if only_a.contains(&change.what) || only_b.contains(&change.what) {
            continue;
        }
        let owner = change.what.split_once('.').map_or(&*change.what, |(node, _)| node);
        let owner =
            if says_a.contains_key(owner) || owner == "run" || owner == "cache" { owner } else { GRAPH };
        by_node.entry(owner.to_owned()).or_default().push(change);
    }
    let same: Vec<&str> =
        a.ids().filter(|id| says_b.contains_key(*id) && !by_node.contains_key(*id)).collect();

    let mut out = String::new();
    let _ = writeln!(out, "- {}\n+ {}", old.display(), new.display());
    if by_node.is_empty() && only_a.is_empty() && only_b.is_empty() {
        out.push_str("they say the same\n");
    }
    list(&mut out, "the same in both", &same, |id| id.to_string());
    list(&mut out, "only in -", &only_a, |id| format!("{id} ({})", says_a[id]));
    list(&mut out, "only in +", &only_b, |id| format!("{id} ({})", says_b[id]));
    for id in a.ids().chain([GRAPH, "run", "cache"]) {
        let Some(changes) = by_node.get(id) else { continue };
        match says_a.get(id) {
            Some(op) => {
                let _ = writeln!(out, "\n{id} ({op})");
            }
            None => {
                let _ = writeln!(out, "\n{id}");
            }
        }
        for change in changes {
            let what = change.what.strip_prefix(&format!("{id}.")).unwrap_or(&change.what);
            let what = match what.strip_prefix(INPUT) {
                Some(input) => format!("reads {input} from"),
                None if what == id => "is".to_owned(),
                None => format!("{what}:"),
            };
            let side = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
            let _ = writeln!(out, "  {what}\n    - {}\n    + {}", side(&change.old), side(&change.new));
        }
    }
    let loss = says_a.get(THE_LOSS).map(|loss| loss.split('.').next().unwrap_or(loss).to_owned());
    let one_loss =
        says_a.get(THE_LOSS) == says_b.get(THE_LOSS) && loss.is_none_or(|node| !by_node.contains_key(&node));
    out += &measured(old, new, one_loss)?;
    system::print(&out)?;
    Ok(0)
}

/// What two runs have measured at their ends, where both graphs are those of runs.
fn measured(old: &Path, new: &Path, one_loss: bool) -> Result<String, Failure> {
    // Another graph beside the metrics of a run is not what was run.
    let run = |graph: &Path| match graph.file_name().is_some_and(|name| name == "graph.ron") {
        true => measures_of(graph.parent().unwrap_or(Path::new(""))).map_err(Failure::new),
        false => Ok((Vec::new(), 0)),
    };
    let ((a, of_a), (b, of_b)) = (run(old)?, run(new)?);
    if a.is_empty() || b.is_empty() {
        return Ok(String::new());
    }
    let mut names: Vec<&str> = a.iter().chain(&b).map(|measure| measure.name.as_str()).collect();
    let mut seen = BTreeSet::new();
    names.retain(|name| seen.insert(*name));
    let cell = |measures: &[Measure], name: &str| {
        let last = measures.iter().find(|measure| measure.name == name).and_then(Measure::last);
        last.map_or("-".to_owned(), |point| tables::number(name, point.mean))
    };
    let title = |sign: &str, steps: u64| format!("{sign} after {}", count(steps, "step"));
    let mut lines = vec![vec!["measured".to_owned(), title("-", of_a), title("+", of_b)]];
    for name in tables::shown(&names) {
        lines.push(vec![name.to_owned(), cell(&a, name), cell(&b, name)]);
    }
    let note = if one_loss { "" } else { "the losses are of different settings and cannot be compared\n" };
    Ok(format!("\n{}{note}", tables::aligned(&lines)))
}

fn list<T>(out: &mut String, title: &str, items: &[T], shown: impl Fn(&T) -> String) {
    if !items.is_empty() {
        let items: Vec<String> = items.iter().map(shown).collect();
        let _ = writeln!(out, "{title} ({}): {}", items.len(), items.join(", "));
    }
}
