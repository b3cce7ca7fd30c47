//! The line of a kernel's source that an instruction is of.

use std::{
    ffi::{CStr, c_void},
    process::Command,
};

/// "file:line" of an address in a loaded library, and through what it was inlined.
pub fn line_of(pc: usize) -> String {
    // SAFETY: all zeros are a value of this plain structure.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: asks only which library an address is in.
    if unsafe { libc::dladdr(pc as *const c_void, &mut info) } == 0 || info.dli_fname.is_null() {
        return "?".into();
    }
    // SAFETY: the loader's string, which lasts as long as the library: for ever.
    let file = unsafe { CStr::from_ptr(info.dli_fname) }.to_string_lossy().into_owned();
    // A return address is one past the call.
    let offset = pc - info.dli_fbase as usize - 1;
    let said = Command::new("addr2line").args(["-i", "-s", "-e", &file, &format!("{offset:#x}")]).output();
    let said = said.map(|done| String::from_utf8_lossy(&done.stdout).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = said.lines().filter_map(|line| line.split(" (").next()).collect();
    if lines.is_empty() { "?".into() } else { lines.join(" < ") }
}
