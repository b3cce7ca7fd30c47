//! What devices there are, and what each of them says about itself.

use std::ffi::{c_char, c_int, c_uint};

use super::{
    api,
    limits::{MOST_BLOCKS_ASIDE, RESERVED_SHARED, THREADS_PER_MULTIPROCESSOR, most_shared},
    unsigned,
};
use crate::{
    codes::{Answer, Code},
    foreign::Out,
    settings::settings,
};

const UUID: [u8; 15] = *b"prefgraph-stand";
/// Few, so that kernels that fill the device stay small.
const MULTIPROCESSORS: c_int = 2;
pub const THREADS_PER_BLOCK: c_int = 1024;
const WARP: c_int = 32;
const REGISTERS: c_int = 65_536;

fn exists(device: c_int) -> Answer {
    if (0..settings().devices).contains(&unsigned(device)?) { Ok(()) } else { Err(Code::INVALID_DEVICE) }
}

fn any_device() -> Answer {
    if settings().devices == 0 { Err(Code::NO_DEVICE) } else { Ok(()) }
}

/// `CUdevice_attribute`; what is not here is 0.
fn attribute(number: c_int) -> c_int {
    match number {
        // MAX_THREADS_PER_BLOCK; MAX_BLOCK_DIM_X, _Y, _Z; MAX_GRID_DIM_X, _Y, _Z
        1..=3 => THREADS_PER_BLOCK,
        4 => 64,
        5 => c_int::MAX,
        6 | 7 => MOST_BLOCKS_ASIDE as c_int,
        8 => crate::device::SHARED_BYTES as c_int,
        10 => WARP,
        // MAX_REGISTERS_PER_BLOCK and _PER_MULTIPROCESSOR
        12 | 82 => REGISTERS,
        16 => MULTIPROCESSORS,
        // CONCURRENT_KERNELS, UNIFIED_ADDRESSING, STREAM_PRIORITIES_SUPPORTED, MEMORY_POOLS_SUPPORTED
        31 | 41 | 78 | 115 => 1,
        39 => THREADS_PER_MULTIPROCESSOR as c_int,
        75 => (settings().capability / 10) as c_int,
        76 => (settings().capability % 10) as c_int,
        // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
        81 => most_shared() + RESERVED_SHARED,
        // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        97 => most_shared(),
        // RESERVED_SHARED_MEMORY_PER_BLOCK
        111 => RESERVED_SHARED,
        _ => 0,
    }
}

fn uuid(out: Out<[u8; 16]>, device: c_int) -> Answer {
    exists(device)?;
    let mut bytes = [device as u8; 16];
    bytes[..UUID.len()].copy_from_slice(&UUID);
    out.set(bytes)
}

api! {
    fn cuInit(; _flags: c_uint) { any_device() }
    fn cuDriverGetVersion(; version: Out<c_int>) { version.set(settings().driver) }
    fn cuDeviceGetCount(; count: Out<c_int>) { any_device()?; count.set(settings().devices as c_int) }
    fn cuDeviceGet(; device: Out<c_int>, ordinal: c_int) { any_device()?; exists(ordinal)?; device.set(ordinal) }
    fn cuDeviceGetName(; out: Out<c_char>, room: c_int, device: c_int) {
        exists(device)?;
        out.text("prefgraph stand-in (CPU)", unsigned(room)?)
    }
    fn cuDeviceGetUuid(; out: Out<[u8; 16]>, device: c_int) { uuid(out, device) }
    fn cuDeviceGetUuid_v2(; out: Out<[u8; 16]>, device: c_int) { uuid(out, device) }
    fn cuDeviceTotalMem_v2(; bytes: Out<usize>, device: c_int) { exists(device)?; bytes.set(settings().memory) }
    fn cuDeviceGetAttribute(; out: Out<c_int>, number: c_int, device: c_int) { exists(device)?; out.set(attribute(number)) }
}
