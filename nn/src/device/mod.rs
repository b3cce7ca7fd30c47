//! What a device is: where buffers live, and the operations that layers are made of.
//!
//! ```text
//!  view    parts of buffers as rows          calls   operands of the larger operations
//!  queue   the operations                    norms, windows, activation   the same of single groups of them
//!  matrix  frozen matrices as files have them     vec   values that outlive a pass     adamw   numbers of the optimiser
//! ```
//!
//! Layers and models are written once, over [`Device`] and its [`Queue`]; every device runs the same coarse, fused
//! operations in its own way. A buffer belongs to one device, and only the queue's `upload`, `fill` and `download` move
//! values between it and the host.

mod activation;
mod adamw;
mod calls;
mod matrix;
mod norms;
mod queue;
mod vec;
mod view;
mod windows;

use std::fmt;

pub use activation::Activation;
pub(crate) use adamw::Step;
pub use adamw::{AdamW, Update};
pub use calls::{
    Attention, AttentionBackward, AttentionShape, CopyTokens, Extra, FactorParts, GateGrad, Gemm, GemmTn,
    HeadLayout, JointOrder, Left, MOST_STREAMS, ModulationGrad, NormModulate, NormModulateBackward,
    NormRotary, Scores, SplitHeads, SplitHeadsBackward, TokenRows,
};
pub use matrix::{Matrix, Passing, Values};
pub use norms::{GroupNorm, GroupNormBackward, Norm, NormBackward, NormKind};
pub use queue::Queue;
pub use vec::{DeviceVec, Remote};
pub use view::{View, ViewMut};
pub use windows::{ConvWindow, WindowRows, Windows, WindowsBackward};

use crate::error::Result;

/// What the operands of products are rounded to. Sums are in f32 in either case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Not rounded.
    #[default]
    F32,
    /// To the nearest bf16, ties to even.
    Bf16,
}

/// Which product a frozen matrix `W [N, K]` is a factor of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// `y = x W^T`.
    Forward,
    /// `dx = dy W`.
    Backward,
}

/// What the values of a buffer are, which decides how a device may store them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Activations and their cotangents: a device may keep them in the precision of products.
    Activation,
    /// Always f32: statistics of norms and attention, adapters, their gradients and moments.
    Exact,
}

/// Low-rank factors that are added to a frozen matrix when it is made: `W + scale up down`.
#[derive(Clone, Debug)]
pub struct Merge<'a> {
    /// `[R, K]`.
    pub down: Matrix<'a>,
    /// `[N, R]`.
    pub up: Matrix<'a>,
    /// What their product is multiplied by.
    pub scale: f32,
}

/// A place where networks run.
pub trait Device: Clone + fmt::Debug + Send + Sync + 'static {
    /// A run of values on this device.
    type Buffer: fmt::Debug + Send + Sync + 'static;
    /// A right factor of products, as the device's kernels read it.
    type Matrix: fmt::Debug + Send + Sync + 'static;
    /// Operations in their order.
    type Queue: Queue<Self>;

    /// Do forward and backward products read the same [`Matrix`](Self::Matrix)?
    const ONE_COPY: bool;
    /// Do products read [windows](Left::Windows) where the pictures are? Others copy them first.
    const READS_WINDOWS: bool;
    /// Blocks of streamed weights that are brought to the device before the one in use; none where products read the host's
    /// memory.
    const BLOCKS_AHEAD: usize = 0;

    /// Name in messages, e.g. `cpu`.
    fn name(&self) -> String;

    /// A new queue whose products have this precision.
    ///
    /// # Errors
    /// If the device has no room for it.
    fn queue(&self, precision: Precision) -> Result<Self::Queue>;

    /// The same for what a training step waits for: a device that is shared by several queues does the work of this one first, and
    /// that of others where it leaves room. Bits are the same.
    ///
    /// # Errors
    /// If the device has no room for it.
    fn urgent_queue(&self, precision: Precision) -> Result<Self::Queue> {
        self.queue(precision)
    }

    /// Run the host's part of a pass where this device wants it to run.
    fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T;

    /// A frozen matrix for products of one direction; one that is `passing` serves one product and is dropped.
    ///
    /// # Errors
    /// If the device has no room for it.
    fn frozen(
        &self,
        rows: &Matrix<'_>,
        merge: Option<&Merge<'_>>,
        direction: Direction,
        precision: Precision,
        passing: bool,
    ) -> Result<Self::Matrix>;

    /// A buffer with these values, for queues whose products have this precision. It belongs to a model: any queue may read it.
    ///
    /// # Errors
    /// If the device has no room for it.
    fn upload(&self, values: &[f32], kind: Kind, precision: Precision) -> Result<Self::Buffer>;
}
