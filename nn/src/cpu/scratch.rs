//! Scratch memory that each thread keeps for its next task.

use std::cell::RefCell;

use super::Memory;

thread_local! {
    static SCRATCH: RefCell<Memory> = RefCell::default();
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
        if scratch.len() < total {
            *scratch = Memory::zeros(total);
        }
        let mut rest = &mut scratch[..];
        f(padded.map(|len| {
            let (part, tail) = std::mem::take(&mut rest).split_at_mut(len);
            rest = tail;
            part
        }))
    })
}
