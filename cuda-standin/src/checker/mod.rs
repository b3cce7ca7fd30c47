//! Whether each access to memory may be made: inside an allocation, of what was written, and ordered.
//!
//! Two accesses are ordered by stream order, events and the host's waits if they are of different operations, and by barriers
//! if they are of one block. An access that is not is a race, whatever the order of this run. A finding names the kernel, its
//! line and both sides; the next call of the host fails.

mod access;
mod cells;
mod recent;

use std::collections::HashSet;

use cells::{CELL_BYTES, Cell, SEVERAL_BLOCKS, Seen};
use recent::Recent;

use crate::{
    clock::Clock,
    kernels::line_of,
    memory::{ADDRESSES, release, reserve},
};

/// Cells that a free looks at, at most; of larger allocations it looks at some, evenly spread.
const FREE_SAMPLES: usize = 1 << 21;

/// Where an operation stands.
#[derive(Clone, Default)]
pub struct Stamp {
    pub stream: usize,
    pub place: u32,
    pub name: String,
}

pub struct Checker {
    /// First address of the cells of the arena, and of the arena.
    cells: usize,
    base: usize,
    /// Cells of the block's shared memory, and whose they are: operation and block.
    shared: Vec<Cell>,
    shared_of: (u32, u32),
    /// By operation.
    pub stamps: Vec<Stamp>,
    /// The running operation.
    op: u32,
    clock: Clock,
    recent: Recent,
    /// What was reported: an operation's name, the kind, the instruction.
    said: HashSet<(String, String, usize)>,
    pub findings: u32,
}

impl Checker {
    pub fn new(base: usize) -> Checker {
        Checker {
            cells: reserve(ADDRESSES / CELL_BYTES * size_of::<Cell>()),
            base,
            shared: Vec::new(),
            shared_of: (0, 0),
            stamps: vec![Stamp::default()],
            op: 0,
            clock: Clock::new(),
            recent: Recent::default(),
            said: HashSet::new(),
            findings: 0,
        }
    }

    /// What comes now is of this operation.
    pub fn begin(&mut self, op: u32, clock: Clock) {
        (self.op, self.clock, self.recent) = (op, clock, Recent::default());
    }

    /// The findings so far, which are forgotten.
    pub fn take_findings(&mut self) -> u32 {
        self.said.clear();
        std::mem::take(&mut self.findings)
    }

    fn cell_of(&self, at: usize) -> usize {
        self.cells + (at - self.base) / CELL_BYTES * size_of::<Cell>()
    }

    /// Whether an earlier operation is before the running one.
    fn before(&self, earlier: u32) -> bool {
        let stamp = &self.stamps[earlier as usize];
        self.clock.get(stamp.stream).copied().unwrap_or(0) >= stamp.place
    }

    fn ordered(&self, earlier: Seen, now: Seen) -> bool {
        match earlier.op {
            0 => true,
            op if op != now.op => self.before(op),
            _ => earlier.ordered_inside(now),
        }
    }

    fn report(&mut self, kind: &str, pc: usize, detail: &str) {
        let name = self.stamps[self.op as usize].name.clone();
        if !self.said.insert((name.clone(), kind.to_owned(), pc)) {
            return;
        }
        self.findings += 1;
        let line = if pc == 0 { String::new() } else { format!(" at {}", line_of(pc)) };
        eprintln!("standin: {kind} in {name}{line}: {detail}");
    }

    fn told(&self, seen: Seen) -> String {
        let stamp = &self.stamps[seen.op as usize];
        let who = if seen.block == SEVERAL_BLOCKS {
            "several blocks".to_owned()
        } else if seen.by_several_threads() {
            format!("block {}, several threads", seen.block)
        } else {
            format!("block {}, thread {}", seen.block, seen.thread())
        };
        format!("{} on stream {} ({who})", stamp.name, stamp.stream)
    }

    /// At a free: everything that touched the memory must be before.
    pub fn free(&mut self, at: usize, bytes: usize) {
        let now = Seen::operation(self.op);
        let cells = bytes.div_ceil(CELL_BYTES);
        let first = self.cell_of(at);
        let late = (0..cells).step_by(cells.div_ceil(FREE_SAMPLES).max(1)).find_map(|index| {
            // SAFETY: inside the cells of the allocation.
            let cell = unsafe { *((first + index * size_of::<Cell>()) as *const Cell) };
            let [first_read, second_read] = cell.reads;
            [cell.write, first_read, second_read]
                .into_iter()
                .find(|seen| seen.op != now.op && !self.ordered(*seen, now))
        });
        if let Some(other) = late {
            let detail = format!("an allocation of {bytes} bytes, against {}", self.told(other));
            self.report("free before use has ended", 0, &detail);
        }
        release(first, cells * size_of::<Cell>());
    }
}
