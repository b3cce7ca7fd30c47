//! The events of a device: recording them, and waiting for them.

use std::time::Instant;

use super::Device;
use crate::{codes::Code, events::Event, queue::PATIENCE, work::Work};

impl Device {
    pub fn new_event(&mut self, timed: bool) -> usize {
        let handle = self.handle();
        self.events.insert(handle, Event { timed, ..Event::default() });
        handle
    }
    fn event(&mut self, handle: usize) -> Result<&mut Event, Code> {
        self.events.get_mut(&handle).ok_or(Code::INVALID_HANDLE)
    }

    pub fn record(&mut self, handle: usize, stream: usize) -> Result<(), Code> {
        self.event(handle)?;
        let operation = self.enqueue(stream, || "event".into(), Work::Mark(Some(handle)));
        let clock = self.queue.clock(stream);
        let event = self.event(handle)?;
        (event.operation, event.clock, event.asked) = (operation, clock, 0);
        Ok(())
    }
    /// A mark has run.
    pub fn reached(&mut self, handle: usize) {
        if let Some(event) = self.events.get_mut(&handle) {
            event.time = Some(Instant::now());
        }
    }

    /// A stream waits for an event; one that was never recorded is no reason to wait.
    pub fn stream_waits(&mut self, stream: usize, handle: usize) -> Result<(), Code> {
        let event = self.events.get(&handle).ok_or(Code::INVALID_HANDLE)?;
        self.queue.wait(stream, event.operation, &event.clock);
        Ok(())
    }
    pub fn sync_event(&mut self, handle: usize) -> Result<(), Code> {
        let event = self.event(handle)?;
        let (operation, clock) = (event.operation, event.clock.clone());
        self.finish(operation);
        self.queue.seen_by_host(&clock);
        Ok(())
    }
    pub fn query(&mut self, handle: usize) -> Result<(), Code> {
        let event = self.event(handle)?;
        event.asked += 1;
        let (operation, patient) = (event.operation, event.asked < PATIENCE);
        if patient && self.queue.is_pending(operation) {
            return Err(Code::NOT_READY);
        }
        self.sync_event(handle)
    }

    pub fn elapsed_ms(&self, start: usize, end: usize) -> Result<f32, Code> {
        let time = |handle: usize| {
            let event = self.events.get(&handle).filter(|event| event.timed).ok_or(Code::INVALID_HANDLE)?;
            if event.operation == 0 {
                return Err(Code::INVALID_HANDLE);
            }
            event.time.filter(|_| !self.queue.is_pending(event.operation)).ok_or(Code::NOT_READY)
        };
        Ok(time(end)?.saturating_duration_since(time(start)?).as_secs_f32() * 1e3)
    }
}
