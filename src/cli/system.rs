//! The system: memory use, standard output.

use std::{fs, io::Write, num::NonZero, thread};

use super::Failure;
pub(super) use crate::plan::bytes;

/// Text for standard output. A reader that has gone away, such as `head`, is not an error.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("cannot write to standard output: {e}")))
        }
        _ => Ok(()),
    }
}

/// A line `KEY: N kB` of a file under `/proc`, in bytes.
fn kilobytes(file: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// The most memory that this process has held so far, where the system tells.
pub(super) fn peak_memory() -> Option<u64> {
    kilobytes("/proc/self/status", "VmHWM")
}

/// How much of the memory that this process holds now are pages of mapped files, which the system takes back when it needs
/// them.
pub(super) fn mapped_memory() -> Option<u64> {
    kilobytes("/proc/self/status", "RssFile")
}

/// The memory that this process may have: the machine's, or what its container is given.
pub(super) fn machine_memory() -> Option<u64> {
    let machine = kilobytes("/proc/meminfo", "MemTotal")?;
    let limit = fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|t| t.trim().parse().ok());
    Some(limit.map_or(machine, |limit: u64| machine.min(limit)))
}

/// What this process will hold besides the values of a run: what it holds now, its code and what it has read; what the
/// allocator keeps of freed memory; and the stacks of worker threads with the buffers of their kernels.
///
/// The two constants are from runs of the shipped recipes with 1 to 32 threads: the peak that the system reports is within a
/// tenth of the prediction then.
pub(super) fn process_memory(threads: usize) -> usize {
    /// What the allocator keeps: larger blocks go back to the system at once.
    const ALLOCATOR: usize = 40 << 20;
    /// Of a worker thread.
    const THREAD: usize = 1 << 20;
    let threads = match threads {
        0 => thread::available_parallelism().map_or(1, NonZero::get),
        threads => threads,
    };
    let held = kilobytes("/proc/self/status", "VmRSS").and_then(|bytes| usize::try_from(bytes).ok());
    held.unwrap_or(0).saturating_add(ALLOCATOR).saturating_add(threads.saturating_mul(THREAD))
}

/// Seconds for people.
pub(super) fn seconds(s: f64) -> String {
    let whole = s.round() as u64;
    match whole {
        _ if s < 0.1 => format!("{:.1} ms", s * 1e3),
        _ if s < 10.0 => format!("{s:.2} s"),
        0..60 => format!("{s:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        3600..172_800 => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
        _ => format!("{} days {} h", whole / 86_400, whole / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_readable() {
        assert_eq!(
            [0.0123, 1.234, 42.0, 61.2, 7322.0, 1_474_000.0].map(seconds),
            ["12.3 ms", "1.23 s", "42.0 s", "1 min 01 s", "2 h 02 min", "17 days 1 h"]
        );
    }
}
