//! Selects the samples of a file that a run uses.

use super::{
    row::{BadRow, Row},
    settings::{PairsSettings, WithoutLoser},
};

/// The rows that have losers, or need none; others become bad ones.
pub(super) fn with_losers(settings: &PairsSettings, rows: Vec<Row>, bad: &mut Vec<BadRow>) -> Vec<Row> {
    if settings.without_loser == WithoutLoser::Winner {
        return rows;
    }
    let (rows, alone): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.loser.is_some());
    let reason = "missing field `lose`; a graph that trains on winners alone takes `without_loser: winner`";
    bad.extend(alone.into_iter().map(|row| BadRow { line: row.line, id: row.id, reason: reason.into() }));
    bad.sort_by_key(|bad| bad.line);
    rows
}

/// The rows that the settings select.
pub(super) fn selected(settings: &PairsSettings, mut rows: Vec<Row>) -> Vec<Row> {
    if !settings.reference_counts.is_empty() {
        rows.retain(|r| settings.reference_counts.contains(&r.references.len()));
    }
    rows.truncate(settings.first.unwrap_or(rows.len()));
    rows
}

/// Why there are no samples, of `all` in the file.
pub(super) fn no_samples(settings: &PairsSettings, all: usize, bad: usize) -> String {
    match (all, bad) {
        (0, 0) => "holds no samples".into(),
        (0, 1) => "holds no samples: its only line cannot be used".into(),
        (0, bad) => format!("holds no samples: none of its {bad} lines can be used"),
        _ => {
            let wanted: Vec<String> = settings.reference_counts.iter().map(usize::to_string).collect();
            format!("none of {all} samples has {} references (`reference_counts`)", wanted.join(" or "))
        }
    }
}
