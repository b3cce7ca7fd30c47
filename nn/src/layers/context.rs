//! The context of a layer: device, working memory, precision.

use super::{Branches, Linear};
use crate::device::Device;

/// What layers work with: the queue of a device, and the adapter if there is one.
#[derive(Debug)]
pub struct Context<'a, D: Device> {
    /// Where the work is done.
    pub queue: &'a D::Queue,
    /// The adapter's factors.
    pub branches: Option<&'a Branches<D>>,
}

impl<D: Device> Clone for Context<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for Context<'_, D> {}

impl<D: Device> Context<'_, D> {
    /// Has this linear factors?
    pub fn adapts(&self, linear: &Linear<D>) -> bool {
        self.branches.is_some_and(|b| b.adapts(linear))
    }
}
