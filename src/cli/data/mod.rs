//! `graph-run data check`: decodes every sample once, before a run does.
//!
//! ```text
//!  report   the listing and the JSON of what was found       bad   the file of bad samples, and what it must not replace
//! ```

mod bad;
mod report;

use std::path::Path;

use prefgraph_ops::{
    operators::pairs::{
        MAX_PIXELS, Pairs, PairsSettings, Report, check as check_pairs, check_settings, locate,
    },
    words::count,
};
use serde_json::json;

use super::{Failure, args, prepare::prepare, say::say, system};
use crate::{registry::Registry, spec};

/// What is to be looked at, and how it is to be said.
pub(super) struct Wanted<'a> {
    pub path: &'a Path,
    pub sets: &'a [String],
    pub max_pixels: Option<u64>,
    pub bad: Option<&'a Path>,
    pub json: bool,
}

/// Look at data: bad samples go to standard error, and to a file if one is given. 1 if a run would refuse the data.
pub(super) fn check(wanted: &Wanted<'_>, registry: &Registry) -> Result<u8, Failure> {
    if wanted.path.extension().is_some_and(|e| e == "ron") {
        return check_graph(wanted, registry);
    }
    if !wanted.sets.is_empty() {
        return Err(Failure::new(
            "--set is for the settings of a graph: give a graph (.ron) in place of the data",
        ));
    }
    let path = locate(wanted.path).map_err(Failure::new)?;
    if let Some(bad) = wanted.bad {
        bad::check_target(bad, &path).map_err(Failure::new)?;
    }
    let max_pixels = wanted.max_pixels.map_or(MAX_PIXELS, |n| usize::try_from(n).unwrap_or(usize::MAX));
    let report = check_pairs(&path, max_pixels).map_err(Failure::new)?;
    show_bad(&path, &report);
    if let Some(bad) = wanted.bad {
        bad::write(bad, &[&report]).map_err(Failure::new)?;
    }
    let text =
        if wanted.json { as_text(&report::as_value(&report)) } else { report::listing(&path, &report) };
    system::print(&text)?;
    Ok(u8::from(!report.is_good()))
}

/// The data of every node of a graph that reads pairs, and then whether the graph can be planned with them.
fn check_graph(wanted: &Wanted<'_>, registry: &Registry) -> Result<u8, Failure> {
    if wanted.max_pixels.is_some() {
        return Err(Failure::new("--max-pixels: a graph says it itself; use --set NODE.max_pixels=N"));
    }
    let nodes = spec::settings_of::<Pairs>(wanted.path, wanted.sets, registry)?;
    if nodes.is_empty() {
        return Err(Failure::new(format!("`{}` has no node that reads pairs", wanted.path.display())));
    }
    let (mut reports, mut values, mut text) = (Vec::new(), Vec::new(), String::new());
    for (node, settings) in &nodes {
        let (path, report) = check_node(node, settings, wanted.bad)?;
        show_bad(&path, &report);
        let mut value = report::as_value(&report);
        value["node"] = json!(node);
        value["path"] = json!(path.display().to_string());
        values.push(value);
        text += &format!("node `{node}`: {}", report::listing(&path, &report));
        reports.push(report);
    }
    if let Some(bad) = wanted.bad {
        bad::write(bad, &reports.iter().collect::<Vec<_>>()).map_err(Failure::new)?;
    }
    system::print(if wanted.json { as_text(&json!({"nodes": values})) } else { text }.as_str())?;
    if !reports.iter().all(Report::is_good) {
        return Ok(1);
    }
    // Good data may still be of another kind than the graph wants, e.g. without references.
    let graph = args::Graph {
        graph: Some(wanted.path.to_owned()),
        sets: wanted.sets.to_owned(),
        ..args::Graph::default()
    };
    prepare(&graph, registry)?;
    Ok(0)
}

fn check_node(
    node: &str,
    settings: &PairsSettings,
    bad: Option<&Path>,
) -> Result<(std::path::PathBuf, Report), Failure> {
    let fault = |e: String| Failure::new(format!("node `{node}`: {e}"));
    let path = locate(settings.path.as_path()).map_err(fault)?;
    if let Some(bad) = bad {
        bad::check_target(bad, &path).map_err(Failure::new)?;
    }
    Ok((path, check_settings(settings).map_err(fault)?))
}

fn as_text(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

/// Bad samples that are listed: a whole file of another kind would fill the screen.
const LISTED: usize = 20;

fn show_bad(path: &Path, report: &Report) {
    for row in report.bad.iter().take(LISTED) {
        say!("{}: {row}", path.display());
    }
    if report.bad.len() > LISTED {
        let more = count(report.bad.len() - LISTED, "more bad sample");
        say!("{}: {more}; --bad FILE writes all of them", path.display());
    }
    if let Some(refusal) = &report.refusal {
        say!("{}: {refusal}", path.display());
    }
}
