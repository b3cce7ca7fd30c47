//! Contexts: the primary one of each device, and which of them a thread works with.

use std::ffi::{c_int, c_uint};

use super::{Handle, api, unsigned};
use crate::{
    codes::Code,
    device::{bind, bound, context_of, numbered, ordinal_of},
    foreign::Out,
};

/// Priorities of streams: they are told and change nothing here, but a number outside is refused.
pub const LEAST_PRIORITY: c_int = 0;
pub const GREATEST_PRIORITY: c_int = -5;

api! {
    fn cuDevicePrimaryCtxRetain(; context: Out<Handle>, device: c_int) {
        let mut device = numbered(unsigned(device)?)?;
        device.usable()?;
        device.retained += 1;
        context.set(context_of(device.ordinal()))
    }
    fn cuDevicePrimaryCtxRelease_v2(; device: c_int) {
        let mut device = numbered(unsigned(device)?)?;
        device.retained = device.retained.checked_sub(1).ok_or(Code::INVALID_CONTEXT)?;
        Ok(())
    }
    fn cuCtxGetCurrent(; context: Out<Handle>) { context.set(bound()) }
    fn cuCtxSetCurrent(; context: Handle) {
        if context != 0 && ordinal_of(context).is_none() {
            return Err(Code::INVALID_CONTEXT);
        }
        bind(context);
        Ok(())
    }
    fn cuCtxGetDevice(device; out: Out<c_int>) { out.set(device.ordinal() as c_int) }
    fn cuCtxSetFlags(_device; _flags: c_uint) { Ok(()) }
    fn cuCtxSynchronize(device;) { device.sync_all(); Ok(()) }
    fn cuCtxGetStreamPriorityRange(_device; least: Out<c_int>, greatest: Out<c_int>) {
        least.set(LEAST_PRIORITY)?;
        greatest.set(GREATEST_PRIORITY)
    }
}
