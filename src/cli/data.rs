//! `graph-run data check`: everything decoded once, before a run trips over it.

use std::path::{Path, PathBuf};

use prefgraph_nn::files::write_atomically;
use prefgraph_ops::operators::pairs::{Report, check as check_pairs};
use serde_json::json;

use super::{Failure, say::say, system};

/// Check the data at `path`; bad samples go to standard error, and to `bad` if that is given.
pub(super) fn check(path: &Path, bad: Option<&Path>, as_json: bool) -> Result<u8, Failure> {
    let path: PathBuf = if path.is_dir() { path.join("pairs.jsonl") } else { path.to_owned() };
    let report = check_pairs(&path).map_err(Failure::new)?;
    for row in &report.bad {
        say!("{}: {row}", path.display());
    }
    if let Some(bad) = bad {
        let lines: String = report.bad.iter().map(|row| format!("{}\n", bad_row(row))).collect();
        write_atomically(bad, lines.as_bytes()).map_err(Failure::new)?;
    }
    let text = if as_json { format!("{:#}\n", as_value(&report)) } else { listing(&path, &report) };
    system::print(&text)?;
    Ok(u8::from(!report.bad.is_empty()))
}

fn bad_row(row: &prefgraph_ops::operators::pairs::BadRow) -> serde_json::Value {
    json!({"line": row.line, "id": row.id, "reason": row.reason})
}

fn as_value(r: &Report) -> serde_json::Value {
    let sizes =
        r.sizes.iter().map(|((height, width), n)| json!({"height": height, "width": width, "samples": n}));
    let references = r.references.iter().map(|(k, n)| json!({"references": k, "samples": n}));
    json!({
        "good": r.good,
        "bad": r.bad.iter().map(bad_row).collect::<Vec<_>>(),
        "references": references.collect::<Vec<_>>(),
        "sizes": sizes.collect::<Vec<_>>(),
        "without_prior": r.without_prior,
        "references_without_mask": r.without_mask,
        "prior_coverage_tenths": r.coverage,
    })
}

fn listing(path: &Path, r: &Report) -> String {
    let mut text = format!("{}: {} good samples, {} bad\n", path.display(), r.good, r.bad.len());
    for (references, samples) in &r.references {
        text += &format!("  {samples} with {references} references\n");
    }
    for ((height, width), samples) in &r.sizes {
        text += &format!("  {samples} with a winner of {width} x {height} pixels\n");
    }
    text += &format!("  {} without a prior: they are plain preference pairs\n", r.without_prior);
    text += &format!("  {} references without a mask: the whole reference counts\n", r.without_mask);
    let most = r.coverage.iter().copied().max().unwrap_or(0);
    if most > 0 {
        text += "priors by the share of the picture that they cover:\n";
        for (tenth, n) in r.coverage.iter().enumerate() {
            let bar = "#".repeat((n * 40).div_ceil(most));
            text += &format!("  {:>3} %  {n:>6}  {bar}\n", tenth * 10);
        }
    }
    text
}
