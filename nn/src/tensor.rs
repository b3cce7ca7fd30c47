//! A tensor on a device. Its axes are a dfdx shape: the compiler checks constant axes.

use dfdx::shapes::Shape;

use crate::{
    cpu::Cpu,
    device::Device,
    error::{Error, Result},
};

/// Contiguous, row-major `f32` values with the axes `S` on the device `D`.
#[derive(Clone, Debug)]
pub struct Tensor<S: Shape, D: Device = Cpu> {
    shape: S,
    buffer: D::Buffer,
}

impl<S: Shape, D: Device> Tensor<S, D> {
    /// Zeros.
    pub fn zeros(device: &D, shape: S) -> Self {
        Self { shape, buffer: device.zeros(shape.num_elements()) }
    }

    /// From values in row-major order.
    ///
    /// # Errors
    /// If their number is not the product of the axes.
    pub fn new(device: &D, shape: S, values: Vec<f32>) -> Result<Self> {
        if values.len() != shape.num_elements() {
            return Err(Error::shape("number of values", shape.num_elements(), values.len()));
        }
        Ok(Self { shape, buffer: device.upload(values) })
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
    /// The values, row-major.
    pub fn values(&self) -> &[f32] {
        &self.buffer
    }

    /// The values, row-major.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.buffer
    }

    /// The values, without a copy.
    pub fn into_values(self) -> Vec<f32> {
        self.buffer
    }
}
