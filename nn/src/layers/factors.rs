//! Factors of an adapter that are made before a pass, all at once.
//!
//! A device whose matrices serve both directions makes every factor of an adapter in one go: hundreds of small kernels would take longer
//! than their work. B matrices stand alone. Which A matrices stand one below the other, those of linears that read one input, is
//! what passes ask for: a model remembers it, and the factors of its next pass are made so.

use std::{
    collections::{BTreeSet, HashMap},
    ops::{Deref, Range},
    sync::{Mutex, PoisonError},
};

use crate::{
    backbone::LinearLayout,
    device::{Device, FactorParts, Queue},
};

/// The groups of linears that passes of a model have asked for factors of, by their numbers, adapted or not.
#[derive(Debug, Default)]
pub struct FactorGroups(Mutex<BTreeSet<Vec<usize>>>);

impl FactorGroups {
    /// Remember one.
    pub(super) fn remember(&self, group: Vec<usize>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(group);
    }

    fn all(&self) -> Vec<Vec<usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// A factor for products: one that was made before the pass, or one that is made for its place.
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

/// Where an adapter has what of each linear.
#[derive(Clone, Copy)]
pub(super) struct Places<'a> {
    pub linears: &'a [LinearLayout],
    pub rank: usize,
    pub scale: f32,
    /// A and B.
    pub factors: &'a [Option<(Range<usize>, Range<usize>)>],
    pub whole: &'a [Option<Range<usize>>],
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
    /// Nothing where the device makes each when it is needed.
    pub fn new(
        queue: &D::Queue,
        values: &D::Buffer,
        places: Places<'_>,
        groups: &FactorGroups,
    ) -> Option<Self> {
        if !D::ONE_COPY {
            return None;
        }
        let Places { linears, rank, scale, factors, whole } = places;
        let alone = linears.iter().enumerate().filter_map(|(i, linear)| {
            let (place, columns, scale) = match (&factors[i], &whole[i]) {
                (Some((_, b)), _) => (b, rank, scale),
                (None, Some(whole)) => (whole, linear.inputs, 1.0),
                (None, None) => return None,
            };
            Some((i, FactorParts { starts: vec![place.start], rows: linear.outputs, columns, scale }))
        });
        let groups = groups.all().into_iter().filter_map(|group| {
            let a = |i: usize| Some((i, factors[i].as_ref()?.0.start));
            let (group, starts): (Vec<usize>, Vec<usize>) = group.into_iter().filter_map(a).unzip();
            let columns = linears[*group.first()?].inputs;
            Some((group, FactorParts { starts, rows: rank, columns, scale: 1.0 }))
        });
        let (alone, mut wanted): (Vec<_>, Vec<_>) = alone.unzip();
        let (groups, stacked): (Vec<_>, Vec<_>) = groups.unzip();
        wanted.extend(stacked);
        let mut made = queue.factors(values, &wanted)?.into_iter();
        Some(Self {
            alone: alone.into_iter().zip(made.by_ref()).collect(),
            stacked: groups.into_iter().zip(made).collect(),
        })
    }
}
