//! How far a total would move with other subjects: percentile intervals of the bootstrap over subjects (Efron 1979). Pictures of a
//! subject are alike, so that intervals over pictures would be too narrow.

use prefgraph_ops::random::Random;

use super::scores::Tally;

/// Times that the subjects are drawn.
pub const RESAMPLES: usize = 10_000;
/// Of all draws, so that two methods are resampled alike and a second run gives the same digits.
const SEED: u64 = 0;
/// What is left out on each side of an interval.
const TAIL: f64 = 0.025;

/// Between these, 95 % of the resampled values lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// Draws of as many subjects as there are, with replacement.
#[derive(Clone, Debug)]
pub struct Resamples {
    subjects: usize,
    draws: Vec<Vec<usize>>,
}

impl Resamples {
    /// Of so many subjects.
    pub fn new(subjects: usize) -> Self {
        let draw = |number: usize| {
            let mut random = Random::new(SEED, "evaluate", number as u64, "bootstrap over subjects");
            (0..subjects).map(|_| random.below(subjects as u64) as usize).collect()
        };
        let count = if subjects > 1 { RESAMPLES } else { 0 };
        Self { subjects, draws: (0..count).map(draw).collect() }
    }

    /// The interval of the total of these subjects; `None` where there are fewer than two.
    pub fn interval(&self, tallies: &[Tally]) -> Option<Interval> {
        self.of(tallies, |draw| Tally::value(draw.iter().map(|subject| tallies[*subject])))
    }

    /// The interval of the total of `a` less that of `b`, subject by subject.
    pub fn interval_of_difference(&self, a: &[Tally], b: &[Tally]) -> Option<Interval> {
        assert_eq!(a.len(), b.len(), "subjects of two methods");
        self.of(a, |draw| {
            let total = |tallies: &[Tally]| Tally::value(draw.iter().map(|subject| tallies[*subject]));
            Some(total(a)? - total(b)?)
        })
    }

    fn of(&self, tallies: &[Tally], statistic: impl Fn(&[usize]) -> Option<f64>) -> Option<Interval> {
        assert_eq!(tallies.len(), self.subjects, "as many subjects as are drawn");
        let mut values: Vec<f64> = self.draws.iter().filter_map(|draw| statistic(draw)).collect();
        values.sort_unstable_by(f64::total_cmp);
        Some(Interval { low: quantile(&values, TAIL)?, high: quantile(&values, 1.0 - TAIL)? })
    }
}

/// The quantile of sorted values, interpolated between neighbours.
fn quantile(sorted: &[f64], at: f64) -> Option<f64> {
    let place = at * sorted.len().checked_sub(1)? as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    Some(low + (high - low) * (place - place.floor()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tallies(values: &[f64]) -> Vec<Tally> {
        values.iter().map(|v| Tally { sum: *v, weight: 1.0 }).collect()
    }

    #[test]
    fn quantiles_are_interpolated() {
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.75), Some(3.0));
        assert_eq!(quantile(&[1.0], 0.9), Some(1.0));
        assert_eq!(quantile(&[], 0.9), None);
    }

    /// Of two subjects a resample has the mean of 0, 0 or 1 with chances 1/4, 1/2, 1/4, so that both tails reach the ends.
    #[test]
    fn an_interval_holds_what_resampled_subjects_give() {
        let found = Resamples::new(2).interval(&tallies(&[0.0, 1.0])).unwrap();
        assert_eq!((found.low, found.high), (0.0, 1.0));
        let equal = Resamples::new(7).interval(&tallies(&[0.25; 7])).unwrap();
        assert_eq!((equal.low, equal.high), (0.25, 0.25));
        assert_eq!(Resamples::new(1).interval(&tallies(&[0.5])), None, "one subject says nothing of others");
    }

    /// The standard error of the mean of `0..n` with replacement is `sqrt((n^2 - 1) / 12 / n)`.
    #[test]
    fn an_interval_is_about_as_wide_as_the_standard_error_says() {
        let n = 40;
        let values: Vec<f64> = (0..n).map(f64::from).collect();
        let found = Resamples::new(values.len()).interval(&tallies(&values)).unwrap();
        let n = f64::from(n);
        let error = ((n * n - 1.0) / 12.0 / n).sqrt();
        let expected = 2.0 * 1.96 * error;
        assert!(((found.high - found.low) / expected - 1.0).abs() < 0.05, "{found:?} {expected}");
    }

    #[test]
    fn differences_are_taken_of_the_same_subjects() {
        let a: Vec<f64> = (0..9).map(f64::from).collect();
        let b: Vec<f64> = a.iter().map(|v| v - 0.5).collect();
        let found = Resamples::new(9).interval_of_difference(&tallies(&a), &tallies(&b)).unwrap();
        assert!((found.low - 0.5).abs() < 1e-12 && (found.high - 0.5).abs() < 1e-12, "{found:?}");
    }
}
