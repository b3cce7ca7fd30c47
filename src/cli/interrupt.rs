//! Requests to stop: Ctrl-C, SIGTERM from a process manager, SIGHUP from a closing terminal.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use super::{Failure, say::say};

/// Terminals and process managers may send the same request twice.
const SAME_REQUEST: Duration = Duration::from_secs(1);

static ASKED: AtomicBool = AtomicBool::new(false);

/// Has the run been asked to stop?
pub(super) fn interrupted() -> bool {
    ASKED.load(Ordering::SeqCst)
}

/// From now on the first request is only noted; one more than a second later ends the process at once.
pub(super) fn watch() -> Result<(), Failure> {
    let mut first: Option<Instant> = None;
    let asked = move |signal: Signal| match first {
        None => {
            first = Some(Instant::now());
            ASKED.store(true, Ordering::SeqCst);
            say!(
                "\n{}: finishing this step, then writing a checkpoint and the adapter; signal again to stop at once",
                system::name(signal)
            );
        }
        Some(since) if since.elapsed() < SAME_REQUEST => {}
        Some(_) => system::end(signal),
    };
    system::listen(asked).map_err(|e| Failure::new(format!("cannot watch for signals: {e}")))
}

/// From now on a file that outgrows the process's limit (`ulimit -f`) is an error of that write, which says so; without this the signal ends
/// the process without a word.
pub(super) fn outlast_file_limits() {
    system::outlast_file_limits();
}

use system::Signal;

#[cfg(unix)]
mod system {
    use std::{io, sync::Arc};

    use signal_hook::{
        consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ},
        iterator::Signals,
        low_level::{emulate_default_handler, signal_name},
    };

    pub(super) type Signal = i32;

    pub(super) fn name(signal: Signal) -> &'static str {
        signal_name(signal).unwrap_or("interrupted")
    }

    pub(super) fn outlast_file_limits() {
        // The write fails, and who wrote says so: nobody asks whether the signal came.
        let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
    }

    /// Call `asked` for every signal, on a thread of its own.
    pub(super) fn listen(mut asked: impl FnMut(Signal) + Send + 'static) -> io::Result<()> {
        let mut signals = vec![SIGINT, SIGTERM];
        // `nohup` means that the run is to outlive the terminal.
        if !is_ignored(SIGHUP) {
            signals.push(SIGHUP);
        }
        let mut signals = Signals::new(signals)?;
        let thread = std::thread::Builder::new().name("signals".into());
        thread.spawn(move || signals.forever().for_each(&mut asked)).map(drop)
    }

    /// End as the signal would have ended the process, so that a shell sees it.
    pub(super) fn end(signal: Signal) {
        let _ = emulate_default_handler(signal);
        std::process::exit(128 + signal);
    }

    /// Was the process started with this signal ignored? Only Linux tells.
    fn is_ignored(signal: Signal) -> bool {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
        ignored >> (signal - 1) & 1 == 1
    }
}

#[cfg(not(unix))]
mod system {
    pub(super) type Signal = ();

    pub(super) fn name((): Signal) -> &'static str {
        "interrupted"
    }

    /// There is no such limit.
    pub(super) fn outlast_file_limits() {}

    /// Call `asked` for every Ctrl-C, on a thread of its own.
    pub(super) fn listen(mut asked: impl FnMut(Signal) + Send + 'static) -> Result<(), ctrlc::Error> {
        ctrlc::set_handler(move || asked(()))
    }

    pub(super) fn end((): Signal) {
        std::process::exit(130);
    }
}
