//! The samples of each step: a pure function of (seed, node, step).

use std::collections::BTreeMap;

use crate::random::Random;

/// Samples by their number of references, in ascending order of that number.
#[derive(Clone, Debug)]
pub struct Order {
    groups: Vec<Group>,
    batch: usize,
    shuffle: bool,
}

/// Samples that may share a batch.
#[derive(Clone, Debug)]
pub struct Group {
    /// References of each sample.
    pub references: usize,
    /// Numbers of the samples.
    pub samples: Vec<usize>,
}

/// The batch of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Number of its group.
    pub group: usize,
    /// Numbers of its samples.
    pub samples: Vec<usize>,
    /// All samples of the group, in the order of this epoch, starting after the batch: who replaces whom.
    pub spares: Vec<usize>,
}

impl Order {
    /// Group samples, given the number of references of each.
    pub fn new(references: impl Iterator<Item = usize>, batch: usize, shuffle: bool) -> Self {
        let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (sample, count) in references.enumerate() {
            groups.entry(count).or_default().push(sample);
        }
        let groups = groups.into_iter().map(|(references, samples)| Group { references, samples });
        Self { groups: groups.collect(), batch, shuffle }
    }

    /// The groups.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Batches until every sample was seen.
    pub fn epoch(&self) -> u64 {
        self.groups.iter().map(|g| g.samples.len().div_ceil(self.batch) as u64).sum()
    }

    /// The batch of `step`: every group is permuted and cut into batches, the last one filled from the group's
    /// beginning, so that no sample is left out; the batches of all groups are shuffled.
    pub fn at(&self, seed: u64, node: &str, step: u64) -> Batch {
        let length = self.epoch().max(1);
        let (epoch, place) = (step / length, (step % length) as usize);
        let mut batches: Vec<(usize, usize)> = Vec::new();
        for (g, group) in self.groups.iter().enumerate() {
            batches.extend((0..group.samples.len().div_ceil(self.batch)).map(|b| (g, b)));
        }
        let (group, number) = if self.shuffle {
            batches[Random::new(seed, node, epoch, "order of batches").permutation(batches.len())[place]]
        } else {
            batches[place]
        };
        let Group { references, samples } = &self.groups[group];
        let count = samples.len();
        let order: Vec<usize> = if self.shuffle {
            let purpose = format!("order of samples with {references} references");
            Random::new(seed, node, epoch, &purpose).permutation(count)
        } else {
            (0..count).collect()
        };
        let sample = |i: usize| samples[order[i % count]];
        let first = number * self.batch;
        Batch {
            group,
            samples: (first..first + self.batch).map(sample).collect(),
            spares: (first + self.batch..first + self.batch + count).map(sample).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_epoch_sees_every_sample_and_never_mixes_groups(
            counts in prop::collection::vec(0usize..3, 1..40),
            batch in 1usize..6,
            shuffle in any::<bool>(),
            seed in any::<u64>(),
            epoch in 0u64..4,
        ) {
            let order = Order::new(counts.iter().copied(), batch, shuffle);
            let length = order.epoch();
            let mut seen = vec![0; counts.len()];
            for step in epoch * length..(epoch + 1) * length {
                let found = order.at(seed, "pairs", step);
                prop_assert_eq!(found.samples.len(), batch);
                let references = order.groups()[found.group].references;
                prop_assert!(found.samples.iter().chain(&found.spares).all(|s| counts[*s] == references));
                found.samples.iter().for_each(|s| seen[*s] += 1);
            }
            prop_assert!(seen.iter().all(|n| *n >= 1));
            // What is seen twice fills the last batch of a group.
            prop_assert!(seen.iter().sum::<usize>() - counts.len() <= order.groups().len() * (batch - 1));
        }
    }

    #[test]
    fn a_step_is_the_same_whatever_was_asked_before_and_epochs_differ() {
        let order = Order::new([1; 64].into_iter(), 4, true);
        let all: Vec<Batch> = (0..32).map(|s| order.at(9, "pairs", s)).collect();
        assert_eq!(order.at(9, "pairs", 21), all[21]);
        assert_ne!(order.at(8, "pairs", 21), all[21]);
        assert_ne!(all[..16], all[16..]);
        let plain = Order::new([1; 8].into_iter(), 4, false);
        assert_eq!(plain.at(9, "pairs", 3).samples, [4, 5, 6, 7]);
    }
}
