//! The context of a layer: device, working memory, precision.

use super::{Branches, Buffer, Buffers, Linear, copy_rows};
use crate::cpu::{Cpu, Precision};

/// What layers work with: the device, working memory, and the adapter if there is one.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Where the work is done.
    pub device: &'a Cpu,
    /// Working memory.
    pub buffers: &'a Buffers,
    /// The adapter's factors.
    pub branches: Option<&'a Branches<'a>>,
    /// What the operands of products are rounded to.
    pub precision: Precision,
}

impl Context<'_> {
    /// Has this linear factors?
    pub fn adapts(&self, linear: &Linear) -> bool {
        self.branches.is_some_and(|b| b.adapts(linear))
    }

    /// A copy in working memory.
    pub fn copy(&self, values: &[f32]) -> Buffer {
        /// Values that one task copies.
        const PART: usize = 1 << 14;
        let mut copy = self.buffers.take(values.len());
        copy_rows(self.device, &mut copy, PART, |i, to| {
            to.copy_from_slice(&values[i * PART..][..to.len()]);
        });
        copy
    }
}
