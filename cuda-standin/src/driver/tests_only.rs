//! Not of the driver: what tests ask of the stand-in. A library that has these names is the stand-in.

use std::ffi::c_int;

use super::unsigned;
use crate::device::numbered;

/// Findings of the checks on a device so far, which are forgotten together with the failure that they caused.
#[unsafe(no_mangle)]
pub extern "C" fn standin_take_findings(device: c_int) -> u32 {
    let Ok(mut device) = unsigned(device).and_then(numbered) else { return 0 };
    device.error = None;
    device.checker.as_mut().map_or(0, |checker| checker.take_findings())
}

/// Writes to stderr how often each function was called on a device.
#[unsafe(no_mangle)]
pub extern "C" fn standin_tell_calls(device: c_int) {
    let Ok(device) = unsigned(device).and_then(numbered) else { return };
    for (name, count) in &device.calls {
        eprintln!("{count:6} {name}");
    }
}
