//! What a pass of a network costs.

use crate::{
    cuda::{PINNED, WORKSPACE},
    device::Precision,
};

/// The kind of device that a cost is asked for. Nothing is opened to answer, so that a graph can be planned for a GPU on a machine
/// that has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceKind {
    /// The processor.
    #[default]
    Cpu,
    /// A GPU, as [`cuda`](crate::cuda) uses it.
    Cuda,
}

impl DeviceKind {
    /// Bytes of a queue besides its buffers.
    pub fn queue_bytes(self) -> usize {
        match self {
            Self::Cpu => 0,
            Self::Cuda => WORKSPACE,
        }
    }

    /// Bytes of the host's memory that streamed weights pass through on their way to a queue.
    pub fn pinned_bytes(self) -> usize {
        match self {
            Self::Cpu => 0,
            Self::Cuda => PINNED,
        }
    }
}

/// Floating-point operations and bytes of one pass, for planning. A network without a backward leaves what belongs to it at
/// zero.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PassCost {
    /// Of the forward.
    pub forward_flops: f64,
    /// Of the backward into the adapter.
    pub backward_flops: f64,
    /// Bytes of weights that a forward reads.
    pub weight_bytes: f64,
    /// Held from forward to backward.
    pub saved_bytes: usize,
    /// Held while a pass runs, besides what it is given and what it gives.
    pub scratch_bytes: usize,
    /// The adapter's factors where all are made at once: held while the pass runs, and from forward to backward.
    pub factor_bytes: usize,
    /// Held while a backward runs.
    pub backward_scratch_bytes: usize,
    /// Held by the queue of the pass besides its buffers: while the pass runs, and from forward to backward. Queues are used
    /// again, and so is this memory.
    pub queue_bytes: usize,
    /// The same in the host's memory, where the queue is a GPU's.
    pub host_bytes: usize,
    /// What the operands of products are rounded to: most operations are those of products.
    pub precision: Precision,
}
