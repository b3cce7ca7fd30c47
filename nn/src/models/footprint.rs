//! Numbers of values that a pass holds, and how many bytes they take on a device.

use std::ops::{Add, Sub};

use crate::{cost::DeviceKind, device::Precision, size};

/// Numbers of values that a pass holds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Held {
    /// Which a device may store in the precision of products.
    pub activations: f64,
    /// Always f32: statistics of norms and of attention.
    pub exact: f64,
}

impl Add for Held {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { activations: self.activations + other.activations, exact: self.exact + other.exact }
    }
}

impl Sub for Held {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { activations: self.activations - other.activations, exact: self.exact - other.exact }
    }
}

impl Held {
    pub fn max(self, other: Self) -> Self {
        Self { activations: self.activations.max(other.activations), exact: self.exact.max(other.exact) }
    }
}

/// How a device stores what a pass holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storage {
    /// Bytes of an activation.
    activation: usize,
}

impl Storage {
    /// That of a device of this kind, for products of this precision.
    pub fn new(on: DeviceKind, precision: Precision) -> Self {
        let activation = match on {
            DeviceKind::Cpu => size_of::<f32>(),
            DeviceKind::Cuda => value(precision),
        };
        Self { activation }
    }

    pub fn bytes(self, held: Held) -> usize {
        size::bytes(held.activations * self.activation as f64 + held.exact * size_of::<f32>() as f64)
    }
}

/// Bytes of a value in the precision of products.
pub(super) fn value(precision: Precision) -> usize {
    match precision {
        Precision::F32 => 4,
        Precision::Bf16 => 2,
    }
}

/// Bytes of so many values of factors on a device that makes them at once.
pub(super) fn factor_bytes(on: DeviceKind, precision: Precision, values: usize) -> usize {
    match on {
        DeviceKind::Cpu => 0,
        DeviceKind::Cuda => values.saturating_mul(value(precision)),
    }
}
