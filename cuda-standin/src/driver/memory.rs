//! Memory: allocations, copies and fills.
//!
//! Copies from and to pinned memory run in stream order while the host goes on. Of pageable memory the driver has taken the
//! bytes when an upload returns, and has delivered them when a download returns.

use std::ffi::{c_uint, c_void};

use super::{Handle, api};
use crate::{
    codes::{Answer, Code},
    device::Device,
    foreign::{In, Out},
    pinned,
    settings::settings,
    work::Work,
};

/// The stream of calls that name none.
const DEFAULT_STREAM: usize = 0;

fn on_device(device: &Device, at: usize, bytes: usize) -> Answer {
    if device.memory.holds(at, bytes) { Ok(()) } else { Err(Code::INVALID_VALUE) }
}

pub fn allocate(device: &mut Device, out: Out<usize>, bytes: usize, stream: usize) -> Answer {
    if bytes == 0 {
        return Err(Code::INVALID_VALUE);
    }
    let operation = device.enqueue(stream, || "allocation".into(), Work::Mark(None));
    out.set(device.memory.allocate(bytes, stream, operation).ok_or(Code::OUT_OF_MEMORY)?)
}

fn free(device: &mut Device, at: usize, stream: usize) -> Answer {
    if at == 0 {
        return Ok(());
    }
    let Some((start, allocation)) = device.memory.find(at).filter(|(start, _)| *start == at) else {
        return Err(Code::INVALID_VALUE);
    };
    let work = Work::Free { at: start, bytes: allocation.bytes };
    let operation = device.enqueue(stream, || "free".into(), work);
    device.memory.give_back(at, stream, operation).map(|_| ()).ok_or(Code::INVALID_VALUE)
}

fn upload(device: &mut Device, to: usize, from: In<u8>, bytes: usize, stream: usize) -> Answer {
    on_device(device, to, bytes)?;
    let work = if pinned::holds(from.address()) {
        Work::Copy { to, from: from.address(), bytes }
    } else {
        Work::Upload { to, data: from.bytes(bytes) }
    };
    device.enqueue(stream, || "copy to the device".into(), work);
    Ok(())
}

fn download(device: &mut Device, to: usize, from: usize, bytes: usize, stream: usize) -> Answer {
    on_device(device, from, bytes)?;
    device.enqueue(stream, || "copy from the device".into(), Work::Copy { to, from, bytes });
    if !pinned::holds(to) {
        device.sync_stream(stream);
    }
    Ok(())
}

fn copy(device: &mut Device, to: usize, from: usize, bytes: usize, stream: usize) -> Answer {
    on_device(device, to, bytes)?;
    on_device(device, from, bytes)?;
    device.enqueue(stream, || "copy".into(), Work::Copy { to, from, bytes });
    Ok(())
}

fn fill(device: &mut Device, to: usize, value: &[u8], count: usize, stream: usize) -> Answer {
    on_device(device, to, value.len() * count)?;
    if !to.is_multiple_of(value.len()) {
        return Err(Code::INVALID_VALUE);
    }
    device.enqueue(stream, || "fill".into(), Work::Fill { to, value: value.to_vec(), count });
    Ok(())
}

/// Work of a call that comes back when it is done.
fn at_once(device: &mut Device, work: impl FnOnce(&mut Device) -> Answer) -> Answer {
    work(device)?;
    device.sync_stream(DEFAULT_STREAM);
    Ok(())
}

fn pin(out: Out<usize>, bytes: usize) -> Answer {
    out.set(pinned::allocate(bytes).ok_or(Code::OUT_OF_MEMORY)?)
}

api! {
    fn cuMemGetInfo_v2(device; free: Out<usize>, total: Out<usize>) {
        free.set(device.memory.free())?;
        total.set(settings().memory)
    }

    fn cuMemAllocAsync(device; out: Out<usize>, bytes: usize, stream: Handle) {
        let stream = device.stream(stream)?;
        allocate(device, out, bytes, stream)
    }
    fn cuMemFreeAsync(device; at: usize, stream: Handle) {
        let stream = device.stream(stream)?;
        free(device, at, stream)
    }
    fn cuMemAlloc_v2(device; out: Out<usize>, bytes: usize) {
        at_once(device, |device| allocate(device, out, bytes, DEFAULT_STREAM))
    }
    fn cuMemFree_v2(device; at: usize) {
        device.sync_all();
        at_once(device, |device| free(device, at, DEFAULT_STREAM))
    }

    fn cuMemHostAlloc(_device; out: Out<usize>, bytes: usize, _flags: c_uint) { pin(out, bytes) }
    fn cuMemAllocHost_v2(_device; out: Out<usize>, bytes: usize) { pin(out, bytes) }
    fn cuMemFreeHost(device; at: In<c_void>) {
        device.sync_all();
        if pinned::free(at.address()) { Ok(()) } else { Err(Code::INVALID_VALUE) }
    }

    fn cuMemcpyHtoDAsync_v2(device; to: usize, from: In<u8>, bytes: usize, stream: Handle) {
        let stream = device.stream(stream)?;
        upload(device, to, from, bytes, stream)
    }
    fn cuMemcpyDtoHAsync_v2(device; to: usize, from: usize, bytes: usize, stream: Handle) {
        let stream = device.stream(stream)?;
        download(device, to, from, bytes, stream)
    }
    fn cuMemcpyDtoDAsync_v2(device; to: usize, from: usize, bytes: usize, stream: Handle) {
        let stream = device.stream(stream)?;
        copy(device, to, from, bytes, stream)
    }
    fn cuMemcpyHtoD_v2(device; to: usize, from: In<u8>, bytes: usize) {
        at_once(device, |device| upload(device, to, from, bytes, DEFAULT_STREAM))
    }
    fn cuMemcpyDtoH_v2(device; to: usize, from: usize, bytes: usize) {
        at_once(device, |device| download(device, to, from, bytes, DEFAULT_STREAM))
    }
    // As the driver's, this one does not wait: both sides are on the device.
    fn cuMemcpyDtoD_v2(device; to: usize, from: usize, bytes: usize) { copy(device, to, from, bytes, DEFAULT_STREAM) }

    fn cuMemsetD8Async(device; to: usize, value: u8, count: usize, stream: Handle) {
        let stream = device.stream(stream)?;
        fill(device, to, &[value], count, stream)
    }
    fn cuMemsetD32Async(device; to: usize, value: c_uint, count: usize, stream: Handle) {
        let stream = device.stream(stream)?;
        fill(device, to, &value.to_le_bytes(), count, stream)
    }
    fn cuMemsetD8_v2(device; to: usize, value: u8, count: usize) { fill(device, to, &[value], count, DEFAULT_STREAM) }
    fn cuMemsetD32_v2(device; to: usize, value: c_uint, count: usize) {
        fill(device, to, &value.to_le_bytes(), count, DEFAULT_STREAM)
    }
}
