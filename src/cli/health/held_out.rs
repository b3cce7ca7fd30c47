//! The newest measurement of every held-out pair.
//!
//! Held-out metrics are those with a prefix, e.g. `held_out.w_diff`. A set is measured batch by batch, over some steps in a row.

use std::collections::BTreeMap;

use prefgraph_ops::ports::{Metric, Metrics};

use super::change::{Change, Pair};

/// All pairs of one prefix.
#[derive(Clone, Debug, Default)]
pub(super) struct HeldOut {
    /// Under the mask, or of the whole picture where there is no mask.
    pairs: Newest,
    /// Of the whole picture, where there is a mask.
    plain: Newest,
    /// The last step at which some of them were measured.
    step: u64,
    /// The first of the steps in a row that end there.
    since: u64,
}

/// The newest measurement of each pair, by id.
///
/// The last batch of a set may be filled with its first pairs once more, at other times and with other noise. Of a pair's places in one
/// pass over the set, the one nearest to the beginning of its batch counts: there the pair is itself and fills nothing up, and there the
/// pairs of a [`measure`](prefgraph_ops::operators::measure) node are counted, too.
#[derive(Clone, Debug, Default)]
struct Newest(BTreeMap<String, Place>);

/// A pair at one of its places.
#[derive(Clone, Copy, Debug)]
struct Place {
    step: u64,
    row: usize,
    pair: Pair,
}

impl Newest {
    /// Note what a step has measured.
    fn note(&mut self, step: u64, pairs: Vec<(String, Pair)>) {
        let batch = pairs.len().max(1);
        for (row, (id, pair)) in pairs.into_iter().enumerate() {
            // Steps of a pass over all pairs.
            let pass = self.0.len().div_ceil(batch) as u64;
            let is_known = |place: &Place| place.step + pass > step && place.row < row;
            if !self.0.get(&id).is_some_and(is_known) {
                self.0.insert(id, Place { step, row, pair });
            }
        }
    }

    /// Forget what was measured before.
    fn keep(&mut self, since: u64) {
        self.0.retain(|_, place| place.step >= since);
    }

    fn change(&self) -> Option<Change> {
        Change::of(self.0.values().map(|place| place.pair))
    }
}

impl HeldOut {
    /// Note what a step has measured, by prefix.
    pub fn observe(all: &mut BTreeMap<String, Self>, step: u64, metrics: &Metrics) {
        // A row of steps has ended where one follows that measured nothing.
        all.values_mut().filter(|found| found.step + 1 < step).for_each(Self::settle);
        for prefix in metrics.0.iter().filter_map(|(name, _)| name.strip_suffix(".w_diff")) {
            let numbers = |name: &str| match metrics.get(&format!("{prefix}.{name}")) {
                Some(Metric::PerSample(values)) => Some(values.as_slice()),
                _ => None,
            };
            let Some(Metric::Texts(ids)) = metrics.get(&format!("{prefix}.id")) else { continue };
            let pairs = |w: &str, l: &str| -> Option<Vec<(String, Pair)>> {
                let (w, l) = (numbers(w)?, numbers(l)?);
                let pair = |(i, id): (usize, &String)| {
                    Some((id.clone(), Pair { w_diff: *w.get(i)?, l_diff: *l.get(i)? }))
                };
                ids.iter().enumerate().map(pair).collect()
            };
            let Some(masked) = pairs("w_diff", "l_diff") else { continue };
            let found = all.entry(prefix.to_owned()).or_default();
            if step > found.step + 1 {
                found.since = step;
            }
            found.step = step;
            found.pairs.note(step, masked);
            found.plain.note(step, pairs("plain_w_diff", "plain_l_diff").unwrap_or_default());
        }
    }

    /// The set has been measured as a whole: what was not found is not in it any more.
    pub fn settle(&mut self) {
        let since = self.since;
        [&mut self.pairs, &mut self.plain].into_iter().for_each(|newest| newest.keep(since));
    }

    /// How many pairs there are.
    pub fn len(&self) -> usize {
        self.pairs.0.len()
    }

    /// The last step at which some of them were measured.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// How they have changed: under the mask first where there is one, then the whole picture. Empty before the first
    /// measurement.
    pub fn changes(&self) -> Vec<Change> {
        let whole = |change: Change| Change { masked: false, ..change };
        match self.plain.change() {
            Some(plain) => self
                .pairs
                .change()
                .map(|c| Change { masked: true, ..c })
                .into_iter()
                .chain([whole(plain)])
                .collect(),
            None => self.pairs.change().map(whole).into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(ids: &[&str], w_diff: &[f64], l_diff: &[f64]) -> Metrics {
        let mut metrics = Metrics::default();
        metrics.per_sample("w_diff", vec![9.0; w_diff.len()]);
        metrics.per_sample("held_out.w_diff", w_diff.to_vec());
        metrics.per_sample("held_out.l_diff", l_diff.to_vec());
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        metrics.0.push(("held_out.id".into(), Metric::Texts(ids)));
        metrics
    }

    #[test]
    fn a_pair_counts_once_with_its_newest_measurement() {
        let mut all = BTreeMap::new();
        HeldOut::observe(&mut all, 22, &measured(&["a", "b"], &[9.0, 9.0], &[9.0, 9.0]));
        HeldOut::observe(&mut all, 23, &measured(&["c"], &[9.0], &[9.0]));
        HeldOut::observe(&mut all, 46, &measured(&["a", "b"], &[-3.0, 1.0], &[-3.0, 0.0]));
        HeldOut::observe(&mut all, 47, &measured(&["c"], &[-1.0], &[1.0]));
        let found = &all["held_out"];
        assert_eq!((all.len(), found.len(), found.step()), (1, 3, 47));
        let [change] = found.changes()[..] else { panic!("one change") };
        assert_eq!((change.w_diff.value, change.masked), (-1.0, false));
        // Margins -1, 2 and 0.
        assert_eq!(change.accuracy, 0.5);
        assert!((change.margin.value - 1.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn a_pair_that_fills_the_last_batch_counts_where_it_is_itself_whichever_batch_comes_first() {
        let (whole, filled) =
            (measured(&["a", "b"], &[1.0, 2.0], &[0.0; 2]), measured(&["c", "a"], &[3.0, 9.0], &[0.0; 2]));
        for steps in [[&whole, &filled], [&filled, &whole]] {
            let mut all = BTreeMap::new();
            // Twice: the second time all are known from the first.
            for (step, metrics) in [10, 11, 30, 31].into_iter().zip(steps.into_iter().cycle()) {
                HeldOut::observe(&mut all, step, metrics);
            }
            let [change] = all["held_out"].changes()[..] else { panic!("one change") };
            assert_eq!((all["held_out"].len(), change.w_diff.value), (3, 2.0));
        }
    }

    #[test]
    fn pairs_that_are_measured_at_every_step_in_another_order_each_time_have_their_newest_numbers() {
        let mut all = BTreeMap::new();
        HeldOut::observe(&mut all, 0, &measured(&["a", "b"], &[1.0, 1.0], &[0.0; 2]));
        HeldOut::observe(&mut all, 1, &measured(&["b", "a"], &[5.0, 5.0], &[0.0; 2]));
        let [change] = all["held_out"].changes()[..] else { panic!("one change") };
        assert_eq!(change.w_diff.value, 5.0);
    }

    #[test]
    fn under_a_mask_the_whole_picture_is_measured_as_well() {
        let mut all = BTreeMap::new();
        let mut metrics = measured(&["a", "b"], &[-1.0, -1.0], &[0.0, 0.0]);
        metrics.per_sample("held_out.plain_w_diff", vec![2.0, 4.0]);
        metrics.per_sample("held_out.plain_l_diff", vec![2.0, 2.0]);
        HeldOut::observe(&mut all, 0, &metrics);
        let [masked, whole] = all["held_out"].changes()[..] else { panic!("two changes") };
        assert_eq!(
            (masked.masked, masked.w_diff.value, whole.masked, whole.w_diff.value),
            (true, -1.0, false, 3.0)
        );
        assert_eq!((masked.accuracy, whole.accuracy), (1.0, 0.25));
    }

    #[test]
    fn what_has_no_prefix_or_no_ids_is_not_held_out() {
        let mut all = BTreeMap::new();
        let mut metrics = measured(&["a"], &[1.0], &[0.0]);
        metrics.0.retain(|(name, _)| name != "held_out.id");
        HeldOut::observe(&mut all, 0, &metrics);
        assert!(all.is_empty());
        assert!(HeldOut::default().changes().is_empty());
    }
}
