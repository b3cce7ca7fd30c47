//! What functions of the driver answer: `CUresult`, with the names and sentences that `cuGetErrorName` and `cuGetErrorString` give.

use std::ffi::CStr;

/// A `CUresult` other than success.
#[derive(Clone, Copy, PartialEq, Debug)]
#[repr(transparent)]
pub struct Code(pub u32);

pub type Answer = Result<(), Code>;

pub const SUCCESS: u32 = 0;

macro_rules! codes {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        impl Code { $(pub const $name: Code = Code($number);)* }

        /// Name and sentence of a code.
        pub fn described(code: u32) -> Option<(&'static CStr, &'static CStr)> {
            let (name, text) = match code {
                SUCCESS => ("CUDA_SUCCESS\0", "no error\0"),
                $($number => (concat!("CUDA_ERROR_", stringify!($name), "\0"), concat!($text, "\0")),)*
                _ => return None,
            };
            Some((CStr::from_bytes_with_nul(name.as_bytes()).ok()?, CStr::from_bytes_with_nul(text.as_bytes()).ok()?))
        }
    };
}

codes! {
    INVALID_VALUE = 1, "invalid argument";
    OUT_OF_MEMORY = 2, "out of memory";
    DEVICE_UNAVAILABLE = 46, "CUDA-capable device(s) is/are busy or unavailable (the stand-in has lost it)";
    NO_DEVICE = 100, "no CUDA-capable device is detected";
    INVALID_DEVICE = 101, "invalid device ordinal";
    INVALID_IMAGE = 200, "device kernel image is invalid";
    INVALID_CONTEXT = 201, "invalid device context";
    NO_BINARY_FOR_GPU = 209, "no kernel image is available for execution on the device";
    UNSUPPORTED_PTX_VERSION = 222, "the provided PTX was compiled with an unsupported toolchain";
    FILE_NOT_FOUND = 301, "file not found";
    INVALID_HANDLE = 400, "invalid resource handle";
    NOT_FOUND = 500, "named symbol not found";
    NOT_READY = 600, "device not ready";
    ILLEGAL_ADDRESS = 700, "an illegal memory access was encountered";
    LAUNCH_OUT_OF_RESOURCES = 701, "too many resources requested for launch";
    LAUNCH_FAILED = 719, "unspecified launch failure (the stand-in says more on stderr)";
}

/// An `Answer` as the caller gets it.
pub fn number(answer: Answer) -> u32 {
    answer.err().map_or(SUCCESS, |code| code.0)
}
