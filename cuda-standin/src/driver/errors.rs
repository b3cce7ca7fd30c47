//! Names and sentences of codes.

use std::ffi::{CStr, c_char};

use super::api;
use crate::{
    codes::{self, Code},
    foreign::Out,
};

fn described(code: u32) -> Result<(&'static CStr, &'static CStr), Code> {
    codes::described(code).ok_or(Code::INVALID_VALUE)
}

api! {
    fn cuGetErrorName(; code: u32, out: Out<*const c_char>) { out.set(described(code)?.0.as_ptr()) }
    fn cuGetErrorString(; code: u32, out: Out<*const c_char>) { out.set(described(code)?.1.as_ptr()) }
}
