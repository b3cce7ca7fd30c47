//! Values without their types: erased, or saved as named tensors.

use std::{any::Any, sync::Arc};

use crate::error::OpError;

/// A [`Port`](crate::Port) value whose type is known at run time only; it has lost its role, too. Cloning is cheap.
pub type Value = Arc<dyn Any + Send + Sync>;

/// One tensor of a saved state.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// Unique in its state.
    pub name: String,
    /// Extents of its axes.
    pub dims: Vec<usize>,
    /// Row-major.
    pub values: Arc<Vec<f32>>,
}

/// A value as named tensors and counters: what a checkpoint holds of a cell.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NamedState {
    /// In a fixed order.
    pub tensors: Vec<NamedTensor>,
    /// Whole numbers, e.g. the updates made.
    pub counters: Vec<(String, u64)>,
}

impl NamedState {
    /// The tensor of that name.
    ///
    /// # Errors
    /// If there is none; the message lists those there are.
    pub fn tensor(&self, name: &str) -> Result<&NamedTensor, OpError> {
        self.tensors.iter().find(|t| t.name == name).ok_or_else(|| {
            let there: Vec<_> = self.tensors.iter().map(|t| t.name.as_str()).collect();
            OpError::new(format!("the state has no tensor `{name}`, it has {}", there.join(", ")))
        })
    }

    /// The counter of that name.
    ///
    /// # Errors
    /// If there is none.
    pub fn counter(&self, name: &str) -> Result<u64, OpError> {
        let found = self.counters.iter().find(|(n, _)| n == name).map(|(_, v)| *v);
        found.ok_or_else(|| OpError::new(format!("the state has no counter `{name}`")))
    }
}
