//! How a kernel is launched.

#![allow(unsafe_code, reason = "launches of kernels")]

use std::ffi::c_void;

use cudarc::driver::{CudaStream, DriverError, result, sys};

/// An argument of a kernel: a pointer, a number or a flag, in eight bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Argument(u64);

/// A device pointer.
pub(super) fn pointer(at: sys::CUdeviceptr) -> Argument {
    Argument(at)
}

/// An `int`.
///
/// # Panics
/// If it does not fit: sizes of a pass are below 2^31 rows and columns.
pub(super) fn int(value: usize) -> Argument {
    Argument(u64::from(u32::try_from(i32::try_from(value).expect("a size below 2^31")).unwrap_or(0)))
}

/// A flag, as an `int`.
pub(super) fn flag(value: bool) -> Argument {
    Argument(u64::from(value))
}

/// A `float`.
pub(super) fn float(value: f32) -> Argument {
    Argument(u64::from(value.to_bits()))
}

/// A `double`.
pub(super) fn double(value: f64) -> Argument {
    Argument(value.to_bits())
}

/// Blocks, threads of each, and bytes of shared memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    pub blocks: (usize, usize),
    pub threads: u32,
    pub shared: usize,
}

impl Grid {
    /// As many blocks of 256 threads as give each of `count` things a thread.
    pub fn threads_for(count: usize) -> Self {
        Self { blocks: (count.div_ceil(256), 1), threads: 256, shared: 0 }
    }
}

/// A kernel of a loaded module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function(pub sys::CUfunction);

// SAFETY: a function is a handle that the driver's calls take on any thread; its module is never unloaded.
unsafe impl Send for Function {}
// SAFETY: as above; nothing is written through it.
unsafe impl Sync for Function {}

impl Function {
    /// Let launches have this many bytes of shared memory.
    pub fn allow_shared(self, bytes: usize) -> Result<(), DriverError> {
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function's module is loaded.
        unsafe { result::function::set_function_attribute(self.0, attribute, bytes as i32) }
    }

    /// Launch it.
    ///
    /// # Safety
    /// The arguments are those of the kernel, in their order, and its accesses stay within memory of this stream or of the
    /// model.
    pub unsafe fn launch(
        self,
        stream: &CudaStream,
        grid: Grid,
        arguments: &[Argument],
    ) -> Result<(), DriverError> {
        stream.context().bind_to_thread()?;
        // The driver reads as many bytes of each as the kernel's parameter has: all machines with NVIDIA GPUs store the low
        // bytes of a number first.
        const { assert!(cfg!(target_endian = "little")) };
        let mut pointers: Vec<*mut c_void> =
            arguments.iter().map(|a| (&raw const a.0).cast_mut().cast()).collect();
        let blocks = (grid.blocks.0 as u32, grid.blocks.1 as u32, 1);
        // SAFETY: by the caller; the driver copies the arguments before it returns.
        unsafe {
            result::launch_kernel(
                self.0,
                blocks,
                (grid.threads, 1, 1),
                grid.shared as u32,
                stream.cu_stream(),
                &mut pointers,
            )
        }
    }
}
