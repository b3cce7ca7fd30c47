//! The factors of the trained adapter, by the linears of a model.
//!
//! `N` outputs, `K` inputs, `R` rank, `J` adapted linears of a group.

use std::ops::Range;

use super::Linear;
use crate::{
    backbone::LinearLayout,
    error::{Error, Result},
    lora::Adapter,
};

/// The factors of an adapter, by the number of their linear.
#[derive(Debug)]
pub struct Branches<'a> {
    pub(super) rank: usize,
    pub(super) scale: f32,
    values: &'a [f32],
    /// Where A and B stand in the adapter's values.
    places: Vec<Option<(Range<usize>, Range<usize>)>>,
}

impl<'a> Branches<'a> {
    /// Match an adapter with the linears of a model.
    ///
    /// # Errors
    /// If the adapter has a module that the model has not, twice, or of other widths; if it holds another number of
    /// values than its layout says.
    pub fn new(adapter: &'a Adapter, linears: &[LinearLayout]) -> Result<Self> {
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
        Ok(Self { rank: layout.rank, scale: layout.scale(), values: &adapter.values, places })
    }

    /// Has this linear factors?
    pub fn adapts(&self, linear: &Linear) -> bool {
        self.place(linear).is_some()
    }

    pub(super) fn place(&self, linear: &Linear) -> Option<&(Range<usize>, Range<usize>)> {
        linear.index().and_then(|i| self.places[i].as_ref())
    }

    fn a(&self, linear: &Linear) -> Option<&'a [f32]> {
        self.place(linear).map(|(a, _)| &self.values[a.clone()])
    }

    /// `s B`, `[N, R]`.
    pub(super) fn scaled_b(&self, linear: &Linear) -> Option<Vec<f32>> {
        self.place(linear).map(|(_, b)| self.values[b.clone()].iter().map(|v| v * self.scale).collect())
    }

    /// The A matrices of a group, one below the other: `[J R, K]`; nothing if none is adapted.
    pub(super) fn stacked_a<'l>(
        &self,
        linears: impl Iterator<Item = &'l Linear>,
    ) -> Option<(Vec<f32>, usize)> {
        let mut stack = Vec::new();
        let mut adapted = 0;
        for a in linears.filter_map(|l| self.a(l)) {
            stack.extend_from_slice(a);
            adapted += 1;
        }
        (adapted > 0).then_some((stack, adapted * self.rank))
    }
}
