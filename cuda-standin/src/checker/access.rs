//! One access: where it is, what it meets there, and what it leaves.

use std::{cell::Cell as Slot, ffi::c_int, fmt, ptr::null_mut};

use super::{
    Checker,
    cells::{CELL_BYTES, Cell, Seen},
    recent::Known,
};
use crate::{
    kernels::{Access, Request},
    memory::Memory,
};

// The kinds of an access, as in `host/emu/runner.h`.
const ACCESS_READ: u32 = 0;
const ACCESS_WRITE: u32 = 1;
const ACCESS_ATOMIC: u32 = 2;
const ACCESS_BEGIN: u32 = 3;

/// The access must not be made.
struct Refused;

/// Cells of an access, and what they are of.
struct Place {
    cells: *mut Cell,
    byte: usize,
    /// Of the allocation; `None`: shared memory.
    bytes: Option<usize>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bytes {
            Some(bytes) => write!(f, "byte {} of an allocation of {bytes}", self.byte),
            None => write!(f, "shared memory at byte {}", self.byte),
        }
    }
}

impl Checker {
    fn check(&mut self, memory: &Memory, request: Request) -> Result<(), Refused> {
        let Request { at, bytes, kind, pc, .. } = request;
        let mut now = Seen::new(self.op, request.block, request.thread, request.epoch, request.warp_epoch);
        match kind {
            ACCESS_ATOMIC => now = now.atomic(),
            ACCESS_BEGIN => now = now.in_flight(),
            _ => {}
        }
        let place = self.place(memory, request, now)?;
        let first = at % CELL_BYTES;
        for index in 0..(first + bytes as usize).div_ceil(CELL_BYTES) {
            // SAFETY: `place` found all of the range inside one allocation or the block's shared memory, whose cells these
            // are; one thread runs everything while checks are on.
            let cell = unsafe { &mut *place.cells.add(index) };
            let read = kind == ACCESS_READ;
            if let Some((how, other)) = self.conflict(cell, now, read) {
                let who = match (other.op == now.op, other.block == now.block) {
                    (true, true) => "race in a block",
                    (true, false) => "race between blocks",
                    (false, _) => "race between streams",
                };
                let detail = format!(
                    "{place}; block {}, thread {}, against {}",
                    now.block,
                    now.thread(),
                    self.told(other)
                );
                self.report(&format!("{who} ({how})"), pc, &detail);
            }
            if matches!(kind, ACCESS_READ | ACCESS_ATOMIC) && cell.write.op == 0 {
                let detail = format!("{place}; block {}, thread {}", now.block, now.thread());
                self.report("read of memory never written", pc, &detail);
                cell.write = now;
            }
            if read {
                self.note_read(cell, now);
            } else {
                let write =
                    if now.is_atomic() && cell.write.is_atomic() { now.merged(cell.write) } else { now };
                *cell = Cell { write, reads: [Seen::default(); 2] };
            }
        }
        Ok(())
    }

    fn place(&mut self, memory: &Memory, request: Request, now: Seen) -> Result<Place, Refused> {
        let Request { at, shared, shared_bytes, .. } = request;
        let end = at.saturating_add(request.bytes as usize);
        if at >= shared && end <= shared + shared_bytes {
            if self.shared_of != (now.op, now.block) {
                self.shared_of = (now.op, now.block);
                self.shared.clear();
                self.shared.resize(shared_bytes / CELL_BYTES + 1, Cell::default());
            }
            let byte = at - shared;
            let cells = &raw mut self.shared[byte / CELL_BYTES];
            return Ok(Place { cells, byte, bytes: None });
        }
        let known = match self.recent.find(at, end) {
            Some(known) => known,
            None => self.allocation(memory, request, now, end)?,
        };
        let cells = self.cell_of(at) as *mut Cell;
        Ok(Place { cells, byte: at - known.start, bytes: Some(known.bytes) })
    }

    /// The allocation that an access is in, if the running operation may use it.
    fn allocation(
        &mut self,
        memory: &Memory,
        request: Request,
        now: Seen,
        end: usize,
    ) -> Result<Known, Refused> {
        let Request { at, bytes, pc, .. } = request;
        let (start, allocation) = match memory.find(at) {
            Some((start, allocation)) if end <= start + allocation.bytes => (start, allocation),
            _ => {
                let kind = if request.kind == ACCESS_READ { "read" } else { "write" };
                let near = memory.allocations.range(..=at).next_back();
                let near = near.map_or(String::new(), |(start, allocation)| {
                    let past = end - start - allocation.bytes;
                    format!(", {past} bytes past an allocation of {}", allocation.bytes)
                });
                let detail = format!("{bytes} bytes, block {}, thread {}{near}", now.block, now.thread());
                self.report(&format!("{kind} out of bounds"), pc, &detail);
                return Err(Refused);
            }
        };
        if allocation.freed.is_some_and(|operation| operation != now.op) {
            let detail = format!("byte {} of an allocation of {}", at - start, allocation.bytes);
            self.report("use after free", pc, &detail);
            return Err(Refused);
        }
        let known = Known { start, bytes: allocation.bytes };
        if self.before(allocation.op) {
            self.recent.add(known);
        } else {
            let stream = self.stamps[allocation.op as usize].stream;
            let detail = format!("allocated on stream {stream}, which was not waited for");
            self.report("use before allocation", pc, &detail);
        }
        Ok(known)
    }

    /// An earlier access that this one is not ordered with.
    fn conflict(&self, cell: &Cell, now: Seen, read: bool) -> Option<(&'static str, Seen)> {
        let write = cell.write;
        if write.is_in_flight() && write.op == now.op && (write.thread() != now.thread() || read) {
            return Some(("an asynchronous copy that was not waited for", write));
        }
        let both_atomic = write.is_atomic() && now.is_atomic() && write.op == now.op;
        if !both_atomic && !self.ordered(write, now) {
            return Some((if read { "read after write" } else { "write after write" }, write));
        }
        if read {
            return None;
        }
        let late = cell.reads.into_iter().find(|earlier| !self.ordered(*earlier, now))?;
        Some(("write after read", late))
    }

    /// Two reads are kept: one of this operation and one that is not before it.
    fn note_read(&self, cell: &mut Cell, now: Seen) {
        let [first, second] = cell.reads;
        if first.op == now.op || (second.op != now.op && self.ordered(first, now)) {
            cell.reads[0] = now.merged(first);
        } else {
            cell.reads[1] = now.merged(second);
        }
    }

    /// A copy or fill by the device itself.
    pub fn range(&mut self, memory: &Memory, at: usize, bytes: usize, write: bool) {
        const PIECE: usize = 1 << 30;
        let kind = if write { ACCESS_WRITE } else { ACCESS_READ };
        for (start, bytes) in (0..bytes).step_by(PIECE).map(|start| (start, PIECE.min(bytes - start))) {
            let request = Request {
                at: at + start,
                bytes: bytes as u32,
                kind,
                block: 0,
                thread: 0,
                epoch: 0,
                warp_epoch: 0,
                shared: 0,
                shared_bytes: 0,
                pc: 0,
            };
            if self.check(memory, request).is_err() {
                return;
            }
        }
    }

    /// Runs a kernel whose accesses come here.
    pub fn watch<T>(&mut self, memory: &Memory, run: impl FnOnce(Access) -> T) -> T {
        let mut watch = Watch { checker: self, memory };
        WATCH.set(&raw mut watch);
        let done = run(access);
        WATCH.set(null_mut());
        done
    }
}

struct Watch {
    checker: *mut Checker,
    memory: *const Memory,
}

// The blocks run on this thread while checks are on.
thread_local!(static WATCH: Slot<*mut Watch> = const { Slot::new(null_mut()) });

unsafe extern "C" fn access(request: *const Request) -> c_int {
    // SAFETY: kernels call this inside `watch`, on its thread: checker and memory are those that it borrowed, and nobody else
    // uses them meanwhile. The request is the kernel's.
    let (checker, memory, request) = unsafe {
        let watch = &*WATCH.get();
        (&mut *watch.checker, &*watch.memory, *request)
    };
    c_int::from(checker.check(memory, request).is_err())
}
