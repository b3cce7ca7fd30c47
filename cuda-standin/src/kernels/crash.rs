//! Says which kernel it was where one ends the process: without checks nothing else would.

use std::{
    cell::Cell,
    ffi::{CStr, c_char, c_int},
    mem::zeroed,
    ptr::{null, null_mut},
    sync::OnceLock,
};

const SIGNALS: [c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];

thread_local!(static RUNNING: Cell<*const c_char> = const { Cell::new(null()) });

/// What handled the signals before.
static BEFORE: OnceLock<[libc::sigaction; SIGNALS.len()]> = OnceLock::new();

/// A kernel runs on this thread, until this is dropped.
pub struct Running(());

impl Running {
    /// `name`: a string that lasts as long as the process.
    pub fn new(name: *const c_char) -> Running {
        BEFORE.get_or_init(|| SIGNALS.map(install));
        RUNNING.set(name);
        Running(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.set(null());
    }
}

/// The answer is what handled the signal before.
fn install(signal: c_int) -> libc::sigaction {
    let handler: extern "C" fn(c_int) = tell;
    // SAFETY: all zeros are a value of this structure, and `tell` does only what a handler may.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_ONSTACK;
        let mut before: libc::sigaction = zeroed();
        libc::sigaction(signal, &action, &mut before);
        before
    }
}

/// The handler. When it returns, the same instruction fails again, and who handled the signal before gets it.
extern "C" fn tell(signal: c_int) {
    let name = RUNNING.get();
    if !name.is_null() {
        say(c"standin: the process ends in the kernel ");
        // SAFETY: the name of a kernel that is loaded for ever.
        say(unsafe { CStr::from_ptr(name) });
        say(c", which touches memory that is not there (STANDIN_CHECK=1 says where)\n");
    }
    let place = SIGNALS.iter().position(|known| *known == signal);
    if let Some(before) = place.and_then(|place| BEFORE.get().map(|before| &before[place])) {
        // SAFETY: puts back what was there.
        unsafe { libc::sigaction(signal, before, null_mut()) };
    }
}

fn say(text: &CStr) {
    // SAFETY: as many bytes as the text has. A handler may write; if that fails, nobody reads it anyway.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.count_bytes()) };
}
