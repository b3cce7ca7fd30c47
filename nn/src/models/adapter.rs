//! The adapter of a pass.

use crate::{
    backbone::Latents,
    device::{Device, Queue},
    error::{Error, Result},
    lora::Adapter,
};

/// The same adapter, with its values on the device of a queue.
pub(super) fn placed<D: Device>(queue: &D::Queue, adapter: Adapter) -> Result<Adapter> {
    let values = queue.keep(queue.share(&adapter.values)?, adapter.values.len())?;
    Ok(Adapter { values, ..adapter })
}

/// Whether a backward is of its pass: with the adapter that the pass ran with, and a cotangent of the prediction's shape.
pub(super) fn check_backward(
    used: &Adapter,
    grid: (usize, usize, usize, usize),
    adapter: &Adapter,
    cotangent: &Latents,
) -> Result<()> {
    if cotangent.shape() != grid {
        return Err(Error::shape("derivative by the prediction", grid, cotangent.shape()));
    }
    if used.layout != adapter.layout || !used.values.equals(&adapter.values)? {
        return Err(Error::Setting(
            "the backward of a pass was asked for with another adapter than the pass ran with".into(),
        ));
    }
    Ok(())
}
