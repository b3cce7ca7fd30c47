//! The driver's functions, by their names: those that cudarc calls, and a few that code of one's own may.

mod contexts;
mod devices;
mod errors;
mod launches;
mod limits;
mod memory;
mod modules;
mod pools;
mod streams;
mod tests_only;

use crate::{
    codes::{self, Answer, Code},
    device::{self, Device},
};

/// Places and objects of the driver, as the caller holds them.
type Handle = usize;

/// The body of a call that needs a device: counted, with the device locked, refused after a failure of its work.
fn on_device(name: &'static str, body: impl FnOnce(&mut Device) -> Answer) -> u32 {
    codes::number(device::current().and_then(|mut device| {
        *device.calls.entry(name).or_default() += 1;
        device.usable()?;
        body(&mut device)?;
        // Work that ran inside this call may have failed.
        device.error.map_or(Ok(()), Err)
    }))
}

/// The body of a call that needs none.
fn anywhere(_name: &'static str, body: impl FnOnce() -> Answer) -> u32 {
    codes::number(body())
}

/// Functions of the driver. `fn name(device; parameters)` needs the device of this thread's context, `fn name(; parameters)` none.
macro_rules! api {
    ($(fn $name:ident($($device:ident)?; $($parameter:ident: $type:ty),* $(,)?) $body:block)*) => { $(
        #[unsafe(no_mangle)]
        pub extern "C" fn $name($($parameter: $type),*) -> u32 {
            api!(@call $name [$($device)?] $body)
        }
    )* };
    (@call $name:ident [$device:ident] $body:block) => {
        $crate::driver::on_device(stringify!($name), |$device| $body)
    };
    (@call $name:ident [] $body:block) => { $crate::driver::anywhere(stringify!($name), || $body) };
}
use api;

fn unsigned(value: i32) -> Result<usize, Code> {
    usize::try_from(value).map_err(|_| Code::INVALID_VALUE)
}
