//! Algorithms: there is one, which remembers what was promised and what was set.

use std::ffi::c_int;

use super::{
    INVALID_VALUE, NOT_SUPPORTED, SUCCESS, Status,
    matmul::{Matmul, supported},
    objects::{self, Kind},
    status,
};
use crate::foreign::{In, Out};

/// The one algorithm.
const ID: c_int = 66;
/// Marks an algorithm as made here, so that zeros are not taken for one.
const MARK: u32 = 0x5174_6e64;

// cublasLtMatmulPreferenceAttributes_t: alignments of A, B, C and D follow each other.
const MIN_ALIGNMENT_A: c_int = 5;
/// What the heuristic believes of a matrix where nothing was said.
const DEFAULT_ALIGNMENT: u32 = 256;
/// What each matrix must be aligned to in any case.
const LEAST_ALIGNMENT: u32 = 16;

// cublasLtMatmulAlgoConfigAttributes_t
const CONFIG_ID: c_int = 0;
const CONFIG_LAST: c_int = 8;

/// `cublasLtMatmulAlgo_t`: 64 bytes that mean something to the library alone.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Algorithm {
    mark: u32,
    id: c_int,
    alignments: [u32; 4],
    /// By `cublasLtMatmulAlgoConfigAttributes_t`.
    config: [u32; 9],
    padding: u32,
}
const _: () = assert!(size_of::<Algorithm>() == 64);

/// `cublasLtMatmulHeuristicResult_t`
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Found {
    algorithm: Algorithm,
    workspace: usize,
    state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

impl Algorithm {
    fn new(alignments: [u32; 4]) -> Algorithm {
        Algorithm { mark: MARK, id: ID, alignments, config: [0; 9], padding: 0 }
    }
    fn found(self, state: Status) -> Found {
        Found { algorithm: self, workspace: 0, state, waves: 1.0, reserved: [0; 4] }
    }
    /// What the heuristic was promised of A, B, C and D, or what each must be where nobody asked it.
    pub fn alignments(given: In<Algorithm>) -> Result<[u32; 4], Status> {
        if given.is_null() {
            return Ok([LEAST_ALIGNMENT; 4]);
        }
        let algorithm = given.get().map_err(|_| INVALID_VALUE)?;
        if algorithm.mark != MARK || algorithm.id != ID {
            Err(INVALID_VALUE)
        } else {
            Ok(algorithm.alignments)
        }
    }
}

fn heuristic(
    library: usize,
    description: usize,
    layouts: [usize; 4],
    preference: usize,
    wanted: c_int,
    results: Out<Found>,
) -> Result<(), Status> {
    objects::open(library)?;
    let preference = objects::object(preference)?;
    if preference.kind != Kind::Preference || wanted < 1 {
        return Err(INVALID_VALUE);
    }
    Matmul::of(description, layouts)?;
    let mut alignments = [DEFAULT_ALIGNMENT; 4];
    for (key, alignment) in (MIN_ALIGNMENT_A..).zip(&mut alignments) {
        if let Some(promised) = preference.attributes.number(key) {
            *alignment = promised as u32;
        }
    }
    results.fill(&[Algorithm::new(alignments).found(SUCCESS)]);
    Ok(())
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtMatmulAlgoGetHeuristic(
    library: usize,
    description: usize,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    preference: usize,
    wanted: c_int,
    results: Out<Found>,
    count: Out<c_int>,
) -> Status {
    let done = heuristic(library, description, [a, b, c, d], preference, wanted, results);
    match count.set(c_int::from(done.is_ok())) {
        Ok(()) => status(done),
        Err(_) => INVALID_VALUE,
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtMatmulAlgoGetIds(
    library: usize,
    compute: c_int,
    scale: c_int,
    a: c_int,
    b: c_int,
    c: c_int,
    d: c_int,
    wanted: c_int,
    ids: Out<c_int>,
    count: Out<c_int>,
) -> Status {
    let done = objects::open(library).and_then(|()| supported(compute, scale, [a, b, c, d]).map(|_| ()));
    let found = done.is_ok() && wanted > 0;
    if found {
        ids.fill(&[ID]);
    }
    match count.set(c_int::from(found)) {
        Ok(()) => status(done),
        Err(_) => INVALID_VALUE,
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtMatmulAlgoInit(
    library: usize,
    compute: c_int,
    scale: c_int,
    a: c_int,
    b: c_int,
    c: c_int,
    d: c_int,
    id: c_int,
    algorithm: Out<Algorithm>,
) -> Status {
    status(objects::open(library).and_then(|()| {
        supported(compute, scale, [a, b, c, d])?;
        if id != ID {
            return Err(INVALID_VALUE);
        }
        algorithm.set(Algorithm::new([LEAST_ALIGNMENT; 4])).map_err(|_| INVALID_VALUE)
    }))
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtMatmulAlgoConfigSetAttribute(
    algorithm: Out<Algorithm>,
    key: c_int,
    value: In<u8>,
    bytes: usize,
) -> Status {
    let value = value.bytes(bytes);
    status(algorithm.change(INVALID_VALUE, |algorithm| {
        let wide = value.iter().rev().fold(0u32, |number, byte| number << 8 | u32::from(*byte));
        match key {
            CONFIG_ID..=CONFIG_LAST if (1..=4).contains(&value.len()) => {
                algorithm.config[key as usize] = wide
            }
            _ => return Err(INVALID_VALUE),
        }
        if key == CONFIG_ID {
            algorithm.id = wide as c_int;
        }
        Ok(())
    }))
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtMatmulAlgoConfigGetAttribute(
    algorithm: In<Algorithm>,
    key: c_int,
    out: Out<u32>,
    room: usize,
    written: Out<usize>,
) -> Status {
    let Ok(algorithm) = algorithm.get() else { return INVALID_VALUE };
    if !(CONFIG_ID..=CONFIG_LAST).contains(&key) || room < size_of::<u32>() {
        return INVALID_VALUE;
    }
    let value = if key == CONFIG_ID { algorithm.id as u32 } else { algorithm.config[key as usize] };
    // The caller may not want to know how much was written.
    let _ = written.set(size_of::<u32>());
    out.set(value).map_or(INVALID_VALUE, |()| SUCCESS)
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtMatmulAlgoCapGetAttribute(
    _algorithm: In<Algorithm>,
    _key: c_int,
    _out: Out<u8>,
    _room: usize,
    _written: Out<usize>,
) -> Status {
    NOT_SUPPORTED
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtMatmulAlgoCheck(
    library: usize,
    description: usize,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    algorithm: In<Algorithm>,
    result: Out<Found>,
) -> Status {
    let done = objects::open(library).and_then(|()| {
        Algorithm::alignments(algorithm)?;
        Matmul::of(description, [a, b, c, d]).map(|_| ())
    });
    let Ok(algorithm) = algorithm.get() else { return INVALID_VALUE };
    if result.set(algorithm.found(status(done))).is_err() {
        return INVALID_VALUE;
    }
    status(done)
}
