//! What a run has achieved, in a few lines.

use super::{
    Health,
    change::Change,
    signs::{LOSS_WINDOW, WINDOW},
};
use crate::cli::window::Mean;

/// A change is called one if it is off zero by more than this many of its standard errors.
const CLEAR: f64 = 2.0;

/// Which way something has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Fell,
    Rose,
    Unclear,
}

impl Way {
    fn of(mean: Mean) -> Self {
        match mean {
            _ if mean.is_below_zero(CLEAR) => Self::Fell,
            _ if mean.is_above_zero(CLEAR) => Self::Rose,
            _ => Self::Unclear,
        }
    }
}

/// Two digits, with the sign.
pub(super) fn signed(x: f64) -> String {
    format!("{x:+.1e}")
}

fn with_error(mean: Mean) -> String {
    let error = if mean.error.is_finite() { format!(" ± {:.1e}", mean.error) } else { String::new() };
    signed(mean.value) + &error
}

/// Some pairs: what they are, as the table and the verdict say it, and how they have changed.
struct Row {
    name: String,
    place: String,
    change: Change,
}

impl Row {
    fn line(&self) -> String {
        let c = &self.change;
        let [w, l, margin] = [c.w_diff, c.l_diff, c.margin].map(with_error);
        format!("  {:<30}  {w:<17}  {l:<17}  {margin:<17}  {:.2}", self.name, c.accuracy)
    }
}

/// The sentence that the numbers add up to. What counts is what was not trained on, where that was measured.
fn verdict(trained: &[Row], held_out: &[Row]) -> Option<String> {
    let decisive = if held_out.is_empty() { trained } else { held_out };
    let preference = Way::of(decisive.first()?.change.margin);
    let ways: Vec<Way> = decisive.iter().map(|row| Way::of(row.change.w_diff)).collect();
    let fell = ways.contains(&Way::Fell);
    let head = match (ways.contains(&Way::Rose), preference) {
        (true, _) | (_, Way::Fell) => "not better",
        (_, Way::Rose) if fell => "better",
        (_, Way::Unclear) if !fell => "nothing has clearly improved",
        _ => "better in part",
    };
    let of = |way: Way| -> Vec<&str> {
        let rows = trained.iter().chain(held_out).filter(|row| Way::of(row.change.w_diff) == way);
        rows.map(|row| row.place.as_str()).collect()
    };
    let mut parts = Vec::new();
    for (way, said) in
        [(Way::Fell, "fell on"), (Way::Rose, "rose on"), (Way::Unclear, "shows no clear change on")]
    {
        let places = of(way);
        if !places.is_empty() {
            parts.push(format!("{said} {}", places.join(" and ")));
        }
    }
    let also = match preference {
        Way::Rose => "the winner is preferred more than before",
        Way::Fell => "the winner is preferred less than before",
        Way::Unclear => "the preference shows no clear change",
    };
    Some(format!("{head}: the winner's error {}; {also}", parts.join(", ")))
}

impl Health {
    fn trained_rows(&self) -> Vec<Row> {
        let row = |change: Change, masked: bool, whole: &str| {
            let mask = if masked { ", masked" } else { whole };
            Row {
                name: format!("trained on, {} steps{mask}", self.trained.len()),
                place: format!("pairs trained on{}", if masked { " (masked)" } else { whole }),
                change,
            }
        };
        match (self.trained.change(), self.whole.change()) {
            (Some(masked), Some(whole)) => vec![row(masked, true, ""), row(whole, false, ", whole")],
            (Some(change), None) => vec![row(change, false, "")],
            _ => Vec::new(),
        }
    }

    fn held_out_rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for (name, held_out) in &self.held_out {
            let changes = held_out.changes();
            let both = changes.len() > 1;
            for change in changes {
                let [short, long] = match (change.masked, both) {
                    (true, _) => [", masked", " (masked)"],
                    (false, true) => [", whole", ", whole"],
                    (false, false) => ["", ""],
                };
                rows.push(Row {
                    name: format!("{name}, {} pairs{short}", held_out.len()),
                    place: format!("`{name}`{long}"),
                    change,
                });
            }
        }
        rows
    }

    /// A few lines on what has changed against the frozen network, on which pairs; empty where nothing was measured.
    pub fn summary(&self) -> Vec<String> {
        let (trained, held_out) = (self.trained_rows(), self.held_out_rows());
        if trained.is_empty() && held_out.is_empty() {
            return self.loss_alone().into_iter().collect();
        }
        let mut lines = vec![format!(
            "{:<32}  {:<17}  {:<17}  {:<17}  accuracy",
            "against the frozen network", "winner's error", "loser's error", "margin"
        )];
        lines.extend(trained.iter().chain(&held_out).map(Row::line));
        lines.extend(self.loss_alone().filter(|_| trained.is_empty()));
        lines.extend(verdict(&trained, &held_out));
        lines
    }

    /// Of a run without a reference: the loss at its ends.
    fn loss_alone(&self) -> Option<String> {
        let (first, last) = (self.first_loss.full()?, self.loss.mean()?);
        (self.loss.len() >= 2 * LOSS_WINDOW).then(|| {
            format!(
                "  loss: {:.4} ± {:.4} in the first {LOSS_WINDOW} steps, {:.4} ± {:.4} in the last {}",
                first.value,
                first.error,
                last.value,
                last.error,
                WINDOW.min(self.loss.len())
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(place: &str, w_diff: f64, margin: f64) -> Row {
        let mean = |value| Mean { value, error: 1e-4 };
        let (w_diff, l_diff, margin) = (mean(w_diff), mean(w_diff + margin), mean(margin));
        let change = Change { w_diff, l_diff, margin, accuracy: 0.75, masked: false };
        Row { name: place.into(), place: place.into(), change }
    }

    #[test]
    fn the_verdict_is_that_of_held_out_pairs_where_there_are_some() {
        let (better, worse) = (|p| row(p, -1e-3, 2e-3), |p| row(p, 1e-3, 2e-3));
        assert_eq!(
            verdict(&[better("mine")], &[better("others")]).unwrap(),
            "better: the winner's error fell on mine and others; the winner is preferred more than before"
        );
        assert_eq!(
            verdict(&[better("mine")], &[better("others"), worse("all of others")]).unwrap(),
            "not better: the winner's error fell on mine and others, rose on all of others; the winner is preferred more than \
             before"
        );
        assert!(verdict(&[worse("mine")], &[]).unwrap().starts_with("not better"));
        let nothing = |p| row(p, 1e-5, -1e-5);
        let said = verdict(&[better("mine")], &[nothing("others")]).unwrap();
        assert!(said.starts_with("nothing has clearly improved"), "{said}");
        assert!(said.contains("shows no clear change on others"), "{said}");
        for part in [row("others", -1e-3, 0.0), row("others", 0.0, 1e-3)] {
            let said = verdict(&[], &[part]).unwrap();
            assert!(said.starts_with("better in part"), "{said}");
        }
        let lost = verdict(&[], &[row("others", -1e-3, -1e-3)]).unwrap();
        assert!(lost.starts_with("not better") && lost.contains("preferred less"), "{lost}");
        assert_eq!(verdict(&[], &[]), None);
    }

    #[test]
    fn a_line_fits_a_screen() {
        let line = row("trained on, 50 steps, masked", -1e-3, 2e-3).line();
        assert!(line.chars().count() <= 100, "{line}");
    }
}
