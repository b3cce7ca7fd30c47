//! Tensors as ports: their cotangents, saved states and rows.

use std::sync::Arc;

use dfdx::{
    shapes::HasShape,
    tensor::{Cpu, TensorFromVec},
};

use crate::{
    batched::Batched,
    error::OpError,
    port::{Carried, Carry, Cotangent, NamedState, NamedTensor, Port, T, Value, take},
    row_major::RowMajor,
    rows::{Digest, Keep, SampleRows, digest},
    shape::{Axes, ErasedShape},
};

/// The dfdx device of all ports. Its cache of freed buffers is off: a plan predicts memory, and a cache would make
/// the prediction a lie.
pub fn host() -> Cpu {
    use dfdx::tensor::Cache;
    let device = Cpu::default();
    device.disable_cache();
    device
}

impl<S: Axes> Cotangent for T<S> {
    fn add(self, other: Self) -> Result<Self, OpError> {
        let (left, right) = (HasShape::shape(&self), HasShape::shape(&other));
        if left != right {
            return Err(OpError::internal(format!("cotangents of one port: {left:?} and {right:?}")));
        }
        Ok(dfdx::tensor_ops::TryAdd::try_add(self, other)?)
    }
    fn bytes(&self) -> usize {
        HasShape::shape(self).num_elements() * size_of::<f32>()
    }
    fn components(&self) -> Result<Vec<f32>, OpError> {
        Ok(self.row_major())
    }
}

impl<S: Axes> Port for T<S> {
    type Grad = Self;
    type Shape = S;

    fn label() -> String {
        S::label()
    }
    fn shape(&self) -> S {
        *HasShape::shape(self)
    }
    fn carry() -> Option<Carry> {
        Some(Carry::of::<Self>())
    }
    fn rows() -> Option<SampleRows> {
        rows::<S>()
    }
}

impl<S: Axes> Carried for T<S> {
    fn save(&self) -> Result<NamedState, OpError> {
        let values = Arc::new(self.row_major());
        let dims = HasShape::shape(self).concrete().into();
        Ok(NamedState { tensors: vec![NamedTensor { name: VALUE.into(), dims, values }], counters: vec![] })
    }
    fn restore(shape: &S, state: &NamedState) -> Result<Self, OpError> {
        let found = state.tensor(VALUE)?;
        let dims: Vec<usize> = shape.concrete().into();
        if found.dims != dims {
            return Err(OpError::new(format!("the state has axes {:?}, the graph {dims:?}", found.dims)));
        }
        Ok(host().try_tensor_from_vec(found.values.to_vec(), *shape)?)
    }
}

/// Rows, axes of one, and values of all.
fn parts<S: Axes>(tensor: &T<S>) -> (usize, Vec<usize>, Vec<f32>) {
    let dims: Vec<usize> = HasShape::shape(tensor).concrete().into();
    (dims[0], dims[1..].to_vec(), tensor.row_major())
}

impl<S: Axes> Batched for T<S> {
    fn digests(&self) -> Vec<Digest> {
        let (rows, axes, values) = parts(self);
        let size = axes.iter().product::<usize>();
        let one = |row: usize| {
            let bytes: Vec<u8> =
                values[row * size..(row + 1) * size].iter().flat_map(|v| v.to_le_bytes()).collect();
            digest("f32", &axes, [bytes])
        };
        (0..rows).map(one).collect()
    }
}

fn measure_tensor<S: Axes>(shape: &ErasedShape) -> Option<(usize, String)> {
    let dims: Vec<usize> = shape.get::<S>()?.concrete().into();
    Some((*dims.first()?, format!("{:?}", &dims[1..])))
}

/// The name of the one tensor of a saved state.
const VALUE: &str = "value";

fn split_tensor<S: Axes>(value: &Value) -> Result<Vec<NamedState>, OpError> {
    let (rows, dims, values) = parts(&take::<T<S>>(value));
    let size = dims.iter().product::<usize>();
    let one = |row: usize| NamedState {
        tensors: vec![NamedTensor {
            name: VALUE.into(),
            dims: dims.clone(),
            values: Arc::new(values[row * size..(row + 1) * size].to_vec()),
        }],
        counters: Vec::new(),
    };
    Ok((0..rows).map(one).collect())
}

fn join_tensor<S: Axes>(rows: &[NamedState]) -> Result<Value, OpError> {
    let first = rows.first().ok_or_else(|| OpError::internal("no rows to put together"))?;
    let axes = first.tensor(VALUE)?.dims.clone();
    let mut values = Vec::with_capacity(rows.len() * axes.iter().product::<usize>());
    for row in rows {
        let row = row.tensor(VALUE)?;
        if row.dims != axes {
            return Err(OpError::new(format!("rows of one batch have axes {axes:?} and {:?}", row.dims)));
        }
        values.extend_from_slice(&row.values);
    }
    let dims: Vec<usize> = std::iter::once(rows.len()).chain(axes).collect();
    let wrong = || OpError::new(format!("a tensor of axes {dims:?} is no {}", S::label()));
    let mut concrete = S::Concrete::default();
    if S::NUM_DIMS != dims.len() {
        return Err(wrong());
    }
    dims.iter().enumerate().for_each(|(axis, extent)| concrete[axis] = *extent);
    let shape = S::from_concrete(&concrete).ok_or_else(wrong)?;
    Ok(Arc::new(host().try_tensor_from_vec(values, shape)?))
}

/// The rows of a tensor whose first axis is the batch.
fn rows<S: Axes>() -> Option<SampleRows> {
    let keep = Keep { split: split_tensor::<S>, join: join_tensor::<S>, measure: |s| measure_tensor::<S>(s) };
    (!S::extents().is_empty()).then_some(SampleRows { keep: Some(keep), ..SampleRows::of::<T<S>>() })
}
