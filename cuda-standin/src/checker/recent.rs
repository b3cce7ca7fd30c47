//! The allocations that an operation used last.

/// An allocation that the running operation may use.
#[derive(Clone, Copy, Default)]
pub struct Known {
    pub start: usize,
    pub bytes: usize,
}

/// The allocations that the running operation used last. A kernel has few; to look one up takes longer than all else.
#[derive(Default)]
pub struct Recent {
    known: [Known; 8],
    next: usize,
}

impl Recent {
    pub fn find(&self, at: usize, end: usize) -> Option<Known> {
        self.known.iter().copied().find(|known| at >= known.start && end <= known.start + known.bytes)
    }
    pub fn add(&mut self, known: Known) {
        self.known[self.next % self.known.len()] = known;
        self.next += 1;
    }
}
