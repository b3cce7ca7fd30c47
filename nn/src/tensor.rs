//! A tensor on a device. Its axes are a dfdx shape: the compiler checks constant axes.

use dfdx::shapes::Shape;

use crate::{
    cpu::Cpu,
    device::{Device, Kind, Precision},
    error::{Error, Result},
};

/// Contiguous, row-major `f32` values with the axes `S` on the device `D`.
#[derive(Debug)]
pub struct Tensor<S: Shape, D: Device = Cpu> {
    shape: S,
    buffer: D::Buffer,
}

impl<S: Shape, D: Device> Clone for Tensor<S, D>
where
    D::Buffer: Clone,
{
    fn clone(&self) -> Self {
        Self { shape: self.shape, buffer: self.buffer.clone() }
    }
}

impl<S: Shape, D: Device> Tensor<S, D> {
    /// From values in row-major order.
    ///
    /// # Errors
    /// If their number is not the product of the axes; if the device has no room for them.
    pub fn new(device: &D, shape: S, values: impl AsRef<[f32]>) -> Result<Self> {
        let values = values.as_ref();
        if values.len() != shape.num_elements() {
            return Err(Error::shape("number of values", shape.num_elements(), values.len()));
        }
        Ok(Self { shape, buffer: device.upload(values, Kind::Exact, Precision::F32)? })
    }

    /// The axes.
    pub fn shape(&self) -> S {
        self.shape
    }

    /// The extents of the axes.
    pub fn dims(&self) -> Vec<usize> {
        self.shape.concrete().into()
    }

    /// The values, on the device.
    pub fn buffer(&self) -> &D::Buffer {
        &self.buffer
    }
}

impl<S: Shape> Tensor<S, Cpu> {
    /// Zeros.
    pub fn zeros(device: &Cpu, shape: S) -> Self {
        Self { shape, buffer: device.buffers().zeros(shape.num_elements()) }
    }

    /// With values that the caller writes, all of them, row-major.
    pub fn filled(device: &Cpu, shape: S, write: impl FnOnce(&mut [f32])) -> Self {
        let mut buffer = device.buffers().take(shape.num_elements());
        write(&mut buffer);
        Self { shape, buffer }
    }

    /// The values, row-major.
    pub fn values(&self) -> &[f32] {
        &self.buffer
    }

    /// The values, row-major.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.buffer
    }

    /// The values, row-major.
    pub fn into_values(self) -> Vec<f32> {
        self.buffer.to_vec()
    }
}
