//! Kernels: compiled for the host by g++, loaded, and run block by block.

mod compile;
mod crash;
mod lines;
mod run;
mod scan;

use std::{
    collections::HashMap,
    ffi::{CStr, CString, c_char, c_int, c_void},
    path::{Path, PathBuf},
    sync::Mutex,
};

pub use compile::{Failure, compile};
pub use lines::line_of;
pub use run::{Stop, run};

use crate::image::Unit;

// ---- The layout of these is that of `host/emu/runner.h`. ----

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Dim3(pub u32, pub u32, pub u32);

/// What a kernel asks before it touches memory; the layout of `emu::Request`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Request {
    pub at: usize,
    pub bytes: u32,
    pub kind: u32,
    pub block: u32,
    pub thread: u32,
    pub epoch: u32,
    pub warp_epoch: u32,
    /// The block's shared memory.
    pub shared: usize,
    pub shared_bytes: usize,
    /// Where the kernel's code is.
    pub pc: usize,
}

pub type Access = unsafe extern "C" fn(*const Request) -> c_int;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Launch {
    grid: Dim3,
    block: Dim3,
    shared_bytes: u32,
    first_block: u32,
    blocks: u32,
    seed: u32,
    parameters: *mut *mut c_void,
    /// With checks: asked before each access.
    pub access: Option<Access>,
    message: *mut c_char,
}

#[repr(C)]
pub struct Kernel {
    name: *const c_char,
    run: unsafe extern "C" fn(*const Launch) -> c_int,
    call: *const c_void,
    parameters: u32,
    pub max_threads: u32,
    sizes: *const u32,
}
// -------------------------------------------------------------

// SAFETY: read-only tables of a library that is never closed.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

impl Launch {
    pub fn new(
        grid: Dim3,
        block: Dim3,
        shared_bytes: u32,
        seed: u32,
        parameters: *mut *mut c_void,
    ) -> Launch {
        Launch {
            grid,
            block,
            shared_bytes,
            first_block: 0,
            blocks: 0,
            seed,
            parameters,
            access: None,
            message: std::ptr::null_mut(),
        }
    }
}

impl Kernel {
    pub fn name(&self) -> &str {
        // SAFETY: a literal of the library.
        unsafe { CStr::from_ptr(self.name) }.to_str().unwrap_or("?")
    }
    /// Bytes of each parameter.
    pub fn sizes(&self) -> &[u32] {
        // SAFETY: a constant array of the library, of this length.
        unsafe { std::slice::from_raw_parts(self.sizes, self.parameters as usize) }
    }
}

/// The kernels of a unit, compiled where that has not been done. They stay loaded.
pub fn of_unit(unit: &Unit) -> Result<Vec<&'static Kernel>, String> {
    static LOADED: Mutex<Option<HashMap<PathBuf, Vec<&'static Kernel>>>> = Mutex::new(None);
    let library = compile(unit).map_err(|failure| failure.log)?;
    let mut loaded = LOADED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let loaded = loaded.get_or_insert_default();
    if let Some(kernels) = loaded.get(&library) {
        return Ok(kernels.clone());
    }
    let kernels = load(&library)?;
    loaded.insert(library, kernels.clone());
    Ok(kernels)
}

fn load(library: &Path) -> Result<Vec<&'static Kernel>, String> {
    let name = CString::new(library.to_string_lossy().as_bytes()).map_err(|error| error.to_string())?;
    // SAFETY: a library of `compile`, whose loading runs nothing, with its table of kernels that a null name ends.
    unsafe {
        let handle = libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
        if handle.is_null() {
            return Err(CStr::from_ptr(libc::dlerror()).to_string_lossy().into_owned());
        }
        let mut at = libc::dlsym(handle, c"emu_kernels".as_ptr()).cast::<Kernel>();
        let mut kernels = Vec::new();
        while !at.is_null() && !(*at).name.is_null() {
            kernels.push(&*at);
            at = at.add(1);
        }
        Ok(kernels)
    }
}
