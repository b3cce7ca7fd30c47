//! Factors of an adapter that are made at once, for a pass or for a block of it.
//!
//! A device whose matrices serve both directions makes many factors in one go: hundreds of small kernels would take longer than their
//! work. B matrices stand alone. Which A matrices stand one below the other, those of linears that read one input, is what passes
//! ask for: a model remembers it, and the factors of its next pass are made so.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Deref,
    sync::{Mutex, PoisonError},
};

use crate::device::{Device, FactorParts, Queue};

/// The groups of linears that passes of a model have asked for factors of, by their numbers, adapted or not.
#[derive(Debug, Default)]
pub struct FactorGroups(Mutex<BTreeSet<Vec<usize>>>);

impl FactorGroups {
    /// Remember one.
    pub(super) fn remember(&self, group: Vec<usize>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(group);
    }

    /// What `known` gives of the linears of each group: nothing where it knows none.
    fn of<T>(&self, known: impl Fn(usize) -> Option<T>) -> Vec<Vec<T>> {
        let groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = groups.iter().map(|group| group.iter().filter_map(|number| known(*number)).collect());
        known.filter(|found: &Vec<T>| !found.is_empty()).collect()
    }
}

/// A factor for products: one of those that were made at once, or one that is made for its place.
#[derive(Debug)]
pub(super) enum Factor<'a, D: Device> {
    Kept(&'a D::Matrix),
    Made(D::Matrix),
}

impl<D: Device> Deref for Factor<'_, D> {
    type Target = D::Matrix;

    fn deref(&self) -> &D::Matrix {
        match self {
            Self::Kept(matrix) => matrix,
            Self::Made(matrix) => matrix,
        }
    }
}

/// Where an adapter's values begin that are trained of a linear.
#[derive(Clone, Copy)]
pub(super) enum TrainedPart {
    /// A and B.
    Factors { a: usize, b: usize },
    /// The matrix of a linear that is trained whole.
    Whole(usize),
}

/// The factors that were made at once, by the numbers of their linears.
#[derive(Debug)]
pub(super) struct Factors<D: Device> {
    /// B, or the matrix of a linear that is trained whole.
    pub alone: HashMap<usize, D::Matrix>,
    /// A matrices of the adapted linears of a group, one below the other.
    pub stacked: HashMap<Vec<usize>, D::Matrix>,
}

impl<D: Device> Factors<D> {
    /// Of these linears: number, outputs and inputs, and where their values begin. Nothing where the device makes each factor when it
    /// is needed.
    pub fn new(
        queue: &D::Queue,
        values: &D::Buffer,
        (rank, scale): (usize, f32),
        linears: impl Iterator<Item = (usize, (usize, usize), TrainedPart)>,
        groups: &FactorGroups,
    ) -> Option<Self> {
        if !D::ONE_COPY {
            return None;
        }
        let (mut alone, mut wanted, mut branches) = (Vec::new(), Vec::new(), HashMap::new());
        for (number, (outputs, inputs), place) in linears {
            let (start, columns, scale) = match place {
                TrainedPart::Factors { a, b } => {
                    branches.insert(number, (a, inputs));
                    (b, rank, scale)
                }
                TrainedPart::Whole(start) => (start, inputs, 1.0),
            };
            alone.push(number);
            wanted.push(FactorParts { starts: vec![start], rows: outputs, columns, scale });
        }
        let mut stacked = Vec::new();
        for group in groups.of(|number| Some((number, *branches.get(&number)?))) {
            let columns = group[0].1.1;
            let (group, starts) = group.into_iter().map(|(number, (start, _))| (number, start)).unzip();
            wanted.push(FactorParts { starts, rows: rank, columns, scale: 1.0 });
            stacked.push(group);
        }
        if wanted.is_empty() {
            return None;
        }
        let mut made = queue.factors(values, &wanted)?.into_iter();
        Some(Self {
            alone: alone.into_iter().zip(made.by_ref()).collect(),
            stacked: stacked.into_iter().zip(made).collect(),
        })
    }
}
