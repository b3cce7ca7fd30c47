//! Which queue a pass runs on.

use crate::{
    device::{Device, Precision},
    error::Result,
};

/// A queue for a pass. One that has a backward is what a step waits for, and others, the reference's most of all, may run beside it.
pub(super) fn queue_of_pass<D: Device>(device: &D, precision: Precision, saving: bool) -> Result<D::Queue> {
    if saving { device.urgent_queue(precision) } else { device.queue(precision) }
}
