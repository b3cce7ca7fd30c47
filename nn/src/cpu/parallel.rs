//! Tasks on the device's pool. A task owns whole elements of the result, so no sum is ever split between tasks.
#![allow(unsafe_code, reason = "tasks write disjoint parts of one slice")]

use std::marker::PhantomData;

use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};

use super::Cpu;

/// Below this many operations a call runs on the caller's own thread: waking the pool costs about as much.
const WORTH_A_POOL: usize = 1_000_000;

/// Runs `task(i)` for `i` in `0..tasks`; `operations` is the size of the whole call.
pub(super) fn for_each(cpu: &Cpu, operations: usize, tasks: usize, task: impl Fn(usize) + Sync + Send) {
    if operations < WORTH_A_POOL {
        (0..tasks).for_each(task);
    } else {
        cpu.pool().install(|| (0..tasks).into_par_iter().with_max_len(1).for_each(task));
    }
}

/// The results of `task(i)` for `i` in `0..tasks`, in that order.
pub(super) fn map<T: Send>(
    cpu: &Cpu,
    operations: usize,
    tasks: usize,
    task: impl Fn(usize) -> T + Sync + Send,
) -> Vec<T> {
    if operations < WORTH_A_POOL {
        (0..tasks).map(task).collect()
    } else {
        cpu.pool().install(|| (0..tasks).into_par_iter().with_max_len(1).map(task).collect())
    }
}

/// A slice that tasks write disjoint parts of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shared<'a> {
    start: *mut f32,
    len: usize,
    life: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is a `&mut [f32]`, which is `Send`; that parts do not overlap is the contract of `part` and `at`.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(super) fn new(slice: &'a mut [f32]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), life: PhantomData }
    }

    /// The values from `start` on; checked against the end of the slice.
    ///
    /// # Safety
    /// No two parts in use at the same time may overlap.
    pub(super) unsafe fn part(&self, start: usize, len: usize) -> &'a mut [f32] {
        assert!(start <= self.len && len <= self.len - start, "part {start}+{len} of {} values", self.len);
        // SAFETY: inside the slice by the assertion, and exclusive by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }

    /// The address of a value that must be inside the slice.
    pub(super) fn at(&self, index: usize) -> *mut f32 {
        debug_assert!(index <= self.len);
        self.start.wrapping_add(index)
    }
}
