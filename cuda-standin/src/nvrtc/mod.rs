//! NVRTC's functions, by their names. A program is compiled at once, so that its errors are told where NVRTC tells them.

mod real;

use std::{
    ffi::{CString, c_char, c_int},
    sync::{Mutex, MutexGuard},
};

use crate::{
    foreign::{In, Out},
    image::{Target, Unit},
    kernels,
};

const SUCCESS: u32 = 0;
const INVALID_INPUT: u32 = 3;
const INVALID_PROGRAM: u32 = 4;
const COMPILATION: u32 = 6;

/// The version that the stand-in says it is.
const VERSION: (c_int, c_int) = (13, 0);
/// What NVRTC 13.0 compiles for.
const ARCHITECTURES: [c_int; 11] = [75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120];

#[derive(Default)]
struct Program {
    unit: Unit,
    image: CString,
    log: CString,
}

/// Programs by handle, which is the place and one.
static PROGRAMS: Mutex<Vec<Option<Program>>> = Mutex::new(Vec::new());

fn programs() -> MutexGuard<'static, Vec<Option<Program>>> {
    PROGRAMS.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn with_program(handle: usize, body: impl FnOnce(&mut Program) -> u32) -> u32 {
    match handle
        .checked_sub(1)
        .and_then(|place| programs().get_mut(place).and_then(|slot| slot.as_mut()).map(body))
    {
        Some(code) => code,
        None => INVALID_PROGRAM,
    }
}

/// What a parameter must be, or the whole call is refused.
macro_rules! given {
    ($value:expr) => {
        match $value {
            Ok(value) => value,
            Err(_) => return INVALID_INPUT,
        }
    };
}

#[unsafe(no_mangle)]
pub extern "C" fn nvrtcVersion(major: Out<c_int>, minor: Out<c_int>) -> u32 {
    given!(major.set(VERSION.0).and_then(|()| minor.set(VERSION.1)));
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn nvrtcGetNumSupportedArchs(count: Out<c_int>) -> u32 {
    given!(count.set(ARCHITECTURES.len() as c_int));
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn nvrtcGetSupportedArchs(architectures: Out<c_int>) -> u32 {
    architectures.fill(&ARCHITECTURES);
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn nvrtcGetErrorString(code: u32) -> *const c_char {
    let text = match code {
        SUCCESS => c"NVRTC_SUCCESS",
        INVALID_INPUT => c"NVRTC_ERROR_INVALID_INPUT",
        INVALID_PROGRAM => c"NVRTC_ERROR_INVALID_PROGRAM",
        COMPILATION => c"NVRTC_ERROR_COMPILATION",
        _ => c"NVRTC_ERROR unknown",
    };
    text.as_ptr()
}

#[unsafe(no_mangle)]
pub extern "C" fn nvrtcCreateProgram(
    handle: Out<usize>,
    source: In<c_char>,
    name: In<c_char>,
    headers: c_int,
    header_texts: In<In<c_char>>,
    header_names: In<In<c_char>>,
) -> u32 {
    let source = given!(source.text());
    let name = if name.is_null() { "default_program".to_owned() } else { given!(name.text()) };
    let count = usize::try_from(headers).unwrap_or(0);
    let mut unit = Unit { name, source, ..Unit::default() };
    for (name, text) in header_names.list(count).into_iter().zip(header_texts.list(count)) {
        unit.headers.push((given!(name.text()), given!(text.text())));
    }
    let mut programs = programs();
    programs.push(Some(Program { unit, ..Program::default() }));
    given!(handle.set(programs.len()));
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn nvrtcDestroyProgram(handle: In<usize>) -> u32 {
    let place = given!(handle.get()).wrapping_sub(1);
    match programs().get_mut(place).and_then(Option::take) {
        Some(_) => SUCCESS,
        None => INVALID_PROGRAM,
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn nvrtcCompileProgram(handle: usize, count: c_int, options: In<In<c_char>>) -> u32 {
    let mut texts = Vec::new();
    for option in options.list(usize::try_from(count).unwrap_or(0)) {
        texts.push(given!(option.text()));
    }
    let mut unit = None;
    let known = with_program(handle, |program| {
        program.unit.options = texts;
        unit = Some(program.unit.clone());
        SUCCESS
    });
    let Some(unit) = unit else { return known };
    // Without the lock: threads may compile side by side.
    let done = real::refuses(&unit).and_then(|()| kernels::compile(&unit));
    with_program(handle, |program| match done {
        Ok(_) => {
            program.image = CString::new(unit.to_image()).unwrap_or_default();
            program.log = CString::default();
            SUCCESS
        }
        Err(failure) => {
            program.log = CString::new(failure.log).unwrap_or_default();
            COMPILATION
        }
    })
}

/// Pairs of a size and a text, which is the image or the log.
macro_rules! texts {
    ($($size:ident, $get:ident: $text:expr;)*) => { $(
        #[unsafe(no_mangle)]
        pub extern "C" fn $size(handle: usize, size: Out<usize>) -> u32 {
            let text: fn(&Program) -> Option<&CString> = $text;
            with_program(handle, |program| {
                // NVRTC says 0 where there is no such text.
                given!(size.set(text(program).map_or(0, |text| text.as_bytes_with_nul().len())));
                SUCCESS
            })
        }

        #[unsafe(no_mangle)]
        pub extern "C" fn $get(handle: usize, out: Out<c_char>) -> u32 {
            let text: fn(&Program) -> Option<&CString> = $text;
            with_program(handle, |program| match text(program) {
                Some(text) => {
                    let bytes: Vec<c_char> = text.as_bytes_with_nul().iter().map(|byte| *byte as c_char).collect();
                    out.fill(&bytes);
                    SUCCESS
                }
                None => INVALID_PROGRAM,
            })
        }
    )* };
}

texts! {
    nvrtcGetPTXSize, nvrtcGetPTX: |program| Some(&program.image);
    nvrtcGetCUBINSize, nvrtcGetCUBIN: |program| matches!(program.unit.target(), Target::Real(_)).then_some(&program.image);
    nvrtcGetProgramLogSize, nvrtcGetProgramLog: |program| Some(&program.log);
}
