//! Messages on standard error.
//!
//! A closed pipe, a closed terminal or a full disk must not end a run: the message is lost, and nothing else. `eprintln!`
//! panics in all of these cases, so it is not used here.

use std::{fmt, io::Write};

/// Print a line.
pub(super) fn line(text: fmt::Arguments<'_>) {
    // One write, so that lines of two threads do not mix.
    let text = format!("{text}\n");
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// Like `eprintln!`, but ignores errors.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::cli::say::line(format_args!($($text)*))
    };
}
pub(super) use say;
