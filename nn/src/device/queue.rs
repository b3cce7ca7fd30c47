//! The operations of a device.

use std::fmt;

use super::{
    Activation, Attention, AttentionBackward, CopyTokens, Device, DeviceVec, Direction, FactorParts,
    GateGrad, Gemm, GemmTn, GroupNorm, GroupNormBackward, HeadLayout, JointOrder, Kind, Norm, NormBackward,
    NormModulate, NormModulateBackward, Passing, SplitHeads, SplitHeadsBackward, TokenRows, View, ViewMut,
    Windows, WindowsBackward,
};
use crate::error::Result;

/// Operations in their order. A device may run them later than they are asked for; only [`download`](Self::download),
/// [`keep`](Self::keep) and [`finish`](Self::finish) wait, and they return the first error of the queue.
///
/// # Panics
/// Operations panic if a view is too short for its shape: that is a defect of the layer that calls.
pub trait Queue<D: Device<Queue = Self>>: fmt::Debug + Send + Sync + Sized + 'static {
    /// A buffer whose values are unspecified: whoever takes it writes before reading.
    fn take(&self, len: usize, kind: Kind) -> D::Buffer;

    /// A buffer of zeros.
    fn zeros(&self, len: usize, kind: Kind) -> D::Buffer;

    /// A buffer whose values the host writes, all of them.
    fn fill(&self, len: usize, kind: Kind, write: impl FnOnce(&mut [f32])) -> D::Buffer;

    /// A buffer with these values.
    fn upload(&self, values: &[f32], kind: Kind) -> D::Buffer {
        self.fill(values.len(), kind, |to| to.copy_from_slice(values))
    }

    /// A buffer with these values, only to be read; those that live on this device are not copied.
    ///
    /// # Errors
    /// If they live on another device that fails.
    fn share(&self, values: &DeviceVec) -> Result<D::Buffer>;

    /// A buffer of zeros whose values a caller will [`keep`](Self::keep).
    fn zeros_to_keep(&self, len: usize) -> D::Buffer {
        self.zeros(len, Kind::Exact)
    }

    /// The `len` values of a buffer, to outlive the queue where they are. Those of [`zeros_to_keep`](Self::zeros_to_keep) are
    /// not copied. Waits for everything.
    ///
    /// # Errors
    /// The first one of the queue.
    fn keep(&self, buffer: D::Buffer, len: usize) -> Result<DeviceVec>;

    /// `len` values of a buffer, from `start` on.
    ///
    /// # Errors
    /// The first one of the queue.
    fn download(&self, buffer: &D::Buffer, start: usize, len: usize) -> Result<Vec<f32>>;

    /// Wait for everything.
    ///
    /// # Errors
    /// The first one of the queue.
    fn finish(&self) -> Result<()>;

    /// A right factor from parts `[rows, columns]` that stand one below the other, times `scale`; parts have no gaps between
    /// rows.
    fn factor(
        &self,
        parts: &[View<'_, D>],
        rows: usize,
        columns: usize,
        scale: f32,
        direction: Direction,
    ) -> D::Matrix;

    /// Factors for both directions, made of f32 `values` all at once. Nothing on a device that makes a factor for one direction.
    fn factors(&self, values: &D::Buffer, wanted: &[FactorParts]) -> Option<Vec<D::Matrix>> {
        let _ = (values, wanted);
        None
    }

    /// Bring matrices to the device that will be used together and soon, those of a block, and drop what is held of the blocks before
    /// the last [`BLOCKS_AHEAD`](Device::BLOCKS_AHEAD) and the one in use. An empty group drops only. Nothing where products
    /// read the host's memory.
    ///
    /// # Errors
    /// If the device has no room for them.
    fn prefetch(&self, group: &[Passing<'_>]) -> Result<()> {
        let _ = group;
        Ok(())
    }

    /// Ask for products with a matrix that no device keeps: as it was [brought](Self::prefetch), or brought now. `pack` makes it
    /// where nothing is ever brought.
    ///
    /// # Errors
    /// If the device has no room for it.
    fn with_passing<T>(
        &self,
        matrix: &Passing<'_>,
        pack: impl FnOnce() -> Result<D::Matrix>,
        run: impl FnOnce(&D::Matrix) -> T,
    ) -> Result<T> {
        let _ = matrix;
        Ok(run(&pack()?))
    }

    /// A copy of `len` neighbouring values.
    fn copy(&self, from: View<'_, D>, len: usize, kind: Kind) -> D::Buffer {
        let mut to = self.take(len, kind);
        self.copy_to(from, len, ViewMut::new(&mut to, len));
        to
    }

    /// Copy `len` neighbouring values.
    fn copy_to(&self, from: View<'_, D>, len: usize, to: ViewMut<'_, D>);

    /// Copy tokens from one order to another.
    fn copy_tokens(&self, call: CopyTokens<'_, D>);

    /// Copy the rows of some streams to their places in the joint order.
    fn rows_to_joint(&self, order: JointOrder<'_>, from: View<'_, D>, mut joint: ViewMut<'_, D>) {
        let stride = joint.stride;
        for (rows, row, place) in order.streams() {
            let from = (from.skip(row * from.stride), rows.tokens);
            let to = (joint.again().skip(place * stride), order.tokens);
            self.copy_tokens(CopyTokens { rows, from, to });
        }
    }

    /// The way back: copy the rows of some streams from the joint order.
    fn rows_from_joint(&self, order: JointOrder<'_>, joint: View<'_, D>, mut to: ViewMut<'_, D>) {
        let stride = to.stride;
        for (rows, row, place) in order.streams() {
            let from = (joint.skip(place * joint.stride), order.tokens);
            let to = (to.again().skip(row * stride), rows.tokens);
            self.copy_tokens(CopyTokens { rows, from, to });
        }
    }

    /// `y += a x` for `len` neighbouring values.
    fn add_scaled(&self, a: f32, x: View<'_, D>, y: ViewMut<'_, D>, len: usize);

    /// `x *= a` for `len` neighbouring values.
    fn scale(&self, a: f32, x: ViewMut<'_, D>, len: usize);

    /// A product with a matrix.
    fn gemm(&self, call: Gemm<'_, D>);

    /// The same where each row is a sample of the batch. A device may compute few rows in another way than many; a row's bits still
    /// do not depend on the number of rows.
    fn gemm_of_samples(&self, call: Gemm<'_, D>) {
        self.gemm(call);
    }

    /// A sum over rows of products.
    fn gemm_tn(&self, call: GemmTn<'_, D>);

    /// From streams `[B, S, H D]`, whose rows stand one after the other and whose tokens follow one another in the attention, to
    /// their rows of `[B, H, T, D]`; rows of other streams are left alone. At most three operands, queries, keys and values, go
    /// together. The rotary embedding turns the pairs (2i, 2i + 1).
    fn split_heads(&self, streams: &[HeadLayout], operands: &mut [SplitHeads<'_, D>]);

    /// Backward of [`split_heads`](Self::split_heads).
    fn split_heads_backward(&self, streams: &[HeadLayout], operands: &mut [SplitHeadsBackward<'_, D>]);

    /// Softmax attention.
    fn attention(&self, call: Attention<'_, D>);

    /// Its backward.
    fn attention_backward(&self, call: AttentionBackward<'_, D>);

    /// Layer norm and modulation.
    fn norm_modulate(&self, call: NormModulate<'_, D>);

    /// Its backward.
    fn norm_modulate_backward(&self, call: NormModulateBackward<'_, D>);

    /// A norm of rows with its own weights.
    fn norm(&self, call: Norm<'_, D>);

    /// Its backward.
    fn norm_backward(&self, call: NormBackward<'_, D>);

    /// A norm of groups of a picture's channels.
    fn group_norm(&self, call: GroupNorm<'_, D>);

    /// Its backward.
    fn group_norm_backward(&self, call: GroupNormBackward<'_, D>);

    /// `y = f(x)` for `[rows, width]`.
    fn activate(&self, f: Activation, size: (usize, usize), x: View<'_, D>, y: ViewMut<'_, D>);

    /// Backward of [`Activation::Gelu`], in the place of its input: `x` becomes `dx = dy gelu'(x)`.
    fn gelu_backward(&self, size: (usize, usize), dy: View<'_, D>, x: ViewMut<'_, D>);

    /// `y = a gelu(b)` for `[rows, width]` (Shazeer 2020, GEGLU): a row of `x` has the `width` values of a, then those of b. The
    /// GELU is the one by its [definition](Activation::GeluErf).
    fn gated_gelu(&self, size: (usize, usize), x: View<'_, D>, y: ViewMut<'_, D>);

    /// Its backward: `dx`, of rows as those of `x`, is overwritten.
    fn gated_gelu_backward(&self, size: (usize, usize), x: View<'_, D>, dy: View<'_, D>, dx: ViewMut<'_, D>);

    /// `y *= x` for `[rows, width]`.
    fn multiply(&self, size: (usize, usize), x: View<'_, D>, y: ViewMut<'_, D>);

    /// The windows of a convolution, one a row.
    fn windows(&self, call: Windows<'_, D>);

    /// Their backward.
    fn windows_backward(&self, call: WindowsBackward<'_, D>);

    /// `x[b, t] += v[b]` for token rows without gaps; `v` is `[B, D]`.
    fn add_to_tokens(&self, rows: TokenRows, v: View<'_, D>, x: ViewMut<'_, D>);

    /// `y` becomes `x + gate[b] y` for the rows of some streams, one after the other; `gate` is `[B, D]`.
    fn gated_add(&self, rows: &[TokenRows], x: View<'_, D>, gate: View<'_, D>, y: ViewMut<'_, D>);

    /// Its backward: `dy = gate[b] dx`, overwritten, where `dx` is the cotangent of the sum, and of `x`. Of one stream where the gate's
    /// cotangent is wanted.
    fn gated_add_backward(
        &self,
        rows: &[TokenRows],
        dx: View<'_, D>,
        gate: View<'_, D>,
        dy: ViewMut<'_, D>,
        gate_grad: Option<GateGrad<'_, D>>,
    );

    /// The cosine between the mean of some rows `[tokens, width]`, weighted by `mask`, and each of the rows of `targets
    /// [count, width]`, into `out [count]`.
    fn scores(
        &self,
        width: usize,
        rows_and_mask: (View<'_, D>, &[f32]),
        targets_and_count: (View<'_, D>, usize),
        out: ViewMut<'_, D>,
    );
}
