//! A whole `pairs.jsonl`: finding it, splitting it into lines, and recognising files of other kinds.

use std::{
    collections::{HashMap, hash_map::Entry},
    path::{Path, PathBuf},
};

use serde::de::IgnoredAny;

use super::{
    picture::file,
    request::Request,
    row::{self, BadRow, Row},
};
use crate::settings::expand_home;

/// The name of the file in a folder of data.
const NAME: &str = "pairs.jsonl";

/// A line as it should be; its pictures are beside the file.
pub const EXAMPLE: &str = r#"{"id": "dog-1", "prompt": "a dog on a beach", "refs": [{"image": "dog.jpg", "mask": "dog_mask.png"}], "win": {"image": "win.jpg", "prior": ["win_dog.png"]}, "lose": {"image": "lose.jpg"}}"#;

/// Names that a message lists.
const LISTED: usize = 3;

/// What a file should hold.
fn format_help() -> String {
    format!("a pairs.jsonl has one JSON object a line (docs/data.md), such as\n{EXAMPLE}")
}

/// The file that `path` means: itself, or the `pairs.jsonl` of a folder.
///
/// # Errors
/// If there is none.
pub fn locate(path: &Path) -> Result<PathBuf, String> {
    let path = expand_home(path);
    if !path.is_dir() {
        return Ok(path);
    }
    let file = path.join(NAME);
    if file.exists() {
        return Ok(file);
    }
    let others = std::fs::read_dir(&path).into_iter().flatten().flatten().map(|e| e.path());
    let mut others: Vec<String> = others
        .filter(|p| p.extension().is_some_and(|e| e == "jsonl" || e == "json"))
        .map(|p| format!("`{}`", p.display()))
        .collect();
    others.sort();
    let meant = match &others[..] {
        [] => String::new(),
        others => format!("; is one of its files meant? {}", others[..others.len().min(LISTED)].join(", ")),
    };
    Err(format!("{}: is a folder without a {NAME}{meant}; {}", path.display(), format_help()))
}

/// All samples of a file, or of the `pairs.jsonl` of a folder: those whose lines can be used, and those that cannot. An
/// empty file has neither.
///
/// # Errors
/// If the file cannot be read, or is of another kind.
pub fn read(path: &Path) -> Result<(Vec<Row>, Vec<BadRow>), String> {
    read_as(path, row::parse, |row| &row.id)
}

/// [`read`] for lines that only ask for pictures.
pub(super) fn read_requests(path: &Path) -> Result<(Vec<Request>, Vec<BadRow>), String> {
    read_as(path, Request::parse, |request| &request.id)
}

/// What a line holds.
type Parse<R> = fn(usize, &str, &Path) -> Result<R, BadRow>;

fn read_as<R>(path: &Path, parse: Parse<R>, id: fn(&R) -> &String) -> Result<(Vec<R>, Vec<BadRow>), String> {
    let path = locate(path)?;
    let fault = |e: String| format!("{}: {e}", path.display());
    // An empty file is a file of no samples; what that means is the caller's to say.
    if std::fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() == 0) {
        return Ok((Vec::new(), Vec::new()));
    }
    let bytes = file::read(&path).map_err(fault)?;
    if let Some(kind) = another_kind(&bytes) {
        return Err(fault(format!("is {kind}; {}", format_help())));
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let found = lines(&bytes, folder, parse, id);
    match another_text(&found, &bytes) {
        Some(kind) => Err(fault(format!("{kind}; {}", format_help()))),
        None => Ok((found.rows, found.bad)),
    }
}

/// What is not text of the kind, by its first bytes.
fn another_kind(bytes: &[u8]) -> Option<&'static str> {
    const KINDS: [(&[u8], &str); 7] = [
        (b"\xff\xfe", "UTF-16 text: save it as UTF-8"),
        (b"\xfe\xff", "UTF-16 text: save it as UTF-8"),
        (b"\x1f\x8b", "compressed with gzip: unpack it"),
        (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it"),
        (b"PK\x03\x04", "a zip file, or a spreadsheet"),
        (b"PAR1", "a Parquet file"),
        (b"version https://git-lfs", "a Git LFS pointer, not the file itself: `git lfs pull` fetches it"),
    ];
    KINDS.into_iter().find(|(start, _)| bytes.starts_with(start)).map(|(_, kind)| kind)
}

/// What the lines of a file gave.
struct Found<R> {
    rows: Vec<R>,
    bad: Vec<BadRow>,
    /// Objects that run over several lines.
    spread: usize,
}

fn lines<R>(bytes: &[u8], folder: &Path, parse: Parse<R>, id: fn(&R) -> &String) -> Found<R> {
    let mut found = Found { rows: Vec::new(), bad: Vec::new(), spread: 0 };
    let mut first_use: HashMap<String, usize> = HashMap::new();
    let (mut at, mut line) = (0, 0);
    while at < bytes.len() {
        let start = at;
        let end = bytes[at..].iter().position(|b| *b == b'\n').map_or(bytes.len(), |n| at + n);
        (at, line) = (end + 1, line + 1);
        let text = match text_of(&bytes[start..end], line) {
            Ok(text) => text,
            Err(bad) => {
                found.bad.push(bad);
                continue;
            }
        };
        if text.is_empty() {
            continue;
        }
        match parse(line, text, folder) {
            Ok(row) => match first_use.entry(id(&row).clone()) {
                Entry::Occupied(first) => {
                    let reason = format!("the id was used in line {} already", first.get());
                    found.bad.push(BadRow { line, id: id(&row).clone(), reason });
                }
                Entry::Vacant(free) => {
                    free.insert(line);
                    found.rows.push(row);
                }
            },
            Err(bad) => match spread_over(&bytes[start..], text) {
                Some(length) => {
                    let more = bytes[start..start + length].iter().filter(|b| **b == b'\n').count();
                    let reason = format!(
                        "the object runs over lines {line} to {}: one object a line (`jq -c .` makes it so)",
                        line + more
                    );
                    found.bad.push(BadRow { reason, ..bad });
                    found.spread += 1;
                    let rest = &bytes[start + length..];
                    at = start + length + rest.iter().position(|b| *b == b'\n').map_or(rest.len(), |n| n + 1);
                    line += more;
                }
                None => found.bad.push(bad),
            },
        }
    }
    found
}

/// A line as text, without what may surround an object.
fn text_of(bytes: &[u8], line: usize) -> Result<&str, BadRow> {
    // Files that were joined may have a byte-order mark at the beginning of any line.
    let text = str::from_utf8(bytes).map(|text| text.trim_start_matches('\u{feff}').trim());
    text.map_err(|e| {
        let at = e.valid_up_to();
        let reason = format!("is not UTF-8 text: byte {} is 0x{:02x}", at + 1, bytes[at]);
        BadRow { line, id: String::new(), reason }
    })
}

/// Bytes of the JSON object that begins in this line and ends in a later one.
fn spread_over(bytes: &[u8], line: &str) -> Option<usize> {
    let open = |e: serde_json::Error| e.is_eof();
    if !line.starts_with('{') || !serde_json::from_str::<IgnoredAny>(line).is_err_and(open) {
        return None;
    }
    let bytes_of_mark = bytes.strip_prefix(b"\xef\xbb\xbf").map_or(0, |_| 3);
    let mut values = serde_json::Deserializer::from_slice(&bytes[bytes_of_mark..]).into_iter::<IgnoredAny>();
    matches!(values.next(), Some(Ok(_))).then(|| bytes_of_mark + values.byte_offset())
}

/// What a text is, if not one object a line, where that can be told.
fn another_text<R>(found: &Found<R>, bytes: &[u8]) -> Option<String> {
    let start = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    let array = || serde_json::from_slice::<Vec<IgnoredAny>>(start).is_ok();
    if start.starts_with(b"[") && (found.rows.is_empty() || array()) {
        return Some("is a JSON array: write one object a line (`jq -c '.[]' FILE` does it)".into());
    }
    if !found.rows.is_empty() {
        return None;
    }
    if found.spread > 0 && found.spread == found.bad.len() {
        let (count, line) = (found.spread, found.bad[0].line);
        return Some(format!(
            "holds {count} JSON objects that run over several lines, the first from line {line} on: write one object a line \
             (`jq -c . FILE` does it)"
        ));
    }
    // A line that is broken may be any; where no line looks like an object, the file is of another kind.
    let object = bytes.split(|b| *b == b'\n').any(|l| l.trim_ascii_start().starts_with(b"{"));
    let line = start.split(|b| *b == b'\n').next().unwrap_or_default();
    let table = line.contains(&b',') || line.contains(&b'\t');
    (!object && table).then(|| "looks like a table (CSV), not like JSON".into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn object(id: &str) -> String {
        format!(
            r#"{{"id": "{id}", "prompt": "", "win": {{"image": "w"}}, "lose": {{"image": "l", "prior": null}}}}"#
        )
    }

    fn read_bytes(bytes: &[u8]) -> Result<(Vec<String>, Vec<BadRow>), String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(NAME), bytes).unwrap();
        let (rows, bad) = read(folder.path())?;
        Ok((rows.into_iter().map(|r| format!("{}:{}", r.line, r.id)).collect(), bad))
    }

    #[test]
    fn a_line_that_is_not_utf8_is_a_bad_line_with_its_number() {
        let bytes = [object("a").as_bytes(), b"\n{\"id\": \"caf\xe9\"}\n", object("b").as_bytes()].concat();
        let (rows, bad) = read_bytes(&bytes).unwrap();
        assert_eq!(rows, ["1:a", "3:b"]);
        assert_eq!(bad[0].to_string(), "line 2: is not UTF-8 text: byte 12 is 0xe9");
    }

    #[test]
    fn marks_blank_lines_and_line_ends_of_windows_are_fine() {
        let text = format!("\u{feff}{}\r\n\r\n  \n\u{feff}{}\r\n", object("a"), object("b"));
        assert_eq!(read_bytes(text.as_bytes()).unwrap(), (vec!["1:a".into(), "4:b".into()], vec![]));
        assert_eq!(read_bytes(b"").unwrap(), (vec![], vec![]));
    }

    #[test]
    fn pretty_printed_objects_are_one_error_and_one_among_good_lines_is_one_bad_line() {
        let pretty = "{\n  \"id\": \"a\",\n  \"prompt\": \"\"\n}\n";
        for text in [pretty.to_owned(), format!("\u{feff}{pretty}"), format!("{pretty}{pretty}")] {
            let error = read_bytes(text.as_bytes()).unwrap_err();
            assert!(error.contains("one object a line") && error.contains(EXAMPLE), "{error}");
        }
        let text = format!("{}\n{pretty}{}\nnonsense\n", object("b"), object("c"));
        let (rows, bad) = read_bytes(text.as_bytes()).unwrap();
        assert_eq!(rows, ["1:b", "6:c"]);
        assert_eq!(bad.iter().map(|b| b.line).collect::<Vec<_>>(), [2, 7]);
        assert!(bad[0].reason.contains("lines 2 to 5: one object a line"), "{}", bad[0]);
    }

    #[test]
    fn files_of_another_kind_are_named_with_a_line_to_copy() {
        let last_of_an_array = format!("[\n{},\n{}\n]", object("a"), object("b")).into_bytes();
        let cases: [(&[u8], &str); 8] = [
            (b"[\n {\"id\": \"a\"},\n {\"id\": \"b\"}\n]\n", "is a JSON array"),
            (b"[{\"id\": \"a\"}]", "is a JSON array"),
            // Its last line alone would be a sample.
            (&last_of_an_array, "is a JSON array"),
            (b"id,prompt,win,lose\n1,a dog,w.png,l.png\n", "looks like a table (CSV)"),
            (b"\xff\xfe{\0\"\0", "UTF-16"),
            (b"PAR1....", "a Parquet file"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ];
        for (bytes, expected) in cases {
            let error = read_bytes(bytes).unwrap_err();
            assert!(error.contains(expected) && error.contains(EXAMPLE), "{error}");
        }
    }

    #[test]
    fn a_folder_without_the_file_says_what_the_file_holds_and_which_may_be_meant() {
        let folder = tempfile::tempdir().unwrap();
        let error = read(folder.path()).unwrap_err();
        assert!(error.contains("is a folder without a pairs.jsonl") && error.contains(EXAMPLE), "{error}");
        std::fs::write(folder.path().join("train.jsonl"), object("a")).unwrap();
        assert!(read(folder.path()).unwrap_err().contains("train.jsonl"));
        // The line to copy is one.
        std::fs::write(folder.path().join(NAME), EXAMPLE).unwrap();
        assert_eq!(read(folder.path()).unwrap().0.len(), 1);
    }

    #[test]
    fn of_an_id_used_three_times_the_first_line_is_named_both_times() {
        let text = [object("a"), object("a"), object("a")].join("\n");
        let (rows, bad) = read_bytes(text.as_bytes()).unwrap();
        assert_eq!((rows.len(), bad.len()), (1, 2));
        assert!(bad.iter().all(|b| b.reason.contains("line 1 already")), "{bad:?}");
    }

    #[test]
    fn what_a_line_quotes_is_shortened() {
        let long = "x".repeat(1 << 20);
        let text = format!("{}\n{{\"{long}\": 1}}\n{}\n{}", object("a"), object(&long), object(&long));
        let (_, bad) = read_bytes(text.as_bytes()).unwrap();
        assert_eq!(bad.iter().map(|b| b.line).collect::<Vec<_>>(), [2, 4]);
        assert!(bad.iter().all(|b| b.to_string().len() < 400), "{}", bad[0]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_rows_and_bad_lines_in_order_or_an_error(
            parts in prop::collection::vec(prop_oneof![
                Just(object("a").into_bytes()), Just(b"\n".to_vec()), Just(b"{".to_vec()), Just(b"}".to_vec()),
                Just(b"[1,\n".to_vec()), Just(b"\"\xff".to_vec()), Just("\u{feff}".as_bytes().to_vec()),
                prop::collection::vec(any::<u8>(), 0..6),
            ], 0..24),
        ) {
            let bytes = parts.concat();
            let found = lines(&bytes, Path::new(""), row::parse, |row| &row.id);
            let count = bytes.split(|b| *b == b'\n').count();
            for lines in [found.rows.iter().map(|r| r.line).collect(), found.bad.iter().map(|b| b.line).collect()] {
                let lines: Vec<usize> = lines;
                prop_assert!(lines.windows(2).all(|w| w[0] < w[1]) && lines.iter().all(|l| *l <= count), "{lines:?}");
            }
        }
    }
}
