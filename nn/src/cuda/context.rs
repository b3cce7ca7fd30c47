//! One GPU.

#![allow(unsafe_code, reason = "calls of the driver")]

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};

use super::{
    driver::{self, GpuInfo, device_error},
    launch::Function,
    memory::Memory,
    modules::{self, Cache, Source},
    products::{Products, WORKSPACE},
    window::Window,
};
use crate::{
    device::Precision,
    error::{Error, Result},
};

/// A GPU. Cloning gives another handle on the same one.
#[derive(Clone)]
pub struct Cuda(pub(super) Arc<Gpu>);

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cuda:{} ({})", self.0.info.ordinal, self.0.info.name)
    }
}

/// Whose work a GPU begins first, where several streams have some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Urgency {
    /// In what room streams that come first leave: between their kernels, and beside one that does not fill the GPU.
    Usual,
    First,
}

/// A stream with what products on it need.
#[derive(Debug)]
pub(super) struct Lane {
    pub urgency: Urgency,
    // Freed in the order of the stream, so before it.
    pub workspace: Memory,
    /// Of streamed weights, from their first use on.
    pub window: Mutex<Option<Window>>,
    pub stream: Arc<CudaStream>,
}

/// What all handles on a GPU share. Fields are dropped in their order: the context last.
pub(super) struct Gpu {
    pub info: GpuInfo,
    pub products: Products,
    lanes: Mutex<Vec<Lane>>,
    modules: Mutex<HashMap<(Source, Precision), Module>>,
    cache: Cache,
    /// Where what belongs to models is written.
    loading: Arc<CudaStream>,
    pub context: Arc<CudaContext>,
}

/// A module that is loaded until the process ends, and its kernels by their names.
struct Module {
    module: sys::CUmodule,
    functions: HashMap<&'static str, (Function, usize)>,
}

// SAFETY: a module is a handle that the driver's calls take on any thread.
unsafe impl Send for Module {}

impl Cuda {
    /// The GPU of this number.
    ///
    /// # Errors
    /// If there is no driver, or no such GPU; if either is too old.
    pub fn open(ordinal: usize) -> Result<Self> {
        let all = driver::devices()?;
        let Some(info) = all.iter().find(|d| d.ordinal == ordinal) else {
            let there = match all.as_slice() {
                [] => "the driver shows no GPU".to_owned(),
                [one] => format!("there is one GPU, cuda:0 ({})", one.name),
                all => format!("there are {} GPUs, cuda:0 to cuda:{}", all.len(), all.len() - 1),
            };
            return Err(device_error(ordinal, format!("there is no such GPU: {there}")));
        };
        info.usable()?;
        let failed =
            |e: DriverError| device_error(ordinal, format!("it cannot be used: {}", driver::text(e)));
        let context = CudaContext::new(ordinal).map_err(failed)?;
        // SAFETY: memory is used in the order of the stream that it was allocated on; what belongs to the model is waited for
        // when it is written, and freed when nothing runs.
        unsafe { context.disable_event_tracking() };
        keep_freed_memory(&context).map_err(failed)?;
        let loading = context.new_stream().map_err(failed)?;
        let products =
            Products::new().map_err(|e| device_error(ordinal, format!("cuBLASLt does not start: {e:?}")))?;
        Ok(Self(Arc::new(Gpu {
            info: info.clone(),
            products,
            lanes: Mutex::default(),
            modules: Mutex::default(),
            cache: Cache::of_the_user(),
            loading,
            context,
        })))
    }

    /// Is this a handle on the same GPU?
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// What is known of it.
    pub fn info(&self) -> &GpuInfo {
        &self.0.info
    }

    /// The bytes of its memory that this process uses now. What the driver keeps for itself is not counted.
    ///
    /// # Errors
    /// If the GPU is lost.
    pub fn used_memory(&self) -> Result<u64> {
        self.read_pool(USED)
    }

    /// The most bytes of its memory that this process ever used at once, since the last
    /// [`forget_peak_memory`](Self::forget_peak_memory).
    ///
    /// # Errors
    /// If the GPU is lost.
    pub fn peak_memory(&self) -> Result<u64> {
        self.read_pool(MOST_USED)
    }

    /// [`peak_memory`](Self::peak_memory) begins again at what is used now.
    ///
    /// # Errors
    /// If the GPU is lost.
    pub fn forget_peak_memory(&self) -> Result<()> {
        let mut none = 0_u64;
        self.ask_pool(|pool| {
            // SAFETY: the pool is the device's, and the attribute is a number of 64 bits, of which only 0 can be set.
            unsafe { result::mem_pool::set_attribute(pool, MOST_USED, (&raw mut none).cast()) }
        })
    }

    /// A number of 64 bits.
    fn read_pool(&self, attribute: sys::CUmemPool_attribute) -> Result<u64> {
        let mut value = 0_u64;
        self.ask_pool(|pool| {
            // SAFETY: the pool is the device's, and the attribute is a number of 64 bits.
            unsafe { result::mem_pool::get_attribute(pool, attribute, (&raw mut value).cast()) }
        })?;
        Ok(value)
    }

    fn ask_pool(&self, ask: impl FnOnce(sys::CUmemoryPool) -> Result<(), DriverError>) -> Result<()> {
        let context = &self.0.context;
        let ask = || {
            context.bind_to_thread()?;
            // SAFETY: the device is that of a context.
            ask(unsafe { result::device::get_default_mem_pool(context.cu_device()) }?)
        };
        ask().map_err(|e| self.0.failed("say how much memory is used", e))
    }
}

/// Bytes of a pool's memory that are used now, and that were used at most.
const USED: sys::CUmemPool_attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT;
const MOST_USED: sys::CUmemPool_attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;

/// Memory that was freed stays with the process until something else does not fit: asking the system each time is slow.
fn keep_freed_memory(context: &CudaContext) -> Result<(), DriverError> {
    // SAFETY: the context is current, and the attribute is a number of 64 bits.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        let mut all = u64::MAX;
        result::mem_pool::set_attribute(
            pool,
            sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            (&raw mut all).cast(),
        )
    }
}

impl Gpu {
    /// An error of this GPU.
    pub fn error(&self, message: impl Into<String>) -> Error {
        device_error(self.info.ordinal, message)
    }

    /// A failing call of the driver.
    pub fn failed(&self, what: &str, error: DriverError) -> Error {
        match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let room = self.context.mem_get_info().map_or(String::new(), |(free, total)| {
                    format!(" ({} of {} MB are free)", free >> 20, total >> 20)
                });
                self.error(format!(
                    "it has no room to {what}{room}: checkpointing, bf16, streamed weights or a smaller batch need less; \
                     another process may hold memory, too"
                ))
            }
            _ => self.error(format!("it failed to {what}: {}", driver::text(error))),
        }
    }

    /// A stream that nobody uses.
    pub fn lane(&self, urgency: Urgency) -> Result<Lane> {
        let mut idle = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = idle.iter().rposition(|lane| lane.urgency == urgency) {
            return Ok(idle.swap_remove(last));
        }
        drop(idle);
        let new = || {
            self.context.bind_to_thread()?;
            let (usual, first) = result::stream::get_priority_range()?;
            let priority = if urgency == Urgency::First { first } else { usual };
            let stream = self.context.new_stream_with_priority(priority)?;
            let workspace = Memory::new(&stream, WORKSPACE)?;
            Ok(Lane { urgency, workspace, window: Mutex::default(), stream })
        };
        new().map_err(|e| self.failed("begin a stream", e))
    }

    /// A stream that is used no more. Work may still be under way on it: whatever comes next is behind that.
    pub fn idle(&self, lane: Lane) {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner).push(lane);
    }

    /// A kernel, compiled and loaded where it is not yet, for launches with so much shared memory.
    pub fn function(
        &self,
        source: Source,
        precision: Precision,
        name: &'static str,
        shared: usize,
    ) -> Result<Function> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let load = |what: &str, e| self.failed(what, e);
        let module = match modules.entry((source, precision)) {
            std::collections::hash_map::Entry::Occupied(module) => module.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => {
                let image = modules::image(source, precision, &self.info, &self.cache)?;
                self.context.bind_to_thread().map_err(|e| load("load kernels", e))?;
                // SAFETY: an image that NVRTC wrote; PTX ends with a zero.
                let module = unsafe { result::module::load_data(image.as_ptr().cast()) }
                    .map_err(|e| load("load kernels", e))?;
                place.insert(Module { module, functions: HashMap::new() })
            }
        };
        let (function, allowed) = match module.functions.entry(name) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => {
                let text = std::ffi::CString::new(name).map_err(|e| Error::Internal(e.to_string()))?;
                // SAFETY: the module is loaded.
                let found = unsafe { result::module::get_function(module.module, text) }
                    .map_err(|e| load(&format!("find the kernel {name}"), e))?;
                place.insert((Function(found), WITHOUT_ASKING))
            }
        };
        if shared > *allowed {
            function
                .allow_shared(shared)
                .map_err(|e| load(&format!("give {name} {shared} bytes of shared memory"), e))?;
            *allowed = shared;
        }
        Ok(*function)
    }

    /// Write what belongs to a model, one part behind the other, and wait until it is there.
    pub fn write(&self, parts: &[&[u8]]) -> Result<Memory> {
        let length = parts.iter().map(|part| part.len()).sum();
        let write = || {
            let memory = Memory::shared(&self.loading, length)?;
            let mut at = memory.pointer();
            for part in parts {
                // SAFETY: the memory is as long as all parts, which live until the stream is done.
                unsafe { result::memcpy_htod_async(at, part, self.loading.cu_stream()) }?;
                at += part.len() as u64;
            }
            self.loading.synchronize()?;
            Ok(memory)
        };
        write().map_err(|e| self.failed(&format!("hold {length} bytes of a model"), e))
    }
}

/// Bytes of shared memory that a launch may have without asking.
const WITHOUT_ASKING: usize = 48 << 10;
