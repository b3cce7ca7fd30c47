//! What each kind of queued work does when it runs.

use super::Device;
use crate::{
    codes::Code,
    kernels::{self, Kernel, Launch, Stop},
    memory,
    queue::Operation,
    settings::settings,
    work::{Range, Work},
};

impl Device {
    /// After a failure nothing runs any more; marks do, so that who waits comes back and is told.
    pub fn run(&mut self, number: u32, operation: Operation) {
        if self.error.is_some() && !matches!(operation.work, Work::Mark(_)) {
            return;
        }
        let mut findings = 0;
        if let Some(checker) = &mut self.checker {
            findings = checker.findings;
            checker.begin(number, operation.clock);
        }
        match operation.work {
            Work::Kernel { kernel, grid, block, shared, mut parameters } => {
                let mut pointers: Vec<_> =
                    parameters.iter_mut().map(|words| words.as_mut_ptr().cast()).collect();
                let launch = Launch::new(grid, block, shared, settings().seed, pointers.as_mut_ptr());
                self.run_kernel(kernel, launch);
            }
            Work::Copy { to, from, bytes } => {
                self.touch((from, bytes), false);
                self.touch((to, bytes), true);
                // SAFETY: the call checked that the device's side is in one allocation, and the host's side is the caller's.
                unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
            }
            Work::Upload { to, data } => {
                self.touch((to, data.len()), true);
                // SAFETY: the call checked that this is in one allocation, and the data are our own.
                unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to as *mut u8, data.len()) };
            }
            Work::Fill { to, value, count } => {
                self.touch((to, value.len() * count), true);
                for place in (to..).step_by(value.len()).take(count) {
                    // SAFETY: the call checked that all of it is in one allocation.
                    unsafe { std::ptr::copy_nonoverlapping(value.as_ptr(), place as *mut u8, value.len()) };
                }
            }
            Work::Free { at, bytes } => self.run_free(number, at, bytes),
            Work::Task { reads, writes, run } => {
                reads.into_iter().for_each(|range| self.touch(range, false));
                writes.into_iter().for_each(|range| self.touch(range, true));
                run();
            }
            Work::Mark(event) => {
                if let Some(event) = event {
                    self.reached(event);
                }
            }
        }
        if self.checker.as_ref().is_some_and(|checker| checker.findings > findings) {
            self.fail(Code::LAUNCH_FAILED);
        }
    }

    fn run_kernel(&mut self, kernel: &'static Kernel, mut launch: Launch) {
        let done = match &mut self.checker {
            None => kernels::run(kernel, launch, settings().threads),
            Some(checker) => checker.watch(&self.memory, |access| {
                launch.access = Some(access);
                kernels::run(kernel, launch, 1)
            }),
        };
        if let Err(Stop { foreign, why }) = done {
            eprintln!("standin: {} stopped: {why}", kernel.name());
            self.fail(if foreign { Code::ILLEGAL_ADDRESS } else { Code::LAUNCH_FAILED });
        }
    }

    fn run_free(&mut self, number: u32, at: usize, bytes: usize) {
        match &mut self.checker {
            // Who reads it still, without an event, reads NaN.
            None => memory::fill_undefined(at, bytes),
            Some(checker) => {
                checker.free(at, bytes);
                memory::release(at, bytes);
                if let Some(allocation) = self.memory.allocations.get_mut(&at) {
                    allocation.freed = Some(number);
                }
            }
        }
    }

    /// An access by the device itself, to be checked.
    fn touch(&mut self, (at, bytes): Range, write: bool) {
        if bytes > 0
            && self.memory.is_device(at)
            && let Some(checker) = &mut self.checker
        {
            checker.range(&self.memory, at, bytes, write);
        }
    }
}
