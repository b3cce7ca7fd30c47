//! Measured pictures as scores of subjects, and those as a total.

use prefgraph_ops::operators::benchmark::Mean;

/// What one metric says of one picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Number of its group: a subject, or a pair of subjects.
    pub group: usize,
    /// For each of its subjects the mean over the photographs that it was compared with. Of a metric that compares with the prompt it
    /// is one number.
    pub by_subject: Vec<f64>,
    /// Comparisons in all.
    pub comparisons: usize,
}

impl Measured {
    /// The mean over its subjects.
    pub fn mean(&self) -> f64 {
        self.by_subject.iter().sum::<f64>() / self.by_subject.len() as f64
    }

    /// The least of its subjects: a subject that was left out shows here, and hides in the mean.
    pub fn minimum(&self) -> f64 {
        self.by_subject.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

/// A sum and what it is to be divided by: totals are sums of these.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Weighted values.
    pub sum: f64,
    /// Their weights.
    pub weight: f64,
}

impl Tally {
    /// The value of several together; `None` where there are none.
    pub fn value(tallies: impl IntoIterator<Item = Self>) -> Option<f64> {
        let add = |all: Self, one: Self| Self { sum: all.sum + one.sum, weight: all.weight + one.weight };
        let all = tallies.into_iter().fold(Self::default(), add);
        (all.weight > 0.0).then(|| all.sum / all.weight)
    }
}

/// The score of a subject, or of a pair.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupScore {
    /// Number of the group.
    pub group: usize,
    /// Pictures that were scored.
    pub pictures: usize,
    /// Mean over pictures of the mean over their subjects.
    pub mean: f64,
    /// Mean over pictures of the least of their subjects.
    pub minimum: f64,
    /// What the mean adds to the total.
    pub tally: Tally,
    /// What the minimum adds to the total of minima.
    pub minimum_tally: Tally,
}

/// The scores of a method by one metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// By group, those that have pictures.
    pub groups: Vec<GroupScore>,
}

impl Score {
    /// Pictures in the order of the lists, as subjects and a total of this order of means.
    pub fn of(pictures: &[Measured], order: Mean) -> Self {
        let last = pictures.iter().map(|picture| picture.group).max().map_or(0, |group| group + 1);
        let mut by_group: Vec<Vec<&Measured>> = vec![Vec::new(); last];
        pictures.iter().for_each(|picture| by_group[picture.group].push(picture));
        let there = by_group.into_iter().enumerate().filter(|(_, pictures)| !pictures.is_empty());
        Self { groups: there.map(|(group, pictures)| GroupScore::of(group, &pictures, order)).collect() }
    }

    /// The total; `None` where there are no pictures.
    pub fn total(&self) -> Option<f64> {
        Tally::value(self.groups.iter().map(|group| group.tally))
    }

    /// The total of the minima over the subjects of each picture.
    pub fn minimum(&self) -> Option<f64> {
        Tally::value(self.groups.iter().map(|group| group.minimum_tally))
    }

    /// The group with the lowest mean; of equal ones the first.
    pub fn lowest(&self) -> Option<&GroupScore> {
        let lower = |a: &&GroupScore, b: &&GroupScore| a.mean.total_cmp(&b.mean);
        self.groups.iter().min_by(lower)
    }
}

impl GroupScore {
    fn of(group: usize, pictures: &[&Measured], order: Mean) -> Self {
        let tally = |value: fn(&Measured) -> f64| {
            let (mut sum, mut weight) = (0.0, 0.0);
            for picture in pictures {
                let counts = match order {
                    Mean::Subjects | Mean::Pictures => 1.0,
                    Mean::Comparisons => picture.comparisons as f64,
                };
                sum += counts * value(picture);
                weight += counts;
            }
            match order {
                Mean::Subjects => Tally { sum: sum / weight, weight: 1.0 },
                Mean::Pictures | Mean::Comparisons => Tally { sum, weight },
            }
        };
        let (mean, minimum) = (tally(Measured::mean), tally(Measured::minimum));
        let value = |tally: Tally| tally.sum / tally.weight;
        Self {
            group,
            pictures: pictures.len(),
            mean: value(mean),
            minimum: value(minimum),
            tally: mean,
            minimum_tally: minimum,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pictures() -> Vec<Measured> {
        let picture = |group, by_subject: &[f64], comparisons| Measured {
            group,
            by_subject: by_subject.into(),
            comparisons,
        };
        vec![
            picture(0, &[0.2, 0.6], 5),
            picture(0, &[0.5, 0.5], 5),
            picture(0, &[0.8, 0.4], 5),
            picture(2, &[0.1, 0.9], 9),
        ]
    }

    /// By hand: group 0 has means 0.4, 0.5, 0.6 and minima 0.2, 0.5, 0.4; group 2 has 0.5 and 0.1; group 1 has no pictures.
    #[test]
    fn means_are_taken_in_the_order_that_is_asked_for() {
        let near = |found: Option<f64>, expected: f64| {
            assert!((found.unwrap() - expected).abs() < 1e-15, "{found:?} {expected}");
        };
        let score = |order| Score::of(&pictures(), order);
        near(score(Mean::Subjects).total(), (0.5 + 0.5) / 2.0);
        near(score(Mean::Subjects).minimum(), (1.1 / 3.0 + 0.1) / 2.0);
        near(score(Mean::Pictures).total(), (0.4 + 0.5 + 0.6 + 0.5) / 4.0);
        near(score(Mean::Pictures).minimum(), (0.2 + 0.5 + 0.4 + 0.1) / 4.0);
        near(score(Mean::Comparisons).total(), (5.0 * 1.5 + 9.0 * 0.5) / 24.0);
        near(score(Mean::Comparisons).minimum(), (5.0 * 1.1 + 9.0 * 0.1) / 24.0);
    }

    #[test]
    fn a_group_without_pictures_is_none_and_not_zero() {
        let score = Score::of(&pictures(), Mean::Subjects);
        assert_eq!(score.groups.iter().map(|g| (g.group, g.pictures)).collect::<Vec<_>>(), [(0, 3), (2, 1)]);
        assert_eq!(Score::of(&[], Mean::Subjects).total(), None);
    }

    #[test]
    fn the_lowest_group_is_the_first_of_equal_ones() {
        let score = Score::of(&pictures(), Mean::Subjects);
        assert_eq!(score.lowest().unwrap().group, 0);
        let mut changed = pictures();
        changed[3].by_subject = vec![0.0, 0.9];
        assert_eq!(Score::of(&changed, Mean::Subjects).lowest().unwrap().group, 2);
    }
}
