//! Streams, and the work in them that has not run yet.
//!
//! Each operation has a vector clock: of each stream, the last operation that is known to be before it. The checker asks these.

use std::collections::{BTreeMap, HashMap};

use crate::{
    clock::{Clock, join},
    settings::Order,
    work::Work,
};

/// The handles that a caller may use without opening them: none, the legacy default stream, that of the thread.
const DEFAULT_STREAMS: [usize; 3] = [0, 1, 2];
/// A host that asks again and again whether work is done gets a yes at this question: it may wait for that alone.
pub const PATIENCE: u32 = 3;
/// The odd constant nearest to 2^64 over the golden ratio: spreads small seeds.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Work that has not run yet.
pub struct Operation {
    after: Vec<u32>,
    pub clock: Clock,
    pub work: Work,
}

#[derive(Default)]
struct Stream {
    priority: i32,
    last: u32,
    place: u32,
    clock: Clock,
    /// Operations of other streams that the next one waits for.
    waits: Vec<u32>,
    /// Questions since the last operation was queued.
    asked: u32,
}

pub struct Queue {
    order: Order,
    random: u64,
    streams: Vec<Stream>,
    /// Open streams by handle.
    handles: HashMap<usize, usize>,
    pending: BTreeMap<u32, Operation>,
    next: u32,
    /// What the host has waited for: every later operation is after it.
    host: Clock,
}

impl Queue {
    pub fn new(order: Order) -> Queue {
        let seed = if let Order::Random(seed) = order { seed } else { 0 };
        Queue {
            order,
            random: seed.wrapping_mul(SPREAD) | 1,
            streams: vec![Stream::default()],
            handles: DEFAULT_STREAMS.map(|handle| (handle, 0)).into(),
            pending: BTreeMap::new(),
            next: 1,
            host: Clock::new(),
        }
    }

    pub fn open(&mut self, handle: usize, priority: i32) {
        self.handles.insert(handle, self.streams.len());
        self.streams.push(Stream { priority, ..Stream::default() });
    }
    pub fn priority(&self, stream: usize) -> i32 {
        self.streams[stream].priority
    }
    /// `false`: no such stream, or one that cannot be closed. What is queued there still runs.
    pub fn close(&mut self, handle: usize) -> bool {
        !DEFAULT_STREAMS.contains(&handle) && self.handles.remove(&handle).is_some()
    }
    pub fn stream(&self, handle: usize) -> Option<usize> {
        self.handles.get(&handle).copied()
    }

    pub fn order(&self) -> Order {
        self.order
    }
    /// Streams, closed ones among them.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }
    /// Questions since the last operation was queued, this one included.
    pub fn asked(&mut self, stream: usize) -> u32 {
        self.streams[stream].asked += 1;
        self.streams[stream].asked
    }
    /// The operations that the next one of a stream would wait for; it does not any more.
    pub fn take_waits(&mut self, stream: usize) -> Vec<u32> {
        std::mem::take(&mut self.streams[stream].waits)
    }
    /// An operation that is to run now.
    pub fn take(&mut self, operation: u32) -> Option<Operation> {
        self.pending.remove(&operation)
    }

    pub fn is_pending(&self, operation: u32) -> bool {
        self.pending.contains_key(&operation)
    }
    pub fn last(&self, stream: usize) -> u32 {
        self.streams[stream].last
    }
    pub fn clock(&self, stream: usize) -> Clock {
        self.streams[stream].clock.clone()
    }
    /// The next operation of a stream waits for one of another.
    pub fn wait(&mut self, stream: usize, operation: u32, clock: &Clock) {
        let stream = &mut self.streams[stream];
        stream.waits.push(operation);
        join(&mut stream.clock, clock);
    }
    /// The host has seen that everything up to a clock is done.
    pub fn seen_by_host(&mut self, clock: &Clock) {
        join(&mut self.host, clock);
    }

    /// xorshift64
    pub fn dice(&mut self, sides: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 33) as usize % sides
    }

    /// Adds an operation at the end of a stream: its number and its place there.
    pub fn push(&mut self, stream: usize, work: Work) -> (u32, u32) {
        let number = self.next;
        self.next += 1;
        let at_end = &mut self.streams[stream];
        at_end.place += 1;
        at_end.asked = 0;
        let mut after = std::mem::take(&mut at_end.waits);
        after.push(at_end.last);
        at_end.last = number;
        join(&mut at_end.clock, &self.host);
        if at_end.clock.len() <= stream {
            at_end.clock.resize(stream + 1, 0);
        }
        at_end.clock[stream] = at_end.place;
        after.retain(|before| self.pending.contains_key(before));
        let place = at_end.place;
        self.pending.insert(number, Operation { after, clock: at_end.clock.clone(), work });
        (number, place)
    }

    pub fn blocker(&self, operation: u32) -> Option<u32> {
        self.pending.get(&operation)?.after.iter().copied().find(|before| self.is_pending(*before))
    }
    pub fn ready(&self) -> Vec<u32> {
        self.pending.keys().copied().filter(|operation| self.blocker(*operation).is_none()).collect()
    }
}
