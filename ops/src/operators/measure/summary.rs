//! The sums of a measurement: means over all pairs, and over those of each level of noise.

use std::collections::BTreeSet;

use super::levels::{level_of, name_of};
use crate::ports::{Criterion, MeasuredPair, Metric, Metrics, Process};

/// The mean over all pairs is called this.
pub const ALL: &str = "all";

/// Every pair of a measurement once. `steps` are the steps that measured them, by number, with their pairs; all pairs take `over` of
/// them.
///
/// The last batch of a set may be filled with pairs that an earlier one has. Where a row of steps begins differs from measurement to
/// measurement, so what counts is a step's place in the period: the first of a pair's places, where it is itself and fills nothing up.
pub fn pooled<'a>(
    steps: impl IntoIterator<Item = (u64, &'a [MeasuredPair])>,
    over: u64,
) -> Vec<&'a MeasuredPair> {
    let mut steps: Vec<_> = steps.into_iter().collect();
    steps.sort_by_key(|(step, _)| (step % over.max(1), *step));
    let mut seen = BTreeSet::new();
    steps.into_iter().flat_map(|(_, pairs)| pairs).filter(|pair| seen.insert(pair.id.as_str())).collect()
}

/// Means under the names `all.FIGURE` and `LEVEL.FIGURE`, with the pairs that each is over. A level without pairs has none.
pub fn summary(process: Process, levels: usize, pairs: &[&MeasuredPair]) -> Metrics {
    let mut metrics = Metrics::default();
    add(&mut metrics, ALL, pairs);
    for level in 0..levels {
        let inside = |pair: &&&MeasuredPair| level_of(process, levels, pair.time) == level;
        let inside: Vec<&MeasuredPair> = pairs.iter().filter(inside).copied().collect();
        add(&mut metrics, &name_of(process, levels, level), &inside);
    }
    metrics
}

/// The means over some pairs, in the order in which the first of them names its figures.
fn add(metrics: &mut Metrics, name: &str, pairs: &[&MeasuredPair]) {
    if pairs.is_empty() {
        return;
    }
    metrics.number(&format!("{name}.pairs"), pairs.len() as f64);
    let mut seen = BTreeSet::new();
    let figures = pairs.iter().flat_map(|pair| &pair.figures).map(|(figure, _)| figure.as_str());
    for figure in figures.filter(|figure| seen.insert(*figure)) {
        let values = pairs.iter().filter_map(|pair| pair.figures.iter().find(|(name, _)| name == figure));
        let (sum, count) = values.fold((0.0, 0), |(sum, count), (_, value)| (sum + value, count + 1));
        metrics.number(&format!("{name}.{figure}"), sum / f64::from(count));
    }
}

impl Criterion {
    /// What is compared of a summary: the lower, the better. Where errors are not compared with a reference, the winner's own error,
    /// which has the same order.
    pub fn value(self, summary: &Metrics) -> Option<f64> {
        match self {
            Self::Loss => mean(summary, "loss"),
            Self::Winner => mean(summary, "w_diff").or_else(|| mean(summary, "err_w")),
        }
    }

    /// May a measurement be the best: is its value a number, and the winner's error not above the reference's?
    pub fn admits(self, summary: &Metrics) -> bool {
        let risen = ["w_diff", "plain_w_diff"].into_iter().filter_map(|name| mean(summary, name));
        self.value(summary).is_some_and(f64::is_finite) && risen.into_iter().all(|diff| diff <= 0.0)
    }
}

fn mean(summary: &Metrics, figure: &str) -> Option<f64> {
    summary.get(&format!("{ALL}.{figure}")).and_then(Metric::mean)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair(id: &str, time: f32, figures: &[(&str, f64)]) -> MeasuredPair {
        let figures = figures.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        MeasuredPair { id: id.into(), time, figures }
    }

    fn number(metrics: &Metrics, name: &str) -> Option<f64> {
        metrics.get(name).and_then(Metric::mean)
    }

    #[test]
    fn a_pair_counts_once_wherever_the_row_of_steps_begins_even_if_it_fills_the_last_batch() {
        let (a, b) = (pair("a", 0.1, &[("loss", 1.0)]), pair("b", 0.4, &[("loss", 2.0)]));
        let (c, filling) = (pair("c", 0.7, &[("loss", 3.0)]), pair("a", 0.9, &[("loss", 9.0)]));
        let (even, odd) = ([a.clone(), b.clone()], [c.clone(), filling]);
        for steps in [[(48, &even[..]), (49, &odd[..])], [(49, &odd[..]), (50, &even[..])]] {
            assert_eq!(pooled(steps, 2), [&a, &b, &c]);
        }
    }

    #[test]
    fn a_level_without_pairs_is_absent_and_a_figure_is_the_mean_of_the_pairs_that_have_it() {
        let pairs = [
            pair("a", 0.1, &[("loss", 1.0), ("coverage", 0.5)]),
            pair("b", 0.2, &[("loss", 2.0)]),
            pair("c", 0.9, &[("loss", 6.0)]),
        ];
        let found = summary(Process::Flow, 4, &pairs.iter().collect::<Vec<_>>());
        let names: Vec<&str> = found.0.iter().map(|(name, _)| name.as_str()).collect();
        let expected = [
            "all.pairs",
            "all.loss",
            "all.coverage",
            "sigma_0-0.25.pairs",
            "sigma_0-0.25.loss",
            "sigma_0-0.25.coverage",
            "sigma_0.75-1.pairs",
            "sigma_0.75-1.loss",
        ];
        assert_eq!(names, expected);
        for (name, expected) in [("all.loss", 3.0), ("all.coverage", 0.5), ("sigma_0-0.25.loss", 1.5)] {
            assert_eq!(number(&found, name), Some(expected), "{name}");
        }
        assert_eq!(summary(Process::DdpmEps, 0, &[&pairs[0]]).0.len(), 3, "no levels");
    }

    proptest! {
        #[test]
        fn levels_partition_the_pairs_and_their_figures_weighted_by_pairs_are_those_of_all(
            pairs in prop::collection::vec((0f32..=1.0, -10f64..10.0), 1..40),
            levels in 1usize..12,
            flow in any::<bool>(),
        ) {
            let process = if flow { Process::Flow } else { Process::DdpmV };
            let time = |share: f32| if flow { share } else { (share * 999.0).floor() };
            let pairs: Vec<MeasuredPair> = pairs
                .iter()
                .enumerate()
                .map(|(i, (share, value))| pair(&i.to_string(), time(*share), &[("loss", *value)]))
                .collect();
            let found = summary(process, levels, &pairs.iter().collect::<Vec<_>>());
            let name = process.time_name();
            let (mut count, mut sum) = (0.0, 0.0);
            for (pairs, _) in found.0.iter().filter(|(n, _)| n.starts_with(name) && n.ends_with(".pairs")) {
                let of = number(&found, pairs).unwrap();
                prop_assert!(of > 0.0, "{} is empty", pairs);
                count += of;
                sum += of * number(&found, &pairs.replace(".pairs", ".loss")).unwrap();
            }
            prop_assert_eq!(count, pairs.len() as f64);
            let all = number(&found, "all.loss").unwrap();
            prop_assert!((sum / count - all).abs() < 1e-12 * 10.0);
        }
    }

    #[test]
    fn a_measurement_that_is_no_number_or_worse_than_the_reference_is_not_admitted() {
        let of = |figures: &[(&str, f64)]| summary(Process::Flow, 0, &[&pair("a", 0.5, figures)]);
        for criterion in [Criterion::Loss, Criterion::Winner] {
            let admits = |figures: &[(&str, f64)]| criterion.admits(&of(figures));
            assert!(admits(&[("loss", 0.5), ("w_diff", 0.0), ("plain_w_diff", -1.0)]));
            assert!(!admits(&[("loss", 0.1), ("w_diff", 1e-9)]));
            assert!(!admits(&[("loss", 0.1), ("w_diff", -1.0), ("plain_w_diff", 1e-9)]));
            assert!(!admits(&[("loss", 0.1), ("w_diff", f64::NAN)]));
            assert!(!admits(&[]));
        }
        assert!(!Criterion::Loss.admits(&of(&[("loss", f64::NAN), ("w_diff", -1.0)])));
        assert!(!Criterion::Loss.admits(&of(&[("loss", f64::NEG_INFINITY), ("w_diff", -1.0)])));
        let without_reference = of(&[("loss", 0.5), ("err_w", 0.7)]);
        assert!(Criterion::Winner.admits(&without_reference));
        assert_eq!(Criterion::Winner.value(&without_reference), Some(0.7));
    }
}
