//! A value as one run of numbers, by the form in which it is kept in checkpoints.

use std::sync::Arc;

use crate::{
    error::OpError,
    port::{Carry, NamedState, PortType, Value},
    shape::ErasedShape,
};

/// A value and its components.
pub(super) struct Flat {
    carry: Carry,
    shape: ErasedShape,
    state: NamedState,
    values: Vec<f32>,
}

impl Flat {
    pub(super) fn of(carry: Carry, ty: &PortType, value: &Value) -> Result<Self, OpError> {
        let state = (carry.save)(value)?;
        let values = state.tensors.iter().flat_map(|t| t.values.iter().copied()).collect();
        Ok(Self { carry, shape: (ty.shape_of)(value), state, values })
    }

    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    pub(super) fn values(&self) -> &[f32] {
        &self.values
    }

    /// A value of the same shape with other components.
    pub(super) fn with(&self, values: Vec<f32>) -> Result<Value, OpError> {
        let mut state = self.state.clone();
        let mut rest = &values[..];
        for tensor in &mut state.tensors {
            let (own, others) = rest.split_at(tensor.values.len());
            tensor.values = Arc::new(own.to_vec());
            rest = others;
        }
        (self.carry.restore)(&self.shape, &state)
    }

    /// The indices of a component, after its tensor's name where there are several.
    pub(super) fn place(&self, mut component: usize) -> String {
        let mut tensors = self.state.tensors.iter();
        let tensor = tensors.find(|tensor| {
            let inside = component < tensor.values.len();
            if !inside {
                component -= tensor.values.len();
            }
            inside
        });
        let Some(tensor) = tensor else { return component.to_string() };
        let mut indices = vec![0; tensor.dims.len()];
        for (index, extent) in indices.iter_mut().zip(&tensor.dims).rev() {
            *index = component % extent;
            component /= extent;
        }
        let name = if self.state.tensors.len() > 1 { format!("{} ", tensor.name) } else { String::new() };
        format!("{name}{indices:?}")
    }
}
