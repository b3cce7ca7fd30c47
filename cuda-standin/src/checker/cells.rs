//! What each two bytes of memory saw last. Two: the smallest values that kernels write side by side are bf16.

/// Bytes a cell stands for.
pub const CELL_BYTES: usize = 2;

/// The block is not one: several accesses were merged.
pub const SEVERAL_BLOCKS: u32 = u32::MAX;
const THREAD: u16 = 0x3ff;
const SEVERAL_THREADS: u16 = 1 << 15;
const SEVERAL_WARPS: u16 = 1 << 12;
const ATOMIC: u16 = 1 << 14;
const IN_FLIGHT: u16 = 1 << 13;
const WARP: u16 = 32;

/// An access by a thread of a block of an operation. `op` 0: none yet.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Seen {
    pub op: u32,
    pub block: u32,
    /// The thread, and above it what is said of the access.
    thread: u16,
    warp_epoch: u16,
    epoch: u32,
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Cell {
    pub write: Seen,
    pub reads: [Seen; 2],
}

impl Seen {
    /// `epoch`: barriers of the block so far; `warp_epoch`: those of the warp alone.
    pub fn new(op: u32, block: u32, thread: u32, epoch: u32, warp_epoch: u32) -> Seen {
        Seen { op, block, thread: thread as u16 & THREAD, warp_epoch: warp_epoch as u16, epoch }
    }
    /// By the device itself.
    pub fn operation(op: u32) -> Seen {
        Seen { op, ..Seen::default() }
    }
    pub fn thread(self) -> u16 {
        self.thread & THREAD
    }
    pub fn by_several_threads(self) -> bool {
        self.thread & SEVERAL_THREADS != 0
    }

    pub fn atomic(mut self) -> Seen {
        self.thread |= ATOMIC;
        self
    }
    pub fn is_atomic(self) -> bool {
        self.thread & ATOMIC != 0
    }
    /// An asynchronous copy that has begun and was not waited for.
    pub fn in_flight(mut self) -> Seen {
        self.thread |= IN_FLIGHT;
        self
    }
    pub fn is_in_flight(self) -> bool {
        self.thread & IN_FLIGHT != 0
    }

    fn warp(self) -> u16 {
        self.thread() / WARP
    }
    fn by_several_warps(self) -> bool {
        self.thread & SEVERAL_WARPS != 0
    }

    /// This access and an earlier one, as one: ordered before a later access where both are. An earlier access of another
    /// operation, or from before a barrier, is before all that this one is before.
    pub fn merged(mut self, earlier: Seen) -> Seen {
        if earlier.op != self.op {
            return self;
        }
        if earlier.block != self.block {
            self.block = SEVERAL_BLOCKS;
            self.thread |= SEVERAL_WARPS | SEVERAL_THREADS;
        } else if earlier.epoch == self.epoch {
            if earlier.by_several_warps() || earlier.warp() != self.warp() {
                self.thread |= SEVERAL_WARPS | SEVERAL_THREADS;
            } else if earlier.warp_epoch == self.warp_epoch
                && (earlier.by_several_threads() || earlier.thread() != self.thread())
            {
                self.thread |= SEVERAL_THREADS;
            }
        }
        self
    }

    /// Whether this access is before `now`, which is of the same operation.
    pub fn ordered_inside(self, now: Seen) -> bool {
        if self.block != now.block {
            return false;
        }
        self.epoch != now.epoch
            || (!self.by_several_threads() && self.thread() == now.thread())
            || (!self.by_several_warps() && self.warp() == now.warp() && self.warp_epoch != now.warp_epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(thread: u32, epoch: u32, warp_epoch: u32) -> Seen {
        Seen::new(7, 0, thread, epoch, warp_epoch)
    }

    #[test]
    fn barriers_order_a_block_and_those_of_a_warp_the_warp() {
        assert!(seen(1, 1, 1).ordered_inside(seen(1, 1, 1)));
        assert!(!seen(1, 1, 1).ordered_inside(seen(2, 1, 1)));
        assert!(seen(1, 1, 1).ordered_inside(seen(2, 1, 2)));
        assert!(!seen(1, 1, 1).ordered_inside(seen(40, 1, 2)));
        assert!(seen(1, 1, 1).ordered_inside(seen(40, 2, 1)));
        assert!(!seen(1, 1, 1).ordered_inside(Seen::new(7, 1, 1, 2, 2)));
    }

    #[test]
    fn accesses_that_were_merged_are_ordered_where_all_are() {
        let lanes = seen(2, 1, 1).merged(seen(1, 1, 1));
        assert!(!lanes.ordered_inside(seen(2, 1, 1)), "lane 1 is not before");
        assert!(!lanes.merged(seen(2, 1, 1)).ordered_inside(seen(40, 1, 2)));
        assert!(lanes.ordered_inside(seen(2, 1, 2)), "a barrier of the warp");
        assert!(!seen(2, 1, 1).merged(lanes).ordered_inside(seen(2, 1, 1)), "it stays several");
        let warps = seen(40, 1, 1).merged(seen(1, 1, 1));
        assert!(!warps.ordered_inside(seen(40, 1, 2)) && warps.ordered_inside(seen(3, 2, 1)));
        let blocks = Seen::new(7, 1, 1, 1, 1).merged(seen(1, 1, 1));
        assert!(!blocks.ordered_inside(Seen::new(7, 1, 1, 2, 2)));
    }
}
