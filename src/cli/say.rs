//! Sentences for people, on standard error.
//!
//! A pipe whose reader is gone, a terminal that was closed and a disk that is full are no reason to end a run: what cannot
//! be said is lost, and nothing else is. `eprintln!` panics in all of these cases, so that it is not used here.

use std::{fmt, io::Write};

/// Say a line.
pub(super) fn line(text: fmt::Arguments<'_>) {
    // One write: lines of two threads do not mix.
    let text = format!("{text}\n");
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// Say a line, as `eprintln!` would, and go on if nobody can hear it.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::cli::say::line(format_args!($($text)*))
    };
}
pub(super) use say;
