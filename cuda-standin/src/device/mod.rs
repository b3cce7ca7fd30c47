//! What one device is, and which one a call means.
//!
//! ```text
//!  schedule   when queued work runs      run   what it does then      events   what streams and the host wait for
//! ```
//!
//! Devices share nothing: each has its own memory, streams and handles, behind its own lock. A call means the device whose
//! context is bound to the thread, as with the real driver.

mod events;
mod run;
mod schedule;

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, OnceLock},
};

use crate::{
    checker::Checker,
    codes::{Answer, Code},
    events::Event,
    kernels::Kernel,
    memory::Memory,
    queue::Queue,
    settings::settings,
};

/// Handles differ between devices, so that one of another device is not taken for one's own.
const HANDLES_PER_DEVICE: usize = 1 << 32;
const FIRST_HANDLE: usize = 0x1000;
const HANDLE_STEP: usize = 16;
/// The context of device 0; the next devices' follow.
const FIRST_CONTEXT: usize = 0x77;
/// The default memory pool of device 0; the next devices' follow.
pub const FIRST_POOL: usize = 0x700;
/// Dynamic shared memory of a block where a kernel asked for no more.
pub const SHARED_BYTES: u32 = 48 * 1024;

/// A kernel of a module, as a launch names it.
#[derive(Clone, Copy)]
pub struct Function {
    pub kernel: &'static Kernel,
    pub module: usize,
    /// Largest dynamic shared memory.
    pub shared_limit: u32,
}

pub struct Device {
    ordinal: usize,
    pub memory: Memory,
    /// With checks.
    pub checker: Option<Box<Checker>>,
    pub queue: Queue,
    pub events: HashMap<usize, Event>,
    pub modules: HashMap<usize, Vec<&'static Kernel>>,
    pub functions: HashMap<usize, Function>,
    /// Memory pools, with the attributes that were set.
    pub pools: HashMap<usize, HashMap<i32, u64>>,
    /// How often the primary context was retained and not released.
    pub retained: usize,
    next_handle: usize,
    launches: u64,
    /// The first failure of work. Sticky, as on a device: every later call returns it.
    pub error: Option<Code>,
    /// How often each function was called.
    pub calls: BTreeMap<&'static str, u32>,
}

fn devices() -> &'static [Mutex<Device>] {
    static DEVICES: OnceLock<Vec<Mutex<Device>>> = OnceLock::new();
    DEVICES.get_or_init(|| (0..settings().devices).map(|ordinal| Mutex::new(Device::new(ordinal))).collect())
}

thread_local!(static BOUND: Cell<usize> = const { Cell::new(0) });

/// The context of this thread; 0: none.
pub fn bound() -> usize {
    BOUND.get()
}
pub fn bind(context: usize) {
    BOUND.set(context);
}
pub fn context_of(ordinal: usize) -> usize {
    FIRST_CONTEXT + ordinal
}
pub fn ordinal_of(context: usize) -> Option<usize> {
    context.checked_sub(FIRST_CONTEXT).filter(|ordinal| *ordinal < settings().devices)
}

/// A device by its number.
pub fn numbered(ordinal: usize) -> Result<MutexGuard<'static, Device>, Code> {
    let device = devices().get(ordinal).ok_or(Code::INVALID_DEVICE)?;
    Ok(device.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

/// The device whose context is bound to this thread.
pub fn current() -> Result<MutexGuard<'static, Device>, Code> {
    let ordinal = ordinal_of(bound()).ok_or(Code::INVALID_CONTEXT)?;
    numbered(ordinal)
        .and_then(|device| if device.retained > 0 { Ok(device) } else { Err(Code::INVALID_CONTEXT) })
}

impl Device {
    fn new(ordinal: usize) -> Device {
        let settings = settings();
        let memory = Memory::new(ordinal, settings.memory.saturating_sub(settings.held), settings.check);
        Device {
            ordinal,
            checker: settings.check.then(|| Box::new(Checker::new(memory.base))),
            memory,
            queue: Queue::new(settings.order),
            events: HashMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            pools: HashMap::from([(FIRST_POOL + ordinal, HashMap::new())]),
            retained: 0,
            next_handle: FIRST_HANDLE + ordinal * HANDLES_PER_DEVICE,
            launches: 0,
            error: None,
            calls: BTreeMap::new(),
        }
    }

    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    pub fn handle(&mut self) -> usize {
        self.next_handle += HANDLE_STEP;
        self.next_handle
    }

    pub fn new_stream(&mut self, priority: i32) -> usize {
        let handle = self.handle();
        self.queue.open(handle, priority);
        handle
    }
    /// The stream that a handle names.
    pub fn stream(&self, handle: usize) -> Result<usize, Code> {
        self.queue.stream(handle).ok_or(Code::INVALID_HANDLE)
    }

    /// A kernel or a library's work was queued.
    pub fn launched(&mut self) {
        self.launches += 1;
    }

    /// Refuses a call after a failure. After `STANDIN_LOSE_AFTER` launches the device is lost, and the next call is told.
    pub fn usable(&mut self) -> Answer {
        if settings().lose_after.is_some_and(|last| self.launches >= last) {
            self.fail(Code::DEVICE_UNAVAILABLE);
        }
        self.error.map_or(Ok(()), Err)
    }

    pub fn fail(&mut self, code: Code) {
        self.error.get_or_insert(code);
    }
}
