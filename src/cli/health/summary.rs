//! The summary at the end of a run.

use prefgraph_ops::words::count;

use super::{
    ENOUGH_PAIRS, Health,
    change::Change,
    held_out::HeldOut,
    signs::{LOSS_WINDOW, WINDOW},
};
use crate::cli::recent::Mean;

/// A change is called one if it is off zero by more than this many of its standard errors.
const CLEAR: f64 = 2.0;
/// Columns of a screen.
const COLUMNS: usize = 100;

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

/// Some pairs: what they are, and how they have changed.
struct Row {
    name: String,
    change: Change,
}

impl Row {
    fn line(&self) -> String {
        let c = &self.change;
        let [w, l, margin] = [c.w_diff, c.l_diff, c.margin].map(with_error);
        format!("  {:<30}  {w:<17}  {l:<17}  {margin:<17}  {:.2}", self.name, c.accuracy)
    }
}

/// The rows of the same pairs: under the mask first where there is one, then whole pictures.
struct Group {
    place: String,
    /// Are they pairs that are not trained on?
    held_out: bool,
    /// Are there enough for a verdict?
    enough: bool,
    rows: Vec<Row>,
}

impl Group {
    fn preference(&self) -> Way {
        self.rows.first().map_or(Way::Unclear, |row| Way::of(row.change.margin))
    }

    /// The winner's error: where it rose if it did anywhere, else where it fell.
    fn winner(&self) -> (Way, &'static str) {
        let found = |way: Way| -> Vec<bool> {
            self.rows
                .iter()
                .filter(|row| Way::of(row.change.w_diff) == way)
                .map(|row| row.change.masked)
                .collect()
        };
        for way in [Way::Rose, Way::Fell] {
            match found(way)[..] {
                [] => {}
                [masked] if self.rows.len() > 1 => {
                    return (way, if masked { " under the mask" } else { " over the whole picture" });
                }
                _ => return (way, ""),
            }
        }
        (Way::Unclear, "")
    }

    fn sentence(&self) -> String {
        let winner = match self.winner() {
            (Way::Fell, place) => format!("the winner's error fell{place}"),
            (Way::Rose, place) => format!("the winner's error rose{place}"),
            (Way::Unclear, _) => "the winner's error shows no clear change".into(),
        };
        let preference = match self.preference() {
            Way::Rose => "the winner is preferred more than before",
            Way::Fell => "the winner is preferred less than before",
            Way::Unclear => "the preference shows no clear change",
        };
        format!("on {}, {winner} and {preference}", self.place)
    }
}

/// The sentence that the numbers add up to. What counts is what was not trained on, where that was measured: `groups` begin
/// with what counts. `measured`: were there held-out pairs at all?
fn verdict(groups: &[&Group], measured: bool) -> Option<String> {
    let first = groups.first()?;
    let head = match (first.winner().0, first.preference()) {
        (Way::Rose, _) | (_, Way::Fell) => "not better",
        (Way::Fell, Way::Rose) => "better",
        (Way::Unclear, Way::Unclear) => "nothing has clearly improved",
        (Way::Fell, Way::Unclear) | (Way::Unclear, Way::Rose) => "better in part",
    };
    let head = match (first.held_out, measured) {
        (true, _) => head,
        (false, true) => "too few held-out pairs for a verdict",
        (false, false) => "no held-out pairs were measured",
    };
    let parts: Vec<String> = groups.iter().map(|group| group.sentence()).collect();
    Some(format!("{head}: {}", parts.join("; ")))
}

/// The text in lines that fit a screen.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= COLUMNS => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

impl Health {
    fn trained(&self) -> Group {
        let steps = self.trained.len();
        let row = |change: Change, masked: bool, what: &str| Row {
            name: format!("trained on, {}{what}", count(steps, "step")),
            change: Change { masked, ..change },
        };
        let rows = match (self.trained.change(), self.whole.change()) {
            (Some(masked), Some(whole)) => vec![row(masked, true, ", masked"), row(whole, false, ", whole")],
            (Some(change), None) => vec![row(change, false, "")],
            _ => Vec::new(),
        };
        Group { place: "the training pairs".into(), held_out: false, enough: steps >= LOSS_WINDOW, rows }
    }

    fn held_out(&self) -> Vec<Group> {
        let group = |(name, held_out): (&String, &HeldOut)| {
            let (pairs, changes) = (held_out.len(), held_out.changes());
            let both = changes.len() > 1;
            let row = |change: Change| {
                let what = if change.masked {
                    ", masked"
                } else if both {
                    ", whole"
                } else {
                    ""
                };
                Row { name: format!("{name}, {}{what}", count(pairs, "pair")), change }
            };
            let rows = changes.into_iter().map(row).collect();
            Group { place: format!("`{name}`"), held_out: true, enough: pairs >= ENOUGH_PAIRS, rows }
        };
        self.held_out.iter().map(group).collect()
    }

    /// A few lines on what has changed against the frozen network, on which pairs; empty where nothing was measured.
    pub fn summary(&self) -> Vec<String> {
        let (trained, held_out) = (self.trained(), self.held_out());
        let groups: Vec<&Group> =
            held_out.iter().chain([&trained]).filter(|group| !group.rows.is_empty()).collect();
        if groups.is_empty() {
            return self.loss_alone().into_iter().collect();
        }
        let mut lines = vec![format!(
            "{:<32}  {:<17}  {:<17}  {:<17}  accuracy",
            "against the frozen network", "winner's error", "loser's error", "margin"
        )];
        lines.extend(groups.iter().rev().flat_map(|group| &group.rows).map(Row::line));
        lines.extend(self.loss_alone().filter(|_| trained.rows.is_empty()));
        let measured = groups.iter().any(|group| group.held_out);
        let enough: Vec<&Group> = groups.into_iter().filter(|group| group.enough).collect();
        lines.extend(
            verdict(&enough, measured).map_or_else(
                || vec!["too few pairs or steps for a verdict".to_owned()],
                |text| wrapped(&text),
            ),
        );
        lines
    }

    /// Of a run without a reference: the loss at its ends.
    fn loss_alone(&self) -> Option<String> {
        let (first, last) = (self.first_loss.full()?, self.loss.full()?);
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

    fn row(w_diff: f64, margin: f64, masked: bool) -> Row {
        let mean = |value| Mean { value, error: 1e-4 };
        let (w_diff, l_diff, margin) = (mean(w_diff), mean(w_diff + margin), mean(margin));
        let change = Change { w_diff, l_diff, margin, accuracy: 0.75, masked };
        Row { name: "trained on, 50 steps, masked".into(), change }
    }

    fn group(place: &str, w_diff: f64, margin: f64) -> Group {
        Group { place: place.into(), held_out: true, enough: true, rows: vec![row(w_diff, margin, false)] }
    }

    #[test]
    fn the_verdict_is_that_of_held_out_pairs_where_there_are_some() {
        let (better, worse) = (group("`a`", -1e-3, 2e-3), group("`b`", 1e-3, 2e-3));
        assert_eq!(
            verdict(&[&better, &worse], true).unwrap(),
            "better: on `a`, the winner's error fell and the winner is preferred more than before; on `b`, the winner's error rose \
             and the winner is preferred more than before"
        );
        assert!(
            verdict(&[&worse, &better], true)
                .unwrap()
                .starts_with("not better: on `b`, the winner's error rose")
        );
        for (w_diff, margin, head) in [
            (1e-5, -1e-5, "nothing has clearly improved"),
            (-1e-3, 0.0, "better in part"),
            (0.0, 1e-3, "better in part"),
            (-1e-3, -1e-3, "not better"),
        ] {
            let said = verdict(&[&group("`a`", w_diff, margin)], true).unwrap();
            assert!(said.starts_with(&format!("{head}: on `a`, ")), "{said}");
        }
        assert_eq!(verdict(&[], true), None);
    }

    #[test]
    fn a_whole_picture_that_gets_worse_is_not_better_whatever_the_mask_says() {
        let both = |masked: f64, whole: f64| Group {
            place: "`a`".into(),
            held_out: true,
            enough: true,
            rows: vec![row(masked, 1e-3, true), row(whole, 1e-3, false)],
        };
        let said = verdict(&[&both(-1e-3, 1e-3)], true).unwrap();
        assert!(
            said.starts_with("not better: on `a`, the winner's error rose over the whole picture"),
            "{said}"
        );
        let said = verdict(&[&both(-1e-3, 0.0)], true).unwrap();
        assert!(said.starts_with("better: on `a`, the winner's error fell under the mask"), "{said}");
        let said = verdict(&[&both(-1e-3, -1e-3)], true).unwrap();
        assert!(said.starts_with("better: on `a`, the winner's error fell and"), "{said}");
    }

    #[test]
    fn a_line_fits_a_screen() {
        let line = row(-1e-3, 2e-3, true).line();
        assert!(line.chars().count() <= 100, "{line}");
    }
}
