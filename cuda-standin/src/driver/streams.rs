//! Streams and events.

use std::ffi::{c_int, c_uint};

use super::{
    Handle, api,
    contexts::{GREATEST_PRIORITY, LEAST_PRIORITY},
};
use crate::{codes::Code, foreign::Out};

const STREAM_NON_BLOCKING: c_uint = 1;
const EVENT_DISABLE_TIMING: c_uint = 2;

api! {
    fn cuStreamCreate(device; out: Out<Handle>, flags: c_uint) {
        if flags > STREAM_NON_BLOCKING { return Err(Code::INVALID_VALUE); }
        out.set(device.new_stream(LEAST_PRIORITY))
    }
    fn cuStreamCreateWithPriority(device; out: Out<Handle>, flags: c_uint, priority: c_int) {
        if flags > STREAM_NON_BLOCKING || !(GREATEST_PRIORITY..=LEAST_PRIORITY).contains(&priority) {
            return Err(Code::INVALID_VALUE);
        }
        out.set(device.new_stream(priority))
    }
    fn cuStreamGetPriority(device; stream: Handle, out: Out<c_int>) {
        let stream = device.stream(stream)?;
        out.set(device.queue.priority(stream))
    }
    // What is queued there still runs, as late as before: closing a stream is no wait.
    fn cuStreamDestroy_v2(device; stream: Handle) {
        if device.queue.close(stream) { Ok(()) } else { Err(Code::INVALID_HANDLE) }
    }
    fn cuStreamSynchronize(device; stream: Handle) {
        let stream = device.stream(stream)?;
        device.sync_stream(stream);
        Ok(())
    }
    fn cuStreamQuery(device; stream: Handle) {
        let stream = device.stream(stream)?;
        if device.stream_done(stream) { Ok(()) } else { Err(Code::NOT_READY) }
    }
    fn cuStreamWaitEvent(device; stream: Handle, event: Handle, _flags: c_uint) {
        let stream = device.stream(stream)?;
        device.stream_waits(stream, event)
    }

    fn cuEventCreate(device; out: Out<Handle>, flags: c_uint) { out.set(device.new_event(flags & EVENT_DISABLE_TIMING == 0)) }
    fn cuEventDestroy_v2(device; event: Handle) { device.events.remove(&event).map(|_| ()).ok_or(Code::INVALID_HANDLE) }
    fn cuEventRecord(device; event: Handle, stream: Handle) {
        let stream = device.stream(stream)?;
        device.record(event, stream)
    }
    fn cuEventSynchronize(device; event: Handle) { device.sync_event(event) }
    fn cuEventQuery(device; event: Handle) { device.query(event) }
    fn cuEventElapsedTime(device; out: Out<f32>, start: Handle, end: Handle) { out.set(device.elapsed_ms(start, end)?) }
    fn cuEventElapsedTime_v2(device; out: Out<f32>, start: Handle, end: Handle) { out.set(device.elapsed_ms(start, end)?) }
}
