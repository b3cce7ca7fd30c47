//! What a device allows: the largest grids, threads and shared memory.

use std::ffi::c_int;

use crate::settings::settings;

/// Largest grid in y and z.
pub const MOST_BLOCKS_ASIDE: u32 = 65_535;
pub const THREADS_PER_MULTIPROCESSOR: u32 = 2048;
const KIB: c_int = 1024;
/// What the driver keeps of each block's shared memory for itself.
pub const RESERVED_SHARED: c_int = KIB;

/// The largest dynamic shared memory that a kernel may ask for.
pub fn most_shared() -> c_int {
    KIB * match settings().capability {
        80 | 87 => 163,
        86 | 89 | 120 | 121 => 99,
        75 => 64,
        _ => 227,
    }
}
