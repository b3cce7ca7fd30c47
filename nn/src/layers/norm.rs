//! Norms with weights of their own.
//!
//! ```text
//! M  rows (tokens or pixels)    D  width    G  groups of channels
//! ```

use super::{Map, vector};
use crate::{
    device::{self, Device, Kind, NormKind, Precision, Queue, View, ViewMut},
    error::{Error, Result},
    files::TensorView,
};

/// A weight or a bias `[D]` on a device: f32, whatever the precision of products.
fn exact<D: Device>(device: &D, view: &TensorView, width: usize) -> Result<D::Buffer> {
    vector(device, view, width, Kind::Exact, Precision::F32)
}

/// A layer norm or an RMS norm of rows.
#[derive(Debug)]
pub struct Norm<D: Device> {
    kind: NormKind,
    eps: f64,
    width: usize,
    weight: D::Buffer,
    bias: Option<D::Buffer>,
}

impl<D: Device> Norm<D> {
    /// From its weight and perhaps its bias, of rows of `width` values.
    ///
    /// # Errors
    /// If one has another shape or holds a value that is not finite; if the device has no room.
    pub fn new(
        device: &D,
        kind: NormKind,
        width: usize,
        weight: &TensorView,
        bias: Option<&TensorView>,
        eps: f64,
    ) -> Result<Self> {
        let weight = exact(device, weight, width)?;
        let bias = bias.map(|bias| exact(device, bias, width)).transpose()?;
        Ok(Self { kind, eps, width, weight, bias })
    }

    /// `[M, D]` of `x [M, D]`.
    pub fn run(&self, queue: &D::Queue, rows: usize, x: View<'_, D>) -> D::Buffer {
        let width = self.width;
        let mut y = queue.take(rows * width, Kind::Activation);
        queue.norm(device::Norm {
            rows,
            width,
            kind: self.kind,
            eps: self.eps,
            x,
            weight: &self.weight,
            bias: self.bias.as_ref(),
            y: ViewMut::new(&mut y, width),
        });
        y
    }

    /// Its backward: the part of the cotangent of `x [M, D]` that comes through the norm is added to `dx`.
    pub fn backward(
        &self,
        queue: &D::Queue,
        rows: usize,
        x: View<'_, D>,
        dy: View<'_, D>,
        dx: ViewMut<'_, D>,
    ) {
        let Self { kind, eps, width, ref weight, .. } = *self;
        queue.norm_backward(device::NormBackward { rows, width, kind, eps, x, weight, dy, dx });
    }
}

/// A group norm of pictures.
#[derive(Debug)]
pub struct GroupNorm<D: Device> {
    groups: usize,
    eps: f64,
    width: usize,
    weight: D::Buffer,
    bias: D::Buffer,
}

impl<D: Device> GroupNorm<D> {
    /// From its weight and its bias, of pictures with `width` channels in `groups` groups.
    ///
    /// # Errors
    /// As [`Norm::new`]; if the groups cannot share the channels.
    pub fn new(
        device: &D,
        (width, groups): (usize, usize),
        weight: &TensorView,
        bias: &TensorView,
        eps: f64,
    ) -> Result<Self> {
        if groups == 0 || !width.is_multiple_of(groups) {
            return Err(Error::shape(
                format!("channels of `{}` in {groups} groups", weight.name()),
                "whole",
                width,
            ));
        }
        let (weight, bias) = (exact(device, weight, width)?, exact(device, bias, width)?);
        Ok(Self { groups, eps, width, weight, bias })
    }

    /// The norm of pictures, each by itself, and the SiLU of it if that is wanted.
    pub fn run(&self, queue: &D::Queue, x: &Map<D>, silu: bool) -> Map<D> {
        let mut y = queue.take(x.len(), Kind::Activation);
        for sample in 0..x.samples {
            let at = sample * x.pixels() * self.width;
            queue.group_norm(device::GroupNorm {
                rows: x.pixels(),
                width: self.width,
                groups: self.groups,
                eps: self.eps,
                silu,
                x: x.view().skip(at),
                weight: &self.weight,
                bias: &self.bias,
                y: ViewMut::new(&mut y, self.width).skip(at),
            });
        }
        x.with(self.width, y)
    }

    /// Its backward: the cotangent of the pictures `x`.
    pub fn backward(&self, queue: &D::Queue, x: &Map<D>, silu: bool, dy: &Map<D>) -> Map<D> {
        let mut dx = queue.take(x.len(), Kind::Activation);
        for sample in 0..x.samples {
            let at = sample * x.pixels() * self.width;
            queue.group_norm_backward(device::GroupNormBackward {
                rows: x.pixels(),
                width: self.width,
                groups: self.groups,
                eps: self.eps,
                silu,
                x: x.view().skip(at),
                weight: &self.weight,
                bias: &self.bias,
                dy: dy.view().skip(at),
                dx: ViewMut::new(&mut dx, self.width).skip(at),
            });
        }
        x.with(self.width, dx)
    }
}
