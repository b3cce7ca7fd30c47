//! The file of bad samples. It replaces only an earlier one, so that a typo cannot cost a data set.

use std::{collections::HashSet, fs, io::ErrorKind, path::Path};

use prefgraph_nn::files::write_atomically;
use prefgraph_ops::operators::pairs::{Report, read};
use serde_json::Value;

use super::report::bad_row;
use crate::cli::output::identity;

/// Refuse to write where something else is; `data` is the file that is checked.
///
/// # Errors
/// With what is there, and what to do.
pub(super) fn check_target(target: &Path, data: &Path) -> Result<(), String> {
    let fault = |e: &str| Err(format!("--bad {}: {e}", target.display()));
    let found = match fs::metadata(target) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            // Said before everything is decoded, not after.
            let folder = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            return if folder.is_dir() { Ok(()) } else { fault("its folder does not exist") };
        }
        Err(e) => return fault(&e.to_string()),
        Ok(found) => found,
    };
    if found.is_dir() {
        return fault("is a folder: name a file in it");
    }
    if !found.is_file() {
        return fault(
            "is a pipe or a device, and a file is renamed into its place; --json prints the bad samples",
        );
    }
    let target_id = identity(target);
    if target_id == identity(data) {
        return fault("is the data file itself");
    }
    // Lines that are no samples may name pictures, too, but nobody can tell which: the look at the text covers those.
    let (rows, _) = read(data)?;
    let named: HashSet<&Path> =
        rows.iter().flat_map(|r| r.files().chain(r.loser_priors.iter().map(AsRef::as_ref))).collect();
    if named.into_iter().any(|path| identity(path) == target_id) {
        return fault("is a picture that the data file names");
    }
    match fs::read(target).is_ok_and(|bytes| is_bad_file(&bytes)) {
        true => Ok(()),
        false => fault("exists, and is not a file of bad samples: name a new file, or remove it first"),
    }
}

/// Does every line say what a line of such a file says, and nothing else?
fn is_bad_file(bytes: &[u8]) -> bool {
    let is_bad_row = |line: &[u8]| {
        let Ok(Value::Object(fields)) = serde_json::from_slice(line) else { return false };
        fields.len() == 3 && ["line", "id", "reason"].iter().all(|name| fields.contains_key(*name))
    };
    bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty()).all(is_bad_row)
}

/// Write the bad samples of all reports, each once.
///
/// # Errors
/// If the file cannot be written.
pub(super) fn write(target: &Path, reports: &[&Report]) -> Result<(), String> {
    let mut seen = HashSet::new();
    let mut text = String::new();
    for row in reports.iter().flat_map(|r| &r.bad) {
        let line = format!("{}\n", bad_row(row));
        if seen.insert(line.clone()) {
            text += &line;
        }
    }
    write_atomically(target, text.as_bytes()).map_err(|e| format!("--bad: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_bad_samples_is_told_from_any_other() {
        assert!(is_bad_file(b""));
        assert!(is_bad_file(b"{\"line\": 3, \"id\": \"a\", \"reason\": \"x\"}\n"));
        for other in
            [&b"{\"id\": \"a\"}\n"[..], b"text", b"\x89PNG\r\n", b"{\"line\":1,\"id\":2,\"reason\":3}\nx\n"]
        {
            assert!(!is_bad_file(other));
        }
    }
}
