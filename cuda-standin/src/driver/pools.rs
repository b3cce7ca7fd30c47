//! Memory pools: where allocations come from. All of a device's share its memory, and differ in their attributes only.

use std::{
    collections::HashMap,
    ffi::{c_int, c_void},
};

use super::{Handle, api, memory::allocate, unsigned};
use crate::{
    codes::{Answer, Code},
    device::{Device, FIRST_POOL, numbered},
    foreign::{In, Out},
};

// CUmemPool_attribute: whole numbers of the C type int up to 3, of 64 bits from 4.
const LAST_INT: c_int = 3;
const RELEASE_THRESHOLD: c_int = 4;
const RESERVED_NOW: c_int = 5;
const RESERVED_MOST: c_int = 6;
const USED_NOW: c_int = 7;
const USED_MOST: c_int = 8;

fn default_pool(out: Out<Handle>, device: c_int) -> Answer {
    let ordinal = unsigned(device)?;
    drop(numbered(ordinal)?);
    out.set(FIRST_POOL + ordinal)
}

fn attributes(device: &mut Device, pool: Handle) -> Result<&mut HashMap<c_int, u64>, Code> {
    device.pools.get_mut(&pool).ok_or(Code::INVALID_VALUE)
}

api! {
    fn cuDeviceGetDefaultMemPool(; out: Out<Handle>, device: c_int) { default_pool(out, device) }
    fn cuDeviceGetMemPool(; out: Out<Handle>, device: c_int) { default_pool(out, device) }
    fn cuDeviceSetMemPool(; device: c_int, pool: Handle) {
        attributes(&mut *numbered(unsigned(device)?)?, pool).map(|_| ())
    }
    fn cuMemPoolCreate(device; out: Out<Handle>, _properties: In<c_void>) {
        let pool = device.handle();
        device.pools.insert(pool, HashMap::new());
        out.set(pool)
    }
    fn cuMemPoolDestroy(device; pool: Handle) {
        if pool == FIRST_POOL + device.ordinal() {
            return Err(Code::INVALID_VALUE);
        }
        device.pools.remove(&pool).map(|_| ()).ok_or(Code::INVALID_VALUE)
    }
    fn cuMemAllocFromPoolAsync(device; out: Out<usize>, bytes: usize, pool: Handle, stream: Handle) {
        attributes(device, pool)?;
        let stream = device.stream(stream)?;
        allocate(device, out, bytes, stream)
    }
    fn cuMemPoolSetAttribute(device; pool: Handle, attribute: c_int, value: In<c_void>) {
        let value = match attribute {
            1..=LAST_INT => u64::from(value.cast::<u32>().get()?),
            RELEASE_THRESHOLD => value.cast::<u64>().get()?,
            // The high marks can be set back, to now.
            RESERVED_MOST | USED_MOST => {
                device.memory.most = device.memory.used;
                0
            }
            _ => return Err(Code::INVALID_VALUE),
        };
        attributes(device, pool)?.insert(attribute, value);
        Ok(())
    }
    fn cuMemPoolGetAttribute(device; pool: Handle, attribute: c_int, out: Out<c_void>) {
        let set = attributes(device, pool)?.get(&attribute).copied();
        match attribute {
            // All three reuses are on where nothing was said.
            1..=LAST_INT => out.cast::<u32>().set(set.unwrap_or(1) as u32),
            RELEASE_THRESHOLD => out.cast::<u64>().set(set.unwrap_or(0)),
            RESERVED_NOW | USED_NOW => out.cast::<u64>().set(device.memory.used as u64),
            RESERVED_MOST | USED_MOST => out.cast::<u64>().set(device.memory.most as u64),
            _ => Err(Code::INVALID_VALUE),
        }
    }
    fn cuMemPoolTrimTo(device; pool: Handle, _bytes: usize) { attributes(device, pool).map(|_| ()) }
}
