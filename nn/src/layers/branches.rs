//! The factors of the trained adapter, by the linears of a model.
//!
//! `N` outputs, `K` inputs, `R` rank, `J` adapted linears of a group.

use std::ops::Range;

use super::Linear;
use crate::{
    backbone::LinearLayout,
    device::{Device, Direction, Queue, View},
    error::{Error, Result},
    lora::Adapter,
};

/// The factors of an adapter, by the number of their linear.
#[derive(Debug)]
pub struct Branches<D: Device> {
    pub(super) rank: usize,
    pub(super) scale: f32,
    values: D::Buffer,
    /// Where A and B stand in the adapter's values.
    places: Vec<Option<(Range<usize>, Range<usize>)>>,
}

impl<D: Device> Branches<D> {
    /// Match an adapter with the linears of a model.
    ///
    /// # Errors
    /// If the adapter has a module that the model has not, twice, or of other widths; if it holds another number of
    /// values than its layout says.
    pub fn new(queue: &D::Queue, adapter: &Adapter, linears: &[LinearLayout]) -> Result<Self> {
        let layout = &adapter.layout;
        if adapter.values.len() != layout.len() {
            return Err(Error::shape("values of the adapter", layout.len(), adapter.values.len()));
        }
        if layout.rank == 0 {
            return Err(Error::Setting("the adapter's rank is 0: expected at least 1".into()));
        }
        let numbers: std::collections::HashMap<&str, usize> =
            linears.iter().enumerate().map(|(i, l)| (l.name.as_str(), i)).collect();
        let mut places = vec![None; linears.len()];
        for (module, place) in layout.modules.iter().zip(layout.ranges()) {
            let Some(&index) = numbers.get(module.name.as_str()) else {
                let near = crate::files::nearest(&module.name, linears.iter().map(|l| l.name.as_str()));
                let hint = near.map_or(String::new(), |n| format!("; nearest: `{n}`"));
                return Err(Error::Setting(format!(
                    "the adapter has factors for `{}`, which the model does not have{hint}",
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
            if places[index].replace(place).is_some() {
                return Err(Error::Setting(format!("the adapter has `{}` twice", module.name)));
            }
        }
        let values = queue.share(&adapter.values)?;
        Ok(Self { rank: layout.rank, scale: layout.scale(), values, places })
    }

    /// Has this linear factors?
    pub fn adapts(&self, linear: &Linear<D>) -> bool {
        self.place(linear).is_some()
    }

    pub(super) fn place(&self, linear: &Linear<D>) -> Option<&(Range<usize>, Range<usize>)> {
        linear.index().and_then(|i| self.places[i].as_ref())
    }

    fn view(&self, place: &Range<usize>) -> View<'_, D> {
        View::new(&self.values, 0).skip(place.start)
    }

    /// `s B [N, R]` as a factor: `h B^T` forward, `dy B` backward.
    pub(super) fn scaled_b(
        &self,
        queue: &D::Queue,
        linear: &Linear<D>,
        direction: Direction,
    ) -> Option<D::Matrix> {
        let (_, b) = self.place(linear)?;
        Some(queue.factor(&[self.view(b)], linear.outputs(), self.rank, self.scale, direction))
    }

    /// The A matrices of a group, one below the other, `[J R, K]`, as a factor: `x A^T` forward, `dh A` backward; with `J R`.
    /// Nothing if none is adapted.
    pub(super) fn stacked_a<'l>(
        &self,
        queue: &D::Queue,
        linears: impl Iterator<Item = &'l Linear<D>>,
        direction: Direction,
    ) -> Option<(D::Matrix, usize)> {
        let mut parts = Vec::new();
        let mut inputs = 0;
        for linear in linears {
            if let Some((a, _)) = self.place(linear) {
                parts.push(self.view(a));
                inputs = linear.inputs();
            }
        }
        let width = parts.len() * self.rank;
        (width > 0).then(|| (queue.factor(&parts, self.rank, inputs, 1.0, direction), width))
    }
}
