//! Aligned memory: what operands are packed into, and scratch that each thread keeps for its next task.
#![allow(unsafe_code, reason = "views cache lines as values")]

use std::cell::RefCell;

/// A cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Values that start on a cache line.
#[derive(Clone, Debug, Default)]
pub(super) struct Aligned(Vec<Line>);

impl Aligned {
    /// At least this many zeros, rounded up to whole cache lines.
    pub(super) fn zeros(len: usize) -> Self {
        Self(vec![Line([0.0; 16]); len.div_ceil(16)])
    }

    /// Number of values.
    pub(super) fn len(&self) -> usize {
        16 * self.0.len()
    }

    pub(super) fn values(&self) -> &[f32] {
        // SAFETY: a `Line` is 16 values without padding.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * 16) }
    }

    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 16) }
    }
}

thread_local! {
    static SCRATCH: RefCell<Aligned> = RefCell::default();
}

/// Runs `f` with parts of this thread's scratch, of at least the given lengths, each on a cache line.
/// What they hold is left over from earlier tasks. Not to be nested.
pub(super) fn with_scratch<const N: usize, T>(
    lengths: [usize; N],
    f: impl FnOnce([&mut [f32]; N]) -> T,
) -> T {
    // A line between parts, so that parts of a power of two do not share cache sets.
    let padded = lengths.map(|len| len.next_multiple_of(16) + 16);
    SCRATCH.with_borrow_mut(|scratch| {
        let total = padded.iter().sum::<usize>();
        if scratch.0.len() * 16 < total {
            *scratch = Aligned::zeros(total);
        }
        let mut rest = scratch.values_mut();
        f(padded.map(|len| {
            let (part, tail) = std::mem::take(&mut rest).split_at_mut(len);
            rest = tail;
            part
        }))
    })
}
