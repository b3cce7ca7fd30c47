//! How errors have changed against the frozen network, over some pairs or some steps.

use crate::cli::recent::{Mean, RecentValues};

/// One pair, or the mean of one step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    /// Winner's error of the policy less that of the reference.
    pub w_diff: f64,
    /// The same of the loser.
    pub l_diff: f64,
}

impl Pair {
    fn margin(self) -> f64 {
        self.l_diff - self.w_diff
    }

    fn won(self) -> f64 {
        let margin = self.margin();
        if margin == 0.0 { 0.5 } else { f64::from(u8::from(margin > 0.0)) }
    }
}

/// Means over pairs, or over the steps of a window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Change {
    /// Of the winner's error, policy less reference.
    pub w_diff: Mean,
    /// Of the loser's.
    pub l_diff: Mean,
    /// Of their difference: positive where the winner is preferred more than before.
    pub margin: Mean,
    /// Share with a positive margin, ties counted as a half.
    pub accuracy: f64,
    /// Are the errors those under a mask?
    pub masked: bool,
}

impl Change {
    /// Of these pairs; `None` if there are none.
    pub fn of(pairs: impl ExactSizeIterator<Item = Pair> + Clone) -> Option<Self> {
        let mean = |f: fn(Pair) -> f64| Mean::of(pairs.clone().map(f));
        Some(Self {
            w_diff: mean(|p| p.w_diff)?,
            l_diff: mean(|p| p.l_diff)?,
            margin: mean(Pair::margin)?,
            accuracy: mean(Pair::won)?.value,
            masked: false,
        })
    }
}

/// Means of the last steps of one pair of metrics, and of a measured accuracy.
#[derive(Clone, Debug)]
pub(super) struct Steps {
    w_diff: RecentValues,
    l_diff: RecentValues,
    margin: RecentValues,
    accuracy: RecentValues,
}

impl Steps {
    /// Over so many steps.
    pub fn new(length: usize) -> Self {
        let [w_diff, l_diff, margin, accuracy] = [(); 4].map(|()| RecentValues::new(length));
        Self { w_diff, l_diff, margin, accuracy }
    }

    /// Another step: its means, and its share of positive margins.
    pub fn push(&mut self, mean: Pair, accuracy: f64) {
        self.w_diff.push(mean.w_diff);
        self.l_diff.push(mean.l_diff);
        self.margin.push(mean.margin());
        self.accuracy.push(accuracy);
    }

    /// How many steps there are.
    pub fn len(&self) -> usize {
        self.w_diff.len()
    }

    /// Their means, however many there are.
    pub fn change(&self) -> Option<Change> {
        Some(Change {
            w_diff: self.w_diff.mean()?,
            l_diff: self.l_diff.mean()?,
            margin: self.margin.mean()?,
            accuracy: self.accuracy.mean()?.value,
            masked: false,
        })
    }

    /// The same, once there are as many as there can be.
    pub fn full(&self) -> Option<Change> {
        self.w_diff.full().and_then(|_| self.change())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_count_as_a_half_and_no_pairs_are_no_change() {
        let pairs = [(0.0, 0.0), (-1.0, 1.0), (2.0, 1.0)].map(|(w_diff, l_diff)| Pair { w_diff, l_diff });
        let change = Change::of(pairs.into_iter()).unwrap();
        assert_eq!((change.accuracy, change.w_diff.value), (0.5, 1.0 / 3.0));
        assert_eq!(Change::of([].into_iter()), None);
    }

    #[test]
    fn steps_are_a_change_only_once_there_are_enough_for_a_sign() {
        let mut steps = Steps::new(2);
        assert_eq!(steps.change(), None);
        steps.push(Pair { w_diff: 1.0, l_diff: 3.0 }, 0.25);
        assert!(steps.full().is_none() && steps.change().is_some());
        steps.push(Pair { w_diff: 3.0, l_diff: 3.0 }, 0.75);
        let change = steps.full().unwrap();
        assert_eq!((change.w_diff.value, change.margin.value, change.accuracy), (2.0, 1.0, 0.5));
    }
}
