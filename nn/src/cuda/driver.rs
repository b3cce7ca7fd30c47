//! Which libraries and GPUs are there.

#![allow(unsafe_code, reason = "calls of the driver")]

use cudarc::{cublaslt, driver, nvrtc};

use crate::error::{Error, Result};

/// The oldest driver that can be used: it allocates in the order of streams, and loads what current compilers write.
const OLDEST_DRIVER: i32 = 12_000;
/// The oldest compute capability: kernels use `cp.async` and bf16 products.
const OLDEST_CAPABILITY: (i32, i32) = (8, 0);

/// What is known of a GPU before it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuInfo {
    /// Its number.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Major and minor number of what it can do.
    pub capability: (i32, i32),
    /// Bytes of its memory.
    pub memory: usize,
}

impl GpuInfo {
    /// Whether it can run the kernels, or why not.
    ///
    /// # Errors
    /// If it is too old.
    pub fn usable(&self) -> Result<()> {
        if self.capability < OLDEST_CAPABILITY {
            let ((major, minor), (oldest, _)) = (self.capability, OLDEST_CAPABILITY);
            return Err(device_error(
                self.ordinal,
                format!(
                    "{} has compute capability {major}.{minor}, and the kernels need {oldest}.0 (Ampere) or newer",
                    self.name
                ),
            ));
        }
        Ok(())
    }
}

/// An error of a GPU.
pub(super) fn device_error(ordinal: usize, message: impl Into<String>) -> Error {
    Error::Device { device: format!("cuda:{ordinal}"), message: message.into() }
}

/// Whether there is a driver, NVRTC and cuBLASLt.
///
/// # Errors
/// What is missing, in one sentence.
pub fn is_there() -> Result<()> {
    // SAFETY: each loads a library by its name, as the first call into it would; none is unloaded.
    let [driver, nvrtc, products] = unsafe {
        [driver::sys::is_culib_present(), nvrtc::sys::is_culib_present(), cublaslt::sys::is_culib_present()]
    };
    let missing = if !driver {
        "there is no NVIDIA driver (libcuda.so was not found)"
    } else if !nvrtc {
        "the compiler of kernels was not found (libnvrtc.so): it comes with the CUDA toolkit and with the Python package \
         nvidia-cuda-nvrtc; put its folder on LD_LIBRARY_PATH"
    } else if !products {
        "the library of matrix products was not found (libcublasLt.so): it comes with the CUDA toolkit and with the Python \
         package nvidia-cublas; put its folder on LD_LIBRARY_PATH"
    } else {
        return Ok(());
    };
    Err(Error::Device { device: "cuda".into(), message: missing.into() })
}

/// The GPUs that the driver shows.
///
/// # Errors
/// If a library is missing, or the driver is too old or fails.
pub fn devices() -> Result<Vec<GpuInfo>> {
    is_there()?;
    let failed = |what: &str, error: driver::DriverError| Error::Device {
        device: "cuda".into(),
        message: format!("the driver fails to {what}: {}", text(error)),
    };
    let mut version = 0;
    // SAFETY: writes one number.
    unsafe { driver::sys::cuDriverGetVersion(&raw mut version) }
        .result()
        .map_err(|e| failed("tell its version", e))?;
    if version < OLDEST_DRIVER {
        return Err(Error::Device {
            device: "cuda".into(),
            message: format!(
                "the driver supports CUDA {}, and {} is needed: update the driver",
                dotted(version),
                dotted(OLDEST_DRIVER)
            ),
        });
    }
    compiler_fits(version)?;
    match driver::result::init() {
        Ok(()) => {}
        Err(driver::DriverError(driver::sys::CUresult::CUDA_ERROR_NO_DEVICE)) => return Ok(Vec::new()),
        Err(e) => return Err(failed("start", e)),
    }
    let count = driver::result::device::get_count().map_err(|e| failed("count GPUs", e))?;
    (0..count).map(|i| info(i).map_err(|e| failed(&format!("describe GPU {i}"), e))).collect()
}

/// A driver runs what a compiler of its own major version or an older one has made.
fn compiler_fits(driver: i32) -> Result<()> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two numbers.
    unsafe { nvrtc::sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    if major <= driver / 1000 {
        return Ok(());
    }
    let older = driver / 1000;
    // Packages for CUDA 12 and before have its number in their names.
    let package = if older < 13 { format!("-cu{older}") } else { String::new() };
    Err(Error::Device {
        device: "cuda".into(),
        message: format!(
            "the driver supports CUDA {}, and the compiler of kernels, NVRTC {major}.{minor}, is of a newer one: update the driver, or put \
             NVRTC and cuBLASLt of CUDA {older} on LD_LIBRARY_PATH (Python packages nvidia-cuda-nvrtc{package} and nvidia-cublas{package})",
            dotted(driver)
        ),
    })
}

fn info(ordinal: i32) -> Result<GpuInfo, driver::DriverError> {
    use driver::{
        result::device,
        sys::CUdevice_attribute_enum::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        },
    };
    let gpu = device::get(ordinal)?;
    // SAFETY: the driver has started, and `gpu` is one of its GPUs.
    let (capability, memory) = unsafe {
        ((device::get_attribute(gpu, MAJOR)?, device::get_attribute(gpu, MINOR)?), device::total_mem(gpu)?)
    };
    Ok(GpuInfo { ordinal: ordinal as usize, name: device::get_name(gpu)?, capability, memory })
}

/// 12040 as 12.4.
pub(super) fn dotted(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// A driver's error in its own words. Only where there is a driver: without one it cannot be asked.
pub(super) fn text(error: driver::DriverError) -> String {
    let text = |t: Result<&std::ffi::CStr, _>| t.map(|t| t.to_string_lossy().into_owned());
    match (text(error.error_string()), text(error.error_name())) {
        (Ok(string), Ok(name)) => format!("{string} ({name})"),
        _ => format!("{:?}", error.0),
    }
}
