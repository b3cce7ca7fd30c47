//! Memory in the order of a stream.

#![allow(unsafe_code, reason = "memory of the driver")]

use std::sync::Arc;

use cudarc::driver::{self, CudaStream, DriverError, result, sys::CUdeviceptr};

/// A run of bytes on a GPU: allocated, used and freed in the order of one stream.
#[derive(Debug)]
pub(super) struct Memory {
    pointer: CUdeviceptr,
    bytes: usize,
    stream: Arc<CudaStream>,
    /// Other streams read it, too: it is freed when nothing runs any more.
    shared: bool,
}

impl Memory {
    /// Memory whose contents are unspecified. What idles is given back to the driver before this fails.
    pub fn new(stream: &Arc<CudaStream>, bytes: usize) -> Result<Self, DriverError> {
        stream.context().bind_to_thread()?;
        // The driver refuses to allocate nothing.
        let wanted = bytes.max(16);
        // SAFETY: the stream lives, and the memory is used and freed in its order.
        let pointer = unsafe { result::malloc_async(stream.cu_stream(), wanted) }.or_else(|error| {
            if error.0 != driver::sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                return Err(error);
            }
            // What other streams have freed can be given to this one once they have come there.
            stream.context().synchronize()?;
            // SAFETY: as above.
            unsafe { result::malloc_async(stream.cu_stream(), wanted) }
        })?;
        Ok(Self { pointer, bytes, stream: Arc::clone(stream), shared: false })
    }

    /// The same, which several streams will read: whoever writes it waits until that is done.
    pub fn shared(stream: &Arc<CudaStream>, bytes: usize) -> Result<Self, DriverError> {
        let mut memory = Self::new(stream, bytes)?;
        memory.shared = true;
        Ok(memory)
    }

    /// Where it begins.
    pub fn pointer(&self) -> CUdeviceptr {
        self.pointer
    }

    /// Its length.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // A failure here has been a failure of the stream before, and whoever waits for the stream is told.
        let _ = self.stream.context().bind_to_thread();
        if self.shared {
            let _ = self.stream.context().synchronize();
        }
        // SAFETY: allocated on this stream, and freed once.
        let _ = unsafe { result::free_async(self.pointer, self.stream.cu_stream()) };
    }
}
