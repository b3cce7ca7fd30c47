//! Page-locked memory of the host. It belongs to no device: with unified addressing each device knows it as such.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
};

const PAGE: usize = 4096;

/// Bytes by first address.
static PINNED: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

fn lock() -> MutexGuard<'static, BTreeMap<usize, usize>> {
    PINNED.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

pub fn allocate(bytes: usize) -> Option<usize> {
    let room = bytes.max(1).next_multiple_of(PAGE);
    // SAFETY: a power of two as alignment, and a multiple of it as size.
    let at = unsafe { libc::aligned_alloc(PAGE, room) } as usize;
    (at != 0).then(|| {
        lock().insert(at, bytes.max(1));
        at
    })
}

/// `false`: nothing begins there.
pub fn free(at: usize) -> bool {
    let known = lock().remove(&at).is_some();
    if known {
        // SAFETY: of `aligned_alloc`, and taken from the list just now, so freed once.
        unsafe { libc::free(at as *mut libc::c_void) };
    }
    known
}

/// Whether copies from or to there run in stream order, while the host goes on.
pub fn holds(at: usize) -> bool {
    lock().range(..=at).next_back().is_some_and(|(start, bytes)| at < start + bytes)
}
