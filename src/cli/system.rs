//! What the machine says: memory, standard output.

use std::{fs, io::Write};

use super::Failure;

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

/// Bytes for people.
pub(super) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Seconds for people.
pub(super) fn seconds(s: f64) -> String {
    let whole = s.round() as u64;
    match whole {
        _ if s < 0.1 => format!("{:.1} ms", s * 1e3),
        _ if s < 10.0 => format!("{s:.2} s"),
        0..60 => format!("{s:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_readable() {
        assert_eq!([bytes(12), bytes(1536), bytes(3 << 30)], ["12 B", "1.5 KiB", "3.0 GiB"]);
        assert_eq!(
            [seconds(0.0123), seconds(1.234), seconds(42.0), seconds(61.2), seconds(7322.0)],
            ["12.3 ms", "1.23 s", "42.0 s", "1 min 01 s", "2 h 02 min"]
        );
    }
}
