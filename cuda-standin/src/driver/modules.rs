//! Modules and the functions in them.

use std::ffi::{c_char, c_int};

use super::{Handle, api, limits::most_shared};
use crate::{
    codes::Code,
    device::{Device, Function, SHARED_BYTES},
    foreign::{In, Out},
    image::{Target, Unit},
    kernels,
    settings::{DEFAULT_DRIVER, settings},
};

// CUfunction_attribute
const MAX_THREADS_PER_BLOCK: c_int = 0;
const NUM_REGS: c_int = 4;
const PTX_VERSION: c_int = 5;
const BINARY_VERSION: c_int = 6;
const MAX_DYNAMIC_SHARED: c_int = 8;
/// What `cuFuncGetAttribute` says of every kernel: the stand-in does not know better.
const REGISTERS: c_int = 32;

fn load(device: &mut Device, image: &str) -> Result<Handle, Code> {
    let Some(unit) = Unit::from_image(image) else {
        eprintln!(
            "standin: an image that is not the stand-in's own: one of the real NVRTC runs on a device only"
        );
        return Err(Code::INVALID_IMAGE);
    };
    let target = unit.target();
    if settings().driver < DEFAULT_DRIVER {
        eprintln!(
            "standin: a driver of version {} does not know what NVRTC of CUDA 13.0 makes",
            settings().driver
        );
        return Err(match target {
            Target::Virtual(_) => Code::UNSUPPORTED_PTX_VERSION,
            Target::Real(_) => Code::INVALID_IMAGE,
        });
    }
    if !target.runs_on(settings().capability) {
        eprintln!("standin: {}: compiled for {target:?}, and this is {}", unit.name, settings().capability);
        return Err(Code::NO_BINARY_FOR_GPU);
    }
    let kernels = kernels::of_unit(&unit).map_err(|log| {
        eprintln!("standin: {}: {log}", unit.name);
        Code::INVALID_IMAGE
    })?;
    let handle = device.handle();
    device.modules.insert(handle, kernels);
    Ok(handle)
}

fn function(device: &mut Device, module: Handle, name: &str) -> Result<Handle, Code> {
    let kernels = device.modules.get(&module).ok_or(Code::INVALID_HANDLE)?;
    let kernel = *kernels.iter().find(|kernel| kernel.name() == name).ok_or(Code::NOT_FOUND)?;
    let known = device
        .functions
        .iter()
        .find(|(_, function)| function.module == module && std::ptr::eq(function.kernel, kernel));
    if let Some((handle, _)) = known {
        return Ok(*handle);
    }
    let handle = device.handle();
    device.functions.insert(handle, Function { kernel, module, shared_limit: SHARED_BYTES });
    Ok(handle)
}

pub fn named(device: &Device, function: Handle) -> Result<Function, Code> {
    device.functions.get(&function).copied().ok_or(Code::INVALID_HANDLE)
}

api! {
    fn cuModuleLoadData(device; out: Out<Handle>, image: In<c_char>) {
        let text = image.text().map_err(|_| Code::INVALID_IMAGE)?;
        out.set(load(device, &text)?)
    }
    fn cuModuleLoad(device; out: Out<Handle>, path: In<c_char>) {
        let text = std::fs::read_to_string(path.text()?).map_err(|_| Code::FILE_NOT_FOUND)?;
        out.set(load(device, text.trim_end_matches('\0'))?)
    }
    fn cuModuleUnload(device; module: Handle) {
        device.modules.remove(&module).ok_or(Code::INVALID_HANDLE)?;
        device.functions.retain(|_, function| function.module != module);
        Ok(())
    }
    fn cuModuleGetFunction(device; out: Out<Handle>, module: Handle, name: In<c_char>) {
        out.set(function(device, module, &name.text()?)?)
    }
    fn cuFuncSetAttribute(device; function: Handle, attribute: c_int, value: c_int) {
        let function = device.functions.get_mut(&function).ok_or(Code::INVALID_HANDLE)?;
        if attribute == MAX_DYNAMIC_SHARED {
            if !(0..=most_shared()).contains(&value) {
                return Err(Code::INVALID_VALUE);
            }
            function.shared_limit = value as u32;
        }
        Ok(())
    }
    fn cuFuncSetCacheConfig(device; function: Handle, _config: c_int) { named(device, function).map(|_| ()) }
    fn cuFuncGetAttribute(device; out: Out<c_int>, attribute: c_int, function: Handle) {
        let function = named(device, function)?;
        out.set(match attribute {
            MAX_THREADS_PER_BLOCK => function.kernel.max_threads as c_int,
            NUM_REGS => REGISTERS,
            PTX_VERSION | BINARY_VERSION => settings().capability as c_int,
            MAX_DYNAMIC_SHARED => function.shared_limit as c_int,
            _ => 0,
        })
    }
}
