//! The kinds of queued work.

use crate::kernels::{Dim3, Kernel};

/// First byte and number of bytes.
pub type Range = (usize, usize);

pub enum Work {
    Kernel {
        kernel: &'static Kernel,
        grid: Dim3,
        block: Dim3,
        shared: u32,
        /// Each parameter's bytes, in words so that any type is aligned.
        parameters: Vec<Vec<u64>>,
    },
    Copy {
        to: usize,
        from: usize,
        bytes: usize,
    },
    /// A copy of what the host held when it made the call.
    Upload {
        to: usize,
        data: Vec<u8>,
    },
    Fill {
        to: usize,
        value: Vec<u8>,
        count: usize,
    },
    Free {
        at: usize,
        bytes: usize,
    },
    /// Work of a library, with what it reads and writes.
    Task {
        reads: Vec<Range>,
        writes: Vec<Range>,
        run: Box<dyn FnOnce() + Send>,
    },
    /// Nothing: the place of an event, or of an allocation.
    Mark(Option<usize>),
}
