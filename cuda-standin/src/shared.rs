//! What other processes hold of a device's memory, where several share it through a file (`STANDIN_SHARED`).
//!
//! ```text
//! a slot for each process:   bytes of device 0 | bytes of device 1 | ...
//! ```
//!
//! A process locks the byte of its slot's number for as long as it lives. One that is gone holds nothing, as on a device: the system has
//! given its lock back, and its slot is the next one's.

use std::{
    fs::{File, OpenOptions},
    os::fd::AsRawFd,
    path::Path,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use crate::settings::settings;

const PROCESSES: usize = 64;
const DEVICES: usize = 8;

/// The slots of all processes.
struct Slots {
    words: &'static [AtomicU64],
    own: usize,
    /// Closing it would give the lock back.
    file: File,
}

/// This process's, where devices are shared.
fn slots() -> Option<&'static Slots> {
    static SLOTS: OnceLock<Option<Slots>> = OnceLock::new();
    SLOTS.get_or_init(|| settings().shared.as_deref().map(Slots::open)).as_ref()
}

/// A lock on a slot for writing.
fn lock_of(slot: usize) -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: slot as libc::off_t,
        l_len: 1,
        l_pid: 0,
    }
}

impl Slots {
    fn open(path: &Path) -> Slots {
        let bytes = PROCESSES * DEVICES * size_of::<AtomicU64>();
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = opened.and_then(|file| file.set_len(bytes as u64).map(|()| file));
        let file = file.unwrap_or_else(|e| panic!("standin: STANDIN_SHARED {}: {e}", path.display()));
        // SAFETY: a new mapping of a file that is as long; it stays for as long as the process.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED, "standin: STANDIN_SHARED cannot be mapped");
        // SAFETY: the mapping is aligned to a page and holds so many words, which all processes use as atomics.
        let words = unsafe { std::slice::from_raw_parts(at as *const AtomicU64, PROCESSES * DEVICES) };
        // SAFETY: the file is open, and the lock lives while the call reads it.
        let free =
            |slot: &usize| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &lock_of(*slot)) } == 0;
        let own =
            (0..PROCESSES).find(free).expect("standin: more processes than STANDIN_SHARED has room for");
        words[own * DEVICES..][..DEVICES].iter().for_each(|bytes| bytes.store(0, SeqCst));
        Slots { words, own, file }
    }

    /// Does another process have the slot?
    fn is_taken(&self, slot: usize) -> bool {
        let mut lock = lock_of(slot);
        // SAFETY: the file is open, and the call may write the lock.
        let asked = unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_GETLK, &raw mut lock) } == 0;
        asked && lock.l_type != libc::F_UNLCK as libc::c_short
    }

    fn of(&self, slot: usize, device: usize) -> &AtomicU64 {
        &self.words[slot * DEVICES + device]
    }
}

/// Tells the others what this process holds of a device.
pub fn tell(device: usize, bytes: usize) {
    if let Some(slots) = slots() {
        assert!(device < DEVICES, "standin: STANDIN_SHARED has room for {DEVICES} devices");
        slots.of(slots.own, device).store(bytes as u64, SeqCst);
    }
}

/// Bytes that other processes hold of a device.
pub fn of_others(device: usize) -> usize {
    let Some(slots) = slots() else { return 0 };
    let held = |slot: usize| slots.of(slot, device).load(SeqCst) as usize;
    let others = (0..PROCESSES).filter(|slot| *slot != slots.own && held(*slot) > 0 && slots.is_taken(*slot));
    others.map(held).sum()
}
