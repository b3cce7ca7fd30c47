//! The operations of a device, on one stream.
//!
//! ```text
//!  mod         the stream, its errors, memory and copies     products   matrix products and factors
//!  pointwise   sums, activation functions, gates, windows    factors    products whose one side is an adapter's rank
//!  heads       projections by heads, and back                norms      norms and scores
//!  optimizer   AdamW, and questions about gradients          attention  attention
//!  rows        views as kernels take them                    streams    token rows of several streams
//! ```
//!
//! `B` samples, `T` tokens, `D` width.

#![allow(unsafe_code, reason = "launches of kernels and copies of memory")]

mod attention;
mod factors;
mod heads;
mod norms;
mod optimizer;
mod pointwise;
mod products;
mod rows;
mod streams;

use std::{
    mem::ManuallyDrop,
    sync::{Arc, Mutex, PoisonError},
};

use cudarc::driver::{DriverError, result, sys};

use self::rows::Rows;
use super::{
    context::{Cuda, Lane, Urgency},
    launch::{Argument, Grid, flag, int},
    memory::Memory,
    modules::Source,
    values::{CudaBuffer, CudaMatrix, Element, MatrixMemory},
    vec::CudaVec,
    window::Window,
};
use crate::{
    device::{
        Activation, Attention, AttentionBackward, CopyTokens, DeviceVec, Direction, FactorParts, GateGrad,
        Gemm, GemmTn, GroupNorm, GroupNormBackward, HeadLayout, JointOrder, Kind, Norm, NormBackward,
        NormModulate, NormModulateBackward, Passing, Precision, Queue, SplitHeads, SplitHeadsBackward,
        TokenRows, View, ViewMut, Windows, WindowsBackward,
    },
    error::{Error, Result},
};

/// A stream of a GPU, with the precision of its products.
///
/// Calls return at once; the stream does the work in their order. After the first error nothing more is done, and whoever waits
/// is told.
#[derive(Debug)]
pub struct CudaQueue {
    cuda: Cuda,
    precision: Precision,
    /// Given back when the queue is dropped.
    lane: ManuallyDrop<Lane>,
    failed: Mutex<Option<Error>>,
}

impl CudaQueue {
    pub(super) fn new(cuda: Cuda, precision: Precision, urgency: Urgency) -> Result<Self> {
        let lane = ManuallyDrop::new(cuda.0.lane(urgency)?);
        Ok(Self { cuda, precision, lane, failed: Mutex::new(None) })
    }

    /// The priority of its stream, in the driver's numbers: of two streams with work the one with the smaller number goes first.
    ///
    /// # Errors
    /// If the GPU is lost.
    pub fn priority(&self) -> Result<i32> {
        let mut priority = 0;
        let mut ask = || {
            self.lane.stream.context().bind_to_thread()?;
            // SAFETY: the stream lives, and the number has a place.
            unsafe { sys::cuStreamGetPriority(self.lane.stream.cu_stream(), &raw mut priority) }.result()
        };
        ask().map_err(|e| self.cuda.0.failed("tell a stream's priority", e))?;
        Ok(priority)
    }

    fn has_failed(&self) -> bool {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Keep the first error.
    fn note<T>(&self, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                None
            }
        }
    }

    /// The first error, for whoever waits. What follows is told that there was one.
    fn outcome(&self) -> Result<()> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(error) = failed.take() else { return Ok(()) };
        *failed = Some(self.cuda.0.error(format!("an operation before has failed: {error}")));
        Err(error)
    }

    /// Keep the driver's error, with what was asked of it: in words only where it failed, since this is asked for every kernel.
    fn driver<T>(&self, what: impl FnOnce() -> String, result: Result<T, DriverError>) -> Option<T> {
        self.note(result.map_err(|e| self.cuda.0.failed(&what(), e)))
    }

    fn buffer(&self, len: usize, element: Element) -> CudaBuffer {
        let memory = if self.has_failed() {
            None
        } else {
            let bytes = len * element.size();
            let what = || format!("hold {} MB more", bytes.div_ceil(1 << 20));
            self.driver(what, Memory::new(&self.lane.stream, bytes)).map(Arc::new)
        };
        CudaBuffer { memory, len, element }
    }

    /// How activations are stored.
    fn activation(&self) -> Element {
        Element::of(Kind::Activation, self.precision)
    }

    /// Ask for a kernel's work. The arguments are the kernel's, and views among them are long enough for its shape.
    fn launch(&self, source: Source, name: &'static str, grid: Grid, arguments: &[Argument]) {
        if self.has_failed() || grid.blocks.0 == 0 || grid.blocks.1 == 0 {
            return;
        }
        let Some(function) = self.note(self.cuda.0.function(source, self.precision, name, grid.shared))
        else {
            return;
        };
        // SAFETY: the operations of this module give the arguments of the kernel that they name; `Rows` has checked their
        // views; memory is of this stream or of the model.
        let launched = unsafe { function.launch(&self.lane.stream, grid, arguments) };
        self.driver(|| format!("run {name}"), launched);
    }

    /// Rows as they are stored elsewhere: from activations to f32, or back.
    fn convert(&self, from: Rows, to: Rows, rows: usize, width: usize) {
        let name = if to.element == Element::F32 { "to_exact" } else { "to_activation" };
        let wide = |r: Rows| if rows == 1 { r.is_aligned() } else { r.is_wide() };
        let arguments =
            [from.argument(), to.argument(), int(rows), int(width), int(from.stride), int(to.stride)];
        let arguments = [&arguments[..], &[flag(wide(from) && wide(to))]].concat();
        self.launch(Source::Pointwise, name, self.chunks(rows, width), &arguments);
    }

    /// Rows as activations: themselves, or a copy that the caller keeps until the work is asked for.
    fn as_activations(&self, from: Rows, rows: usize, width: usize) -> (Rows, Option<CudaBuffer>) {
        if from.element == self.activation() {
            return (from, None);
        }
        let copy = self.buffer(rows * width, self.activation());
        let to = Rows::of(View::new(&copy, width), rows, width);
        self.convert(from, to, rows, width);
        (to, Some(copy))
    }

    /// Write bytes from the host. They may be dropped when this returns.
    fn write(&self, bytes: &[u8], to: &CudaBuffer) {
        let Some(memory) = to.memory.as_ref().filter(|_| !self.has_failed()) else { return };
        let write = || {
            self.lane.stream.context().bind_to_thread()?;
            // SAFETY: the memory is as long as the bytes; from memory that is not pinned the driver copies before it
            // returns.
            unsafe { result::memcpy_htod_async(memory.pointer(), bytes, self.lane.stream.cu_stream()) }
        };
        self.driver(|| "read the host's memory".into(), write());
    }

    /// Work with the window of streamed weights, which is made when it is first needed.
    fn window<T>(&self, what: &str, work: impl FnOnce(&mut Window) -> Result<T, DriverError>) -> Result<T> {
        let mut window = self.lane.window.lock().unwrap_or_else(PoisonError::into_inner);
        let window = match &mut *window {
            Some(window) => Ok(window),
            none => Window::new(&self.cuda.0.context).map(|new| none.insert(new)),
        };
        window.and_then(work).map_err(|e| self.cuda.0.failed(what, e))
    }

    /// A streamed matrix, for the product that is asked for next.
    fn streamed(&self, matrix: &Passing<'_>) -> Result<CudaMatrix> {
        let (rows, columns, element) = (matrix.values.rows(), matrix.values.columns(), self.activation());
        let stream = &self.lane.stream;
        let memory = if self.has_failed() {
            MatrixMemory::Nowhere
        } else {
            self.window("hold a streamed weight", |window| match window.find(matrix.id, stream)? {
                Some(pointer) => Ok(MatrixMemory::Streamed(pointer)),
                None => {
                    window.fetch(matrix, element, stream).map(|memory| MatrixMemory::Own(Arc::new(memory)))
                }
            })?
        };
        Ok(CudaMatrix { memory, rows, columns, element })
    }

    /// An error if rows are not stored as activations are: kernels read nothing else.
    fn expect_activations<const N: usize>(&self, name: &str, rows: [Rows; N]) {
        if rows.iter().any(|r| r.element != self.activation()) {
            let message = format!("{name} takes activations of {:?} only", self.activation());
            self.note::<()>(Err(Error::Internal(message)));
        }
    }
}

impl Drop for CudaQueue {
    fn drop(&mut self) {
        // SAFETY: taken once, here.
        let mut lane = unsafe { ManuallyDrop::take(&mut self.lane) };
        let window = lane.window.get_mut().unwrap_or_else(PoisonError::into_inner);
        if window.as_mut().is_some_and(|window| window.clear(&lane.stream).is_err()) {
            // The stream has failed, and whoever waited for it was told. What it may still use is never given to others.
            std::mem::forget(window.take());
        }
        self.cuda.0.idle(lane);
    }
}

impl Queue<Cuda> for CudaQueue {
    fn take(&self, len: usize, kind: Kind) -> CudaBuffer {
        self.buffer(len, Element::of(kind, self.precision))
    }

    fn zeros(&self, len: usize, kind: Kind) -> CudaBuffer {
        let buffer = self.take(len, kind);
        if let Some(memory) = buffer.memory.as_ref().filter(|_| !self.has_failed()) {
            let write = || {
                self.lane.stream.context().bind_to_thread()?;
                // SAFETY: all bytes of the memory; zeros are 0.0 in f32 and in bf16.
                unsafe {
                    result::memset_d8_async(memory.pointer(), 0, memory.bytes(), self.lane.stream.cu_stream())
                }
            };
            self.driver(|| "write zeros".into(), write());
        }
        buffer
    }

    fn prefetch(&self, group: &[Passing<'_>]) -> Result<()> {
        if self.has_failed() {
            return Ok(());
        }
        let (element, stream) = (self.activation(), &self.lane.stream);
        self.window("hold streamed weights", |window| window.bring(group, element, stream))
    }

    fn with_passing<T>(
        &self,
        matrix: &Passing<'_>,
        _: impl FnOnce() -> Result<CudaMatrix>,
        run: impl FnOnce(&CudaMatrix) -> T,
    ) -> Result<T> {
        Ok(run(&self.streamed(matrix)?))
    }

    fn fill(&self, len: usize, kind: Kind, write: impl FnOnce(&mut [f32])) -> CudaBuffer {
        let mut values = vec![0.0; len];
        write(&mut values);
        self.upload(&values, kind)
    }

    fn upload(&self, values: &[f32], kind: Kind) -> CudaBuffer {
        let buffer = self.take(values.len(), kind);
        if buffer.element == Element::F32 {
            self.write(bytemuck::cast_slice(values), &buffer);
            return buffer;
        }
        // The GPU rounds faster than one thread of the host.
        let exact = self.upload(values, Kind::Exact);
        self.convert(Rows::flat(&exact, values.len()), Rows::flat(&buffer, values.len()), 1, values.len());
        buffer
    }

    fn share(&self, values: &DeviceVec) -> Result<CudaBuffer> {
        if let DeviceVec::Remote(values) = values
            && let Some(here) = CudaVec::on(&self.cuda, &**values)
        {
            return Ok(here.buffer().share());
        }
        Ok(self.upload(&values.host()?, Kind::Exact))
    }

    fn keep(&self, buffer: CudaBuffer, len: usize) -> Result<DeviceVec> {
        self.finish()?;
        Ok(DeviceVec::Remote(Arc::new(CudaVec::new(self.cuda.clone(), buffer, len))))
    }

    fn download(&self, buffer: &CudaBuffer, start: usize, len: usize) -> Result<Vec<f32>> {
        assert!(start + len <= buffer.len, "{len} values from {start} on in a buffer of {}", buffer.len);
        let size = buffer.element.size();
        let mut bytes = vec![0u8; len * size];
        if let Some(memory) = buffer.memory.as_ref().filter(|_| !self.has_failed()) {
            let from = memory.pointer() + (start * size) as u64;
            let mut read = || {
                self.lane.stream.context().bind_to_thread()?;
                // SAFETY: within the memory; the bytes live until the stream is done.
                unsafe { result::memcpy_dtoh_async(&mut bytes, from, self.lane.stream.cu_stream()) }?;
                self.lane.stream.synchronize()
            };
            let read = read();
            self.driver(|| "finish its work".into(), read);
        }
        self.outcome()?;
        Ok(buffer.element.values(&bytes))
    }

    fn finish(&self) -> Result<()> {
        self.driver(|| "finish its work".into(), self.lane.stream.synchronize());
        self.outcome()
    }

    fn factor(
        &self,
        parts: &[View<'_, Cuda>],
        rows: usize,
        columns: usize,
        scale: f32,
        _: Direction,
    ) -> CudaMatrix {
        self.scaled_factor(parts, rows, columns, scale)
    }

    fn factors(&self, values: &CudaBuffer, wanted: &[FactorParts]) -> Option<Vec<CudaMatrix>> {
        Some(self.scaled_factors(values, wanted))
    }

    fn copy_to(&self, from: View<'_, Cuda>, len: usize, to: ViewMut<'_, Cuda>) {
        let (from, to) = (Rows::of(from, 1, len), Rows::of_mut(&to, 1, len));
        if from.element != to.element {
            return self.convert(from, to, 1, len);
        }
        if self.has_failed() {
            return;
        }
        let copy = || {
            self.lane.stream.context().bind_to_thread()?;
            let bytes = len * from.element.size();
            // SAFETY: both ranges were checked, and a view that is written overlaps no other.
            unsafe {
                result::memcpy_dtod_async(to.pointer, from.pointer, bytes, self.lane.stream.cu_stream())
            }
        };
        self.driver(|| "copy".into(), copy());
    }

    fn rows_to_joint(&self, order: JointOrder<'_>, from: View<'_, Cuda>, joint: ViewMut<'_, Cuda>) {
        self.joint_copy(order, (from, joint.read()), true);
    }

    fn rows_from_joint(&self, order: JointOrder<'_>, joint: View<'_, Cuda>, to: ViewMut<'_, Cuda>) {
        self.joint_copy(order, (joint, to.read()), false);
    }

    fn copy_tokens(&self, call: CopyTokens<'_, Cuda>) {
        self.token_copy(call);
    }

    fn add_scaled(&self, a: f32, x: View<'_, Cuda>, y: ViewMut<'_, Cuda>, len: usize) {
        self.scaled_sum(a, Rows::of(x, 1, len), Rows::of_mut(&y, 1, len), len);
    }

    fn scale(&self, a: f32, x: ViewMut<'_, Cuda>, len: usize) {
        self.scaled(a, Rows::of_mut(&x, 1, len), len);
    }

    fn gemm(&self, call: Gemm<'_, Cuda>) {
        self.product_with_weight(call, false);
    }

    fn gemm_of_samples(&self, call: Gemm<'_, Cuda>) {
        self.product_with_weight(call, true);
    }

    fn gemm_tn(&self, call: GemmTn<'_, Cuda>) {
        self.sum_of_products(call);
    }

    fn split_heads(&self, streams: &[HeadLayout], operands: &mut [SplitHeads<'_, Cuda>]) {
        self.heads_from_tokens(streams, operands);
    }

    fn split_heads_backward(&self, streams: &[HeadLayout], operands: &mut [SplitHeadsBackward<'_, Cuda>]) {
        self.tokens_from_heads(streams, operands);
    }

    fn attention(&self, call: Attention<'_, Cuda>) {
        self.attend(call);
    }

    fn attention_backward(&self, call: AttentionBackward<'_, Cuda>) {
        self.attend_backward(call);
    }

    fn norm_modulate(&self, call: NormModulate<'_, Cuda>) {
        self.modulated_norm(call);
    }

    fn norm_modulate_backward(&self, call: NormModulateBackward<'_, Cuda>) {
        self.modulated_norm_backward(call);
    }

    fn norm(&self, call: Norm<'_, Cuda>) {
        self.norm_of_rows(call);
    }

    fn group_norm(&self, call: GroupNorm<'_, Cuda>) {
        self.norm_of_groups(call);
    }

    fn norm_backward(&self, call: NormBackward<'_, Cuda>) {
        self.norm_of_rows_backward(call);
    }

    fn group_norm_backward(&self, call: GroupNormBackward<'_, Cuda>) {
        self.norm_of_groups_backward(call);
    }

    fn windows_backward(&self, call: WindowsBackward<'_, Cuda>) {
        self.windows_of_backward(call);
    }

    fn add_to_tokens(&self, rows: TokenRows, v: View<'_, Cuda>, x: ViewMut<'_, Cuda>) {
        self.add_to_token_rows(rows, v, &x);
    }

    fn gated_gelu(&self, (rows, width): (usize, usize), x: View<'_, Cuda>, y: ViewMut<'_, Cuda>) {
        let (x, y) = (Rows::of(x, rows, 2 * width), Rows::of_mut(&y, rows, width));
        self.gated_gelu_rows((rows, width), x, y);
    }

    fn gated_gelu_backward(
        &self,
        (rows, width): (usize, usize),
        x: View<'_, Cuda>,
        dy: View<'_, Cuda>,
        dx: ViewMut<'_, Cuda>,
    ) {
        let (x, dy) = (Rows::of(x, rows, 2 * width), Rows::of(dy, rows, width));
        self.gated_gelu_rows_backward((rows, width), x, dy, Rows::of_mut(&dx, rows, 2 * width));
    }

    fn activate(
        &self,
        f: Activation,
        (rows, width): (usize, usize),
        x: View<'_, Cuda>,
        y: ViewMut<'_, Cuda>,
    ) {
        self.function(f, (rows, width), Rows::of(x, rows, width), Rows::of_mut(&y, rows, width));
    }

    fn multiply(&self, (rows, width): (usize, usize), x: View<'_, Cuda>, y: ViewMut<'_, Cuda>) {
        self.product_of_values((rows, width), Rows::of(x, rows, width), Rows::of_mut(&y, rows, width));
    }

    fn windows(&self, call: Windows<'_, Cuda>) {
        self.windows_of(call);
    }

    fn gelu_backward(&self, (rows, width): (usize, usize), dy: View<'_, Cuda>, x: ViewMut<'_, Cuda>) {
        let (dy, x) = (Rows::of(dy, rows, width), Rows::of_mut(&x, rows, width));
        self.gelu_rows_backward((rows, width), dy, x);
    }

    fn gated_add(&self, rows: &[TokenRows], x: View<'_, Cuda>, gate: View<'_, Cuda>, y: ViewMut<'_, Cuda>) {
        self.add_gated(rows, x, gate, &y);
    }

    fn gated_add_backward(
        &self,
        rows: &[TokenRows],
        dx: View<'_, Cuda>,
        gate: View<'_, Cuda>,
        dy: ViewMut<'_, Cuda>,
        gate_grad: Option<GateGrad<'_, Cuda>>,
    ) {
        self.add_gated_backward(rows, dx, gate, &dy, gate_grad);
    }

    fn scores(
        &self,
        width: usize,
        (rows, mask): (View<'_, Cuda>, &[f32]),
        (targets, count): (View<'_, Cuda>, usize),
        out: ViewMut<'_, Cuda>,
    ) {
        self.cosine_scores(width, (rows, mask), (targets, count), &out);
    }
}
