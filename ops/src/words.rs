//! Counts, for people.

use std::fmt::Display;

/// A text from a file as it can be shown on a terminal: what would move the cursor or change colours is written out.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() && c != '\n' {
            true => shown.extend(c.escape_debug()),
            false => shown.push(c),
        }
    }
    shown
}

/// `1 sample`, `2 samples`, `3 batches`, `4 copies`.
pub fn count<N: Display + PartialEq + From<u8>>(n: N, what: &str) -> String {
    let plural = match what.strip_suffix('y') {
        _ if n == N::from(1) => what.to_owned(),
        Some(stem) => format!("{stem}ies"),
        None if what.ends_with("ch") || what.ends_with('s') => format!("{what}es"),
        None => format!("{what}s"),
    };
    format!("{n} {plural}")
}

/// The form of a word that goes with so many: `form(n, "is", "are")`.
pub fn form<N: PartialEq + From<u8>>(n: N, one: &'static str, many: &'static str) -> &'static str {
    if n == N::from(1) { one } else { many }
}

#[cfg(test)]
mod tests {
    use super::{count, form, printable};

    #[test]
    fn what_would_move_the_cursor_is_written_out_and_all_else_is_as_it_was() {
        assert_eq!(printable("\u{1b}[2J\rx"), "\\u{1b}[2J\\rx");
        assert_eq!(printable("straße 犬\nb"), "straße 犬\nb");
    }

    #[test]
    fn one_thing_is_counted_in_the_singular_and_none_or_many_in_the_plural() {
        assert_eq!(count(1_usize, "pair"), "1 pair");
        assert_eq!(count(0_u64, "step"), "0 steps");
        assert_eq!(count(2_usize, "batch"), "2 batches");
        assert_eq!(count(1_usize, "pass"), "1 pass");
        assert_eq!(count(3_u32, "pass"), "3 passes");
        assert_eq!(count(4_usize, "copy"), "4 copies");
        assert_eq!([0, 1, 2_u32].map(|n| form(n, "is", "are")), ["are", "is", "are"]);
    }
}
