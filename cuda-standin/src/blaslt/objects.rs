//! Handles and descriptors: what is set there, by attribute.

use std::{
    collections::{HashMap, HashSet},
    ffi::{CStr, c_char, c_int},
    sync::{LazyLock, Mutex, MutexGuard},
};

use super::{EXECUTION_FAILED, INVALID_VALUE, NOT_INITIALIZED, NOT_SUPPORTED, SUCCESS, Status, status};
use crate::{
    device,
    foreign::{In, Out},
};

/// The version that the stand-in says it is: that of CUDA 13.0.
const VERSION: usize = 130_000;
const FIRST_HANDLE: usize = 0x600;

/// Values of attributes, as bytes.
#[derive(Default, Clone)]
pub struct Attributes(HashMap<c_int, Vec<u8>>);

impl Attributes {
    /// A whole number of 32 or 64 bits.
    pub fn number(&self, key: c_int) -> Option<i64> {
        let bytes = self.0.get(&key)?;
        match bytes.len() {
            4 => Some(i64::from(i32::from_le_bytes(bytes[..].try_into().ok()?))),
            8 => Some(i64::from_le_bytes(bytes[..].try_into().ok()?)),
            _ => None,
        }
    }
    /// A number that is not negative; 0 where nothing is set.
    pub fn count(&self, key: c_int) -> usize {
        self.number(key).and_then(|number| usize::try_from(number).ok()).unwrap_or(0)
    }
}

/// What a handle of cuBLASLt stands for.
#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    /// `cublasLtMatmulDesc_t`, with its compute type and its type of scale
    Description { compute: c_int, scale: c_int },
    /// `cublasLtMatrixLayout_t`; `leading`: from one column to the next
    Layout { kind: c_int, rows: usize, cols: usize, leading: usize },
    /// `cublasLtMatmulPreference_t`
    Preference,
}

#[derive(Clone)]
pub struct Object {
    pub kind: Kind,
    pub attributes: Attributes,
}

/// Objects by handle: one that is closed is refused, and not followed to memory that is something else now.
struct Objects {
    next: usize,
    libraries: HashSet<usize>,
    descriptors: HashMap<usize, Object>,
}

fn objects() -> MutexGuard<'static, Objects> {
    static OBJECTS: LazyLock<Mutex<Objects>> = LazyLock::new(|| {
        Mutex::new(Objects { next: FIRST_HANDLE, libraries: HashSet::new(), descriptors: HashMap::new() })
    });
    OBJECTS.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Objects {
    fn handle(&mut self) -> usize {
        self.next += 1;
        self.next
    }
}

fn create(out: Out<usize>, kind: Kind) -> Status {
    let mut objects = objects();
    let handle = objects.handle();
    objects.descriptors.insert(handle, Object { kind, attributes: Attributes::default() });
    out.set(handle).map_or(INVALID_VALUE, |()| SUCCESS)
}

fn destroy(handle: usize) -> Status {
    objects().descriptors.remove(&handle).map_or(INVALID_VALUE, |_| SUCCESS)
}

fn set(handle: usize, key: c_int, value: In<u8>, bytes: usize) -> Status {
    let value = value.bytes(bytes);
    match objects().descriptors.get_mut(&handle) {
        Some(object) => {
            object.attributes.0.insert(key, value);
            SUCCESS
        }
        None => INVALID_VALUE,
    }
}

fn get(handle: usize, key: c_int, out: Out<u8>, room: usize, written: Out<usize>) -> Status {
    let objects = objects();
    let Some(object) = objects.descriptors.get(&handle) else { return INVALID_VALUE };
    let Some(value) = object.attributes.0.get(&key) else { return NOT_SUPPORTED };
    if room < value.len() {
        return INVALID_VALUE;
    }
    out.fill(value);
    // The caller may not want to know.
    let _ = written.set(value.len());
    SUCCESS
}

/// A copy of what a handle stands for.
pub fn object(handle: usize) -> Result<Object, Status> {
    objects().descriptors.get(&handle).cloned().ok_or(INVALID_VALUE)
}

/// Whether a library handle is open, and this thread has a device to work on.
pub fn open(library: usize) -> Result<(), Status> {
    let known = objects().libraries.contains(&library);
    // Asked after the objects are free again: a device may be busy for long.
    if known && device::current().is_ok() { Ok(()) } else { Err(NOT_INITIALIZED) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtCreate(out: Out<usize>) -> Status {
    match device::current().map(|mut device| device.usable()) {
        Err(_) => return NOT_INITIALIZED,
        Ok(Err(_)) => return EXECUTION_FAILED,
        Ok(Ok(())) => {}
    }
    let mut objects = objects();
    let handle = objects.handle();
    objects.libraries.insert(handle);
    out.set(handle).map_or(INVALID_VALUE, |()| SUCCESS)
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtDestroy(handle: usize) -> Status {
    status(objects().libraries.remove(&handle).then_some(()).ok_or(NOT_INITIALIZED))
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetVersion() -> usize {
    VERSION
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetCudartVersion() -> usize {
    VERSION / 10
}

fn name(status: Status) -> &'static CStr {
    match status {
        SUCCESS => c"CUBLAS_STATUS_SUCCESS",
        NOT_INITIALIZED => c"CUBLAS_STATUS_NOT_INITIALIZED",
        INVALID_VALUE => c"CUBLAS_STATUS_INVALID_VALUE",
        EXECUTION_FAILED => c"CUBLAS_STATUS_EXECUTION_FAILED",
        NOT_SUPPORTED => c"CUBLAS_STATUS_NOT_SUPPORTED",
        _ => c"unknown",
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetStatusName(status: Status) -> *const c_char {
    name(status).as_ptr()
}
#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetStatusString(status: Status) -> *const c_char {
    name(status).as_ptr()
}

macro_rules! descriptor {
    ($create:ident($($parameter:ident: $type:ty),*) = $kind:expr; $destroy:ident, $set:ident, $get:ident) => {
        #[unsafe(no_mangle)]
        pub extern "C" fn $create(out: Out<usize>, $($parameter: $type),*) -> Status {
            create(out, $kind)
        }
        #[unsafe(no_mangle)]
        pub extern "C" fn $destroy(handle: usize) -> Status {
            destroy(handle)
        }
        #[unsafe(no_mangle)]
        pub extern "C" fn $set(handle: usize, key: c_int, value: In<u8>, bytes: usize) -> Status {
            set(handle, key, value, bytes)
        }
        #[unsafe(no_mangle)]
        pub extern "C" fn $get(handle: usize, key: c_int, out: Out<u8>, room: usize, written: Out<usize>) -> Status {
            get(handle, key, out, room, written)
        }
    };
}

descriptor!(cublasLtMatmulDescCreate(compute: c_int, scale: c_int) = Kind::Description { compute, scale };
    cublasLtMatmulDescDestroy, cublasLtMatmulDescSetAttribute, cublasLtMatmulDescGetAttribute);
descriptor!(cublasLtMatrixLayoutCreate(kind: c_int, rows: u64, cols: u64, leading: i64)
        = Kind::Layout { kind, rows: rows as usize, cols: cols as usize, leading: leading as usize };
    cublasLtMatrixLayoutDestroy, cublasLtMatrixLayoutSetAttribute, cublasLtMatrixLayoutGetAttribute);
descriptor!(cublasLtMatmulPreferenceCreate() = Kind::Preference;
    cublasLtMatmulPreferenceDestroy, cublasLtMatmulPreferenceSetAttribute, cublasLtMatmulPreferenceGetAttribute);
