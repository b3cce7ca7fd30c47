//! The report of a data check, as text and as JSON.

use std::path::Path;

use prefgraph_ops::{
    operators::pairs::{BadRow, Report},
    words::count,
};
use serde_json::{Value, json};

/// A bad sample, as `--bad` and `--json` say it.
pub(super) fn bad_row(row: &BadRow) -> Value {
    json!({"line": row.line, "id": row.id, "reason": row.reason})
}

/// Every count of the report.
pub(super) fn as_value(r: &Report) -> Value {
    let sizes =
        r.sizes.iter().map(|((height, width), n)| json!({"width": width, "height": height, "samples": n}));
    let groups = |groups: &std::collections::BTreeMap<usize, usize>| -> Vec<Value> {
        groups.iter().map(|(k, n)| json!({"references": k, "samples": n})).collect()
    };
    json!({
        "would_run": r.is_good(),
        "refusal": r.refusal,
        "good": r.good,
        "bad": r.bad.iter().map(bad_row).collect::<Vec<_>>(),
        "left_out": r.left_out,
        "references": groups(&r.references),
        "sizes": sizes.collect::<Vec<_>>(),
        "without_references": r.without_references.len(),
        "without_references_lines": r.without_references,
        "without_prior": r.without_prior,
        "references_without_mask": r.without_mask,
        "prior_coverage_tenths": r.coverage,
        "whole_priors": r.whole_priors.len(),
        "whole_priors_lines": r.whole_priors,
        "tiny_priors": r.tiny_priors.len(),
        "tiny_priors_lines": r.tiny_priors,
        "without_loser": r.without_loser.len(),
        "without_loser_lines": r.without_loser,
        "inverted_priors": r.inverted_priors.len(),
        "inverted_priors_lines": r.inverted_priors,
        "own_references": r.own_references.len(),
        "own_references_lines": r.own_references,
        "winners_cut": r.cut.len(),
        "winners_cut_lines": r.cut,
        "identical_pairs": r.identical.len(),
        "identical_pairs_lines": r.identical,
        "masks_not_turned": r.turned.len(),
        "masks_not_turned_lines": r.turned,
        "groups_below_batch": groups(&r.below_batch),
    })
}

/// For people.
pub(super) fn listing(path: &Path, r: &Report) -> String {
    let mut text = format!("{}: {}, {} bad\n", path.display(), count(r.good, "good sample"), r.bad.len());
    if let Some(refusal) = &r.refusal {
        text += &format!("  a run refuses this: {refusal}\n");
    }
    for (references, samples) in &r.references {
        text += &format!("  {samples} with {}\n", count(*references, "reference"));
    }
    for ((height, width), samples) in &r.sizes {
        text += &format!("  {samples} with a winner of {width} x {height} pixels (width x height)\n");
    }
    if r.left_out > 0 {
        text += &format!("  {} left out by `reference_counts` or `first`\n", r.left_out);
    }
    if r.without_prior > 0 {
        text += &format!("  {} without a prior: they are plain preference pairs\n", r.without_prior);
    }
    if r.without_mask > 0 {
        text +=
            &format!("  {} without a mask: the whole reference counts\n", count(r.without_mask, "reference"));
    }
    for remark in r.remarks() {
        text += &format!("  warning: {remark}\n");
    }
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
