//! What other processes hold of a device's memory, where several share it through a file (`STANDIN_SHARED`).
//!
//! ```text
//! a slot for each process:   its number | bytes of device 0 | bytes of device 1 | ...
//! ```
//!
//! A process that is gone holds nothing, as on a device: its slot is given to the next one.

use std::{
    fs::OpenOptions,
    os::fd::AsRawFd,
    path::Path,
    process,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use crate::settings::settings;

const PROCESSES: usize = 64;
const DEVICES: usize = 8;
const WORDS: usize = 1 + DEVICES;

/// The slots of all processes.
struct Slots {
    words: &'static [AtomicU64],
    own: usize,
}

/// This process's, where devices are shared.
fn slots() -> Option<&'static Slots> {
    static SLOTS: OnceLock<Option<Slots>> = OnceLock::new();
    SLOTS.get_or_init(|| settings().shared.as_deref().map(Slots::open)).as_ref()
}

fn is_alive(pid: u64) -> bool {
    // SAFETY: no signal is sent: the call only says whether there is such a process.
    pid != 0 && unsafe { libc::kill(pid as libc::pid_t, 0) } == 0
}

impl Slots {
    fn open(path: &Path) -> Slots {
        let bytes = PROCESSES * WORDS * size_of::<AtomicU64>();
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
        let words = unsafe { std::slice::from_raw_parts(at as *const AtomicU64, PROCESSES * WORDS) };
        let pid = u64::from(process::id());
        let free = |slot: &usize| {
            let place = &words[slot * WORDS];
            let before = place.load(SeqCst);
            !is_alive(before) && place.compare_exchange(before, pid, SeqCst, SeqCst).is_ok()
        };
        let own =
            (0..PROCESSES).find(free).expect("standin: more processes than STANDIN_SHARED has room for");
        words[own * WORDS..][1..WORDS].iter().for_each(|bytes| bytes.store(0, SeqCst));
        Slots { words, own }
    }

    fn of(&self, slot: usize, device: usize) -> &AtomicU64 {
        &self.words[slot * WORDS + 1 + device]
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
    let others =
        (0..PROCESSES).filter(|slot| *slot != slots.own && is_alive(slots.words[slot * WORDS].load(SeqCst)));
    others.map(|slot| slots.of(slot, device).load(SeqCst) as usize).sum()
}
