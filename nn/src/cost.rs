//! What a pass of a network costs.

use crate::device::Precision;

/// Floating-point operations and bytes of one pass, for planning. A network without a backward leaves what belongs to it at
/// zero.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PassCost {
    /// Of the forward.
    pub forward_flops: f64,
    /// Of the backward into the adapter.
    pub backward_flops: f64,
    /// Held from forward to backward.
    pub saved_bytes: usize,
    /// Held while a pass runs, besides what it is given and what it gives.
    pub scratch_bytes: usize,
    /// Held while a backward runs.
    pub backward_scratch_bytes: usize,
    /// What the operands of products are rounded to: most operations are those of products.
    pub precision: Precision,
}
