//! Finds comments and strings in RON text, to trim the former and rewrite the latter.

use std::ops::Range;

/// What stands at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// White space or a comment.
    Blank,
    /// A string literal with its quotes.
    Text,
    /// Anything else, one character.
    Other,
}

/// The next piece of `text`, which is not empty: its kind and its length in bytes.
fn next(text: &str) -> (Kind, usize) {
    let first = text.chars().next().unwrap_or(' ');
    let until = |end: &str, from: usize| text[from..].find(end).map_or(text.len(), |i| from + i + end.len());
    match first {
        _ if text.starts_with("//") => (Kind::Blank, until("\n", 2)),
        _ if text.starts_with("/*") => (Kind::Blank, block_comment(text)),
        '"' => (Kind::Text, quoted(text, '"')),
        '\'' => (Kind::Other, quoted(text, '\'')),
        'r' => {
            let hashes = text[1..].bytes().take_while(|b| *b == b'#').count();
            if text[1 + hashes..].starts_with('"') {
                let end = format!("\"{}", "#".repeat(hashes));
                (Kind::Text, until(&end, hashes + 2))
            } else {
                (Kind::Other, word(text))
            }
        }
        c if c.is_whitespace() => (Kind::Blank, c.len_utf8()),
        c if c.is_alphanumeric() || c == '_' => (Kind::Other, word(text)),
        c => (Kind::Other, c.len_utf8()),
    }
}

/// So that the `r` at the end of a word does not begin a raw string.
fn word(text: &str) -> usize {
    text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len())
}

fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (i, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return i + 1,
            _ => {}
        }
    }
    text.len()
}

/// RON's block comments nest.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest.starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

fn pieces(text: &str) -> impl Iterator<Item = (Kind, Range<usize>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= text.len() {
            return None;
        }
        let (kind, len) = next(&text[at..]);
        let range = at..at + len.max(1);
        at = range.end;
        Some((kind, range))
    })
}

/// `text` without white space and comments around it.
pub(super) fn trim(text: &str) -> &str {
    let mut bounds: Option<Range<usize>> = None;
    for (kind, range) in pieces(text) {
        if kind != Kind::Blank {
            bounds = Some(bounds.map_or(range.clone(), |b| b.start..range.end));
        }
    }
    bounds.map_or("", |b| &text[b])
}

/// The places of all string literals in `text`.
pub(super) fn strings(text: &str) -> Vec<Range<usize>> {
    pieces(text).filter(|(kind, _)| *kind == Kind::Text).map(|(_, range)| range).collect()
}

/// The parts of `text` between separators that stand in no bracket, string or comment.
pub(super) fn split(text: &str, separator: char) -> Vec<Range<usize>> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0usize);
    for (kind, range) in pieces(text) {
        match (kind, &text[range.clone()]) {
            (Kind::Other, "(" | "[" | "{") => depth += 1,
            (Kind::Other, ")" | "]" | "}") => depth = depth.saturating_sub(1),
            (Kind::Other, found) if depth == 0 && found.chars().eq([separator]) => {
                parts.push(start..range.start);
                start = range.end;
            }
            _ => {}
        }
    }
    parts.push(start..text.len());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_around_a_value_are_no_part_of_it() {
        assert_eq!(trim(" // a \"b\n /* x /* y */ */ Some( 5 /* in */ ) // c"), "Some( 5 /* in */ )");
        assert_eq!(trim(r##" "a // b" /* " */ "##), r#""a // b""#);
        assert_eq!(trim(" \n "), "");
    }

    #[test]
    fn a_list_is_split_where_no_bracket_and_no_string_is_open() {
        let parts = |text: &'static str| split(text, ',').into_iter().map(|r| &text[r]).collect::<Vec<_>>();
        assert_eq!(parts("0.05,-1e-4, x"), ["0.05", "-1e-4", " x"]);
        assert_eq!(
            parts(r#"["a,b","c"],(x: 1, y: 2),"d,e""#),
            [r#"["a,b","c"]"#, "(x: 1, y: 2)", r#""d,e""#]
        );
        assert_eq!(parts(""), [""]);
        assert_eq!(parts("a)],b"), ["a)]", "b"]);
    }

    #[test]
    fn strings_are_found_in_every_form() {
        let text = r###"["a\"b", r#"c"d"#, '"', ear"x", /* "no" */ r"e"]"###;
        let found: Vec<_> = strings(text).into_iter().map(|r| &text[r]).collect();
        assert_eq!(found, [r#""a\"b""#, r###"r#"c"d"#"###, "\"x\"", r#"r"e""#]);
    }
}
