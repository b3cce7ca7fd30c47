//! The factors of the trained adapter, and what of it is trained whole, by the linears of a model.
//!
//! `N` outputs, `K` inputs, `R` rank, `J` adapted linears of a group.

use std::{ops::Range, sync::Arc};

use super::{
    FactorGroups, Linear,
    factors::{Factor, Factors, TrainedPart},
};
use crate::{
    backbone::LinearLayout,
    device::{CopyTokens, Device, Direction, Kind, Queue, TokenRows, View, ViewMut},
    error::{Error, Result},
    lora::Adapter,
};

/// The values of an adapter, by the number of their linear.
#[derive(Debug)]
pub struct Branches<D: Device> {
    pub(super) rank: usize,
    pub(super) scale: f32,
    trained: Arc<Trained<D>>,
    /// Factors that were made at once.
    made: Option<Factors<D>>,
    groups: Arc<FactorGroups>,
}

/// An adapter's values, and where they have what.
#[derive(Debug)]
struct Trained<D: Device> {
    values: D::Buffer,
    /// Outputs and inputs of each linear.
    sizes: Vec<(usize, usize)>,
    /// A and B of each linear.
    places: Vec<Option<(Range<usize>, Range<usize>)>>,
    /// The matrices of linears that are trained whole.
    whole: Vec<Option<Range<usize>>>,
}

impl<D: Device> Branches<D> {
    /// Match an adapter with the linears of a model, whose passes have asked for these groups of factors. None is made yet.
    ///
    /// # Errors
    /// If the adapter has a module that the model has not, twice, or of other widths; if it holds another number of
    /// values than its layout says.
    pub fn new(
        queue: &D::Queue,
        adapter: &Adapter,
        linears: &[LinearLayout],
        groups: &Arc<FactorGroups>,
    ) -> Result<Self> {
        let layout = &adapter.layout;
        if adapter.values.len() != layout.len() {
            return Err(Error::shape("values of the adapter", layout.len(), adapter.values.len()));
        }
        if layout.rank == 0 && !layout.modules.is_empty() {
            return Err(Error::Setting("the adapter's rank is 0: expected at least 1".into()));
        }
        let numbers: std::collections::HashMap<&str, usize> =
            linears.iter().enumerate().map(|(i, l)| (l.name.as_str(), i)).collect();
        let find = |module: &LinearLayout| {
            let Some(&index) = numbers.get(module.name.as_str()) else {
                let near = crate::files::nearest(&module.name, linears.iter().map(|l| l.name.as_str()));
                let hint = near.map_or(String::new(), |n| format!("; nearest: `{n}`"));
                return Err(Error::Setting(format!(
                    "the adapter has `{}`, which the model does not have{hint}",
                    module.name
                )));
            };
            let linear = &linears[index];
            if (module.inputs, module.outputs) != (linear.inputs, linear.outputs) {
                return Err(Error::shape(
                    format!("inputs and outputs of the adapter's `{}`", module.name),
                    (linear.inputs, linear.outputs),
                    (module.inputs, module.outputs),
                ));
            }
            Ok(index)
        };
        let twice =
            |module: &LinearLayout| Error::Setting(format!("the adapter has `{}` twice", module.name));
        let mut places = vec![None; linears.len()];
        for (module, place) in layout.modules.iter().zip(layout.ranges()) {
            if places[find(module)?].replace(place).is_some() {
                return Err(twice(module));
            }
        }
        let mut whole = vec![None; linears.len()];
        for (module, place) in layout.whole.iter().zip(layout.whole_ranges()) {
            let index = find(module)?;
            if places[index].is_some() || whole[index].replace(place).is_some() {
                return Err(twice(module));
            }
        }
        let (values, sizes) =
            (queue.share(&adapter.values)?, linears.iter().map(|l| (l.outputs, l.inputs)).collect());
        let trained = Arc::new(Trained { values, sizes, places, whole });
        let (rank, scale) = (layout.rank, layout.scale());
        Ok(Self { rank, scale, trained, made: None, groups: Arc::clone(groups) })
    }

    /// The same with all factors made at once, where a device makes them so.
    #[must_use]
    pub fn with_all_factors(&self, queue: &D::Queue) -> Self {
        self.with_factors(queue, 0..self.trained.sizes.len())
    }

    /// The same with the factors of these linears alone: they live as long as what this returns.
    #[must_use]
    pub fn with_factors_of(&self, queue: &D::Queue, linears: &[&Linear<D>]) -> Self {
        self.with_factors(queue, linears.iter().filter_map(|linear| linear.index()))
    }

    fn with_factors(&self, queue: &D::Queue, numbers: impl Iterator<Item = usize>) -> Self {
        let Trained { values, sizes, places, whole } = &*self.trained;
        let trained = |number: usize| {
            let part = match (&places[number], &whole[number]) {
                (Some((a, b)), _) => TrainedPart::Factors { a: a.start, b: b.start },
                (None, Some(whole)) => TrainedPart::Whole(whole.start),
                (None, None) => return None,
            };
            Some((number, sizes[number], part))
        };
        let wanted = numbers.filter_map(trained);
        let made = Factors::new(queue, values, (self.rank, self.scale), wanted, &self.groups);
        Self { trained: Arc::clone(&self.trained), groups: Arc::clone(&self.groups), made, ..*self }
    }

    /// Is something of this linear trained?
    pub fn adapts(&self, linear: &Linear<D>) -> bool {
        self.place(linear).is_some() || self.whole_place(linear).is_some()
    }

    pub(super) fn whole_place(&self, linear: &Linear<D>) -> Option<&Range<usize>> {
        linear.index().and_then(|i| self.trained.whole[i].as_ref())
    }

    /// `[N, K]`, what is added to the weight of a linear that is trained whole, as a factor: `x D^T` forward, `dy D` backward.
    pub(super) fn whole(
        &self,
        queue: &D::Queue,
        linear: &Linear<D>,
        direction: Direction,
    ) -> Option<Factor<'_, D>> {
        Some(self.alone(queue, linear, self.whole_place(linear)?, (linear.inputs(), 1.0), direction))
    }

    pub(super) fn place(&self, linear: &Linear<D>) -> Option<&(Range<usize>, Range<usize>)> {
        linear.index().and_then(|i| self.trained.places[i].as_ref())
    }

    fn view(&self, place: &Range<usize>) -> View<'_, D> {
        View::new(&self.trained.values, 0).skip(place.start)
    }

    /// `s B [N, R]` as a factor: `h B^T` forward, `dy B` backward.
    pub(super) fn scaled_b(
        &self,
        queue: &D::Queue,
        linear: &Linear<D>,
        direction: Direction,
    ) -> Option<Factor<'_, D>> {
        let (_, place) = self.place(linear)?;
        Some(self.alone(queue, linear, place, (self.rank, self.scale), direction))
    }

    /// A matrix `[N, columns]` of a linear, scaled, as a factor of its own: a linear has one at most.
    fn alone(
        &self,
        queue: &D::Queue,
        linear: &Linear<D>,
        place: &Range<usize>,
        (columns, scale): (usize, f32),
        direction: Direction,
    ) -> Factor<'_, D> {
        let made = self.made.as_ref().and_then(|made| made.alone.get(&linear.index()?));
        made.map(Factor::Kept).unwrap_or_else(|| {
            Factor::Made(queue.factor(&[self.view(place)], linear.outputs(), columns, scale, direction))
        })
    }

    /// A of a convolution, `[R, I, taps]` from `start` on, as `[R, taps, I]`.
    fn taps_first(&self, queue: &D::Queue, start: usize, linear: &Linear<D>) -> D::Buffer {
        let (taps, channels) = (linear.taps(), linear.inputs() / linear.taps());
        let mut values = queue.take(self.rank * linear.inputs(), Kind::Exact);
        for tap in 0..taps {
            queue.copy_tokens(CopyTokens {
                rows: TokenRows { batch: self.rank, tokens: channels, width: 1 },
                from: (View::new(&self.trained.values, taps).skip(start + tap), channels),
                to: (ViewMut::new(&mut values, 1).skip(tap * channels), taps * channels),
            });
        }
        values
    }

    /// The way back: `[R, taps, I]` into `to` from `start` on.
    pub(super) fn channels_first(
        &self,
        queue: &D::Queue,
        values: &D::Buffer,
        (rank, taps, channels): (usize, usize, usize),
        to: &mut D::Buffer,
        start: usize,
    ) {
        for tap in 0..taps {
            queue.copy_tokens(CopyTokens {
                rows: TokenRows { batch: rank, tokens: channels, width: 1 },
                from: (View::new(values, 1).skip(tap * channels), taps * channels),
                to: (ViewMut::new(to, taps).skip(start + tap), channels),
            });
        }
    }

    /// The A matrices of a group, one below the other, `[J R, K]`, as a factor: `x A^T` forward, `dh A` backward; with `J R`.
    /// Nothing if none is adapted.
    pub(super) fn stacked_a<'l>(
        &self,
        queue: &D::Queue,
        linears: impl Iterator<Item = &'l Linear<D>>,
        direction: Direction,
    ) -> Option<(Factor<'_, D>, usize)> {
        let linears: Vec<&Linear<D>> = linears.collect();
        let place = |linear: &&'l Linear<D>| Some((*linear, self.place(linear)?.0.clone()));
        let adapted: Vec<(&Linear<D>, Range<usize>)> = linears.iter().filter_map(place).collect();
        let width = adapted.len() * self.rank;
        if let Some(made) = self.made.as_ref().filter(|_| linears.iter().all(|linear| linear.taps() == 1)) {
            let numbers: Vec<usize> = adapted.iter().filter_map(|(linear, _)| linear.index()).collect();
            match made.stacked.get(&numbers) {
                Some(matrix) => return Some((Factor::Kept(matrix), width)),
                None if adapted.is_empty() => {}
                None => self.groups.remember(linears.iter().filter_map(|linear| linear.index()).collect()),
            }
        }
        let inputs = adapted.last().map_or(0, |(linear, _)| linear.inputs());
        // Files have the taps of a window within channels, products the channels within taps.
        let by_taps: Vec<Option<D::Buffer>> = adapted
            .iter()
            .map(|(linear, a)| (linear.taps() > 1).then(|| self.taps_first(queue, a.start, linear)))
            .collect();
        let parts = adapted.iter().zip(&by_taps);
        let parts: Vec<View<'_, D>> = parts
            .map(|((_, a), by_taps)| {
                by_taps.as_ref().map_or(self.view(a), |values| View::new(values, inputs))
            })
            .collect();
        (width > 0).then(|| (Factor::Made(queue.factor(&parts, self.rank, inputs, 1.0, direction)), width))
    }
}
