//! Host memory on its way to a GPU: a ring of pinned buffers.
//!
//! From pinned memory a copy runs while host and GPU do other things. A buffer is written again once its last copy is done: only
//! where all are under way does the host wait.

#![allow(unsafe_code, reason = "pinned memory of the driver")]

use std::{ffi::c_void, ptr::NonNull, sync::Arc};

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result, sys::CUdeviceptr};

use super::values::Element;
use crate::device::Matrix;

/// Buffers of a ring: while some are copied from, the next is written.
const BUFFERS: usize = 4;
/// Bytes of each: long enough for the bus to reach its rate.
const BUFFER_BYTES: usize = 16 << 20;
/// Bytes of host memory that a ring pins.
pub(crate) const PINNED: usize = BUFFERS * BUFFER_BYTES;

/// Pinned memory, and when its last copy is done.
#[derive(Debug)]
struct Pinned {
    at: NonNull<u8>,
    copied: CudaEvent,
}

// SAFETY: plain memory of the process, which the ring alone points to.
unsafe impl Send for Pinned {}

impl Pinned {
    fn new(context: &Arc<CudaContext>) -> Result<Self, DriverError> {
        let copied = context.new_event(None)?;
        // SAFETY: the context is current: the event was just made in it.
        let at = unsafe { result::malloc_host(BUFFER_BYTES, 0) }?;
        let at = NonNull::new(at.cast()).expect("the driver gives memory or an error");
        // SAFETY: as long as was asked for, and nobody else knows it. Pinned memory begins with bytes that nobody wrote.
        unsafe { at.write_bytes(0, BUFFER_BYTES) };
        Ok(Self { at, copied })
    }

    /// The first bytes, once no copy reads them.
    fn bytes(&mut self, count: usize) -> Result<&mut [u8], DriverError> {
        assert!(count <= BUFFER_BYTES, "{count} bytes of a buffer of {BUFFER_BYTES}");
        self.copied.synchronize()?;
        // SAFETY: within the buffer, whose bytes are all written; the last copy is done, and `self` is borrowed for as long.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), count) })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // A failure here has been one of the stream before. Memory that a copy may still read is kept.
        if self.copied.synchronize().is_ok() {
            // SAFETY: given by `malloc_host`, freed once, and no copy reads it any more.
            let _ = unsafe { result::free_host(self.at.as_ptr().cast::<c_void>()) };
        }
    }
}

/// The ring.
#[derive(Debug)]
pub(super) struct Staging {
    buffers: Vec<Pinned>,
    /// The one to be written next.
    next: usize,
}

impl Staging {
    pub fn new(context: &Arc<CudaContext>) -> Result<Self, DriverError> {
        let buffers = (0..BUFFERS).map(|_| Pinned::new(context)).collect::<Result<_, _>>()?;
        Ok(Self { buffers, next: 0 })
    }

    /// Copy a matrix to the GPU, stored so. The copies run in the order of the stream; the matrix itself is read before this
    /// returns.
    ///
    /// # Safety
    /// At `to` there is room for the matrix, in memory that the stream may write.
    pub unsafe fn send(
        &mut self,
        matrix: &Matrix<'_>,
        element: Element,
        mut to: CUdeviceptr,
        stream: &CudaStream,
    ) -> Result<(), DriverError> {
        let most = BUFFER_BYTES / element.size();
        for values in matrix.parts() {
            for start in (0..values.len()).step_by(most) {
                let count = most.min(values.len() - start) * element.size();
                let pinned = &mut self.buffers[self.next];
                self.next = (self.next + 1) % BUFFERS;
                let bytes = pinned.bytes(count)?;
                element.write(values, start, bytes);
                // SAFETY: room at `to` by the caller; the bytes stay as they are until the event below has passed.
                unsafe { result::memcpy_htod_async(to, bytes, stream.cu_stream()) }?;
                pinned.copied.record(stream)?;
                to += count as u64;
            }
        }
        Ok(())
    }
}
