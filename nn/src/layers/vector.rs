//! Biases, and weights of norms.

use crate::{
    device::{Device, Kind, Precision},
    error::{Error, Result},
    files::TensorView,
};

/// The `len` values of a tensor, on a device; `precision` is that of the products beside which activations are stored.
///
/// # Errors
/// If it has another number of values, or one that is not finite; if the device has no room.
pub fn vector<D: Device>(
    device: &D,
    view: &TensorView,
    len: usize,
    kind: Kind,
    precision: Precision,
) -> Result<D::Buffer> {
    let values = view.read_finite()?;
    if values.len() != len {
        return Err(Error::shape(format!("values of `{}`", view.name()), len, values.len()));
    }
    device.upload(&values, kind, precision)
}
