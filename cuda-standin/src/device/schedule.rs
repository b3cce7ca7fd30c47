//! When queued work runs.
//!
//! It runs inside calls of the host, one operation after the other, in an order that stream order and the recorded events
//! allow. So streams never race in real time: a missing event gives the same wrong result in every run. `latest` runs nothing
//! before something waits for it, and then only what that needs: work that forgot to wait finds nothing done.

use super::Device;
use crate::{checker::Stamp, queue::PATIENCE, settings::Order, work::Work};

/// With random orders, up to one operation less than this runs at each call.
const RANDOM_STEPS: usize = 3;

impl Device {
    /// Queues work at the end of a stream. `name`: what findings call it.
    pub fn enqueue(&mut self, stream: usize, name: impl FnOnce() -> String, work: Work) -> u32 {
        let (operation, place) = self.queue.push(stream, work);
        if let Some(checker) = &mut self.checker {
            checker.stamps.push(Stamp { stream, place, name: name() });
        }
        match self.queue.order() {
            Order::Eager => self.force(operation),
            Order::Latest => {}
            Order::Random(_) => {
                for _ in 0..self.queue.dice(RANDOM_STEPS) {
                    self.run_any();
                }
            }
        }
        operation
    }

    /// Whether all work of a stream is done.
    pub fn stream_done(&mut self, stream: usize) -> bool {
        if self.queue.asked(stream) < PATIENCE && self.queue.is_pending(self.queue.last(stream)) {
            return false;
        }
        self.sync_stream(stream);
        true
    }
    pub fn sync_stream(&mut self, stream: usize) {
        for before in self.queue.take_waits(stream) {
            self.finish(before);
        }
        self.finish(self.queue.last(stream));
        let clock = self.queue.clock(stream);
        self.queue.seen_by_host(&clock);
        let Device { memory, queue, .. } = self;
        memory.trim(|operation| queue.is_pending(operation));
    }
    pub fn sync_all(&mut self) {
        if matches!(self.queue.order(), Order::Random(_)) {
            while self.run_any() {}
        }
        for stream in (0..self.queue.streams()).rev() {
            self.sync_stream(stream);
        }
    }

    /// Runs until an operation has run: what it needs, or with random orders anything that may run.
    pub fn finish(&mut self, operation: u32) {
        while matches!(self.queue.order(), Order::Random(_)) && self.queue.is_pending(operation) {
            self.run_any();
        }
        self.force(operation);
    }
    /// Runs an operation, after all that must be before it and nothing else.
    fn force(&mut self, operation: u32) {
        let mut stack = vec![operation];
        while let Some(&top) = stack.last() {
            match self.queue.blocker(top) {
                Some(before) => stack.push(before),
                None => {
                    stack.pop();
                    self.run_pending(top);
                }
            }
        }
    }
    fn run_any(&mut self) -> bool {
        let ready = self.queue.ready();
        if ready.is_empty() {
            return false;
        }
        let pick = ready[self.queue.dice(ready.len())];
        self.run_pending(pick);
        true
    }
    fn run_pending(&mut self, number: u32) {
        if let Some(operation) = self.queue.take(number) {
            self.run(number, operation);
        }
    }
}
