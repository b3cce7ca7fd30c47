//! What held-out pairs share with the training pairs: no winner, or they are refused, and references, which is said.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::{lines::read, row::Row, words};
use crate::{
    error::OpError,
    words::{count, form},
};

/// Samples that a message names.
const NAMED: usize = 4;

/// A file is the same file under every name.
fn identity(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// Pictures, to be found by what they hold.
#[derive(Default)]
struct Pictures {
    files: HashSet<PathBuf>,
    by_length: HashMap<u64, Vec<PathBuf>>,
}

/// Bytes of a file that are compared before the rest is read.
const BEGINNING: usize = 16 << 10;

/// Does a file hold these bytes?
fn holds(path: &Path, bytes: &[u8]) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let (beginning, rest) = bytes.split_at(bytes.len().min(BEGINNING));
    let mut found = vec![0; beginning.len()];
    file.read_exact(&mut found)?;
    if found != beginning {
        return Ok(false);
    }
    found.clear();
    file.read_to_end(&mut found)?;
    Ok(found == rest)
}

impl Pictures {
    fn of<'a>(pictures: impl Iterator<Item = &'a Path>) -> Self {
        let mut all = Self::default();
        for picture in pictures {
            if let Ok(found) = fs::metadata(picture) {
                all.by_length.entry(found.len()).or_default().push(picture.to_owned());
            }
            all.files.insert(identity(picture));
        }
        all
    }

    /// Is it one of them, or a copy of one?
    fn has(&self, picture: &Path) -> bool {
        if self.files.contains(&identity(picture)) {
            return true;
        }
        // Few are of one length, unless they are not compressed; of those nearly all differ at their beginnings.
        let length = fs::metadata(picture).map_or(0, |found| found.len());
        let like = self.by_length.get(&length).filter(|_| length > 0);
        like.is_some_and(|like| {
            fs::read(picture).is_ok_and(|own| like.iter().any(|other| holds(other, &own).unwrap_or(false)))
        })
    }
}

/// No winner of `rows`, which are those of `path`, is a winner of `trained`.
///
/// # Errors
/// If one is, or `trained` cannot be read.
pub(super) fn check(rows: &[Row], path: &Path, trained: &Path) -> Result<(), OpError> {
    let (others, _) = read(trained).map_err(|e| OpError::new(format!("apart_from: {e}")))?;
    let winners = Pictures::of(others.iter().map(|row| row.winner.as_path()));
    let shared: Vec<&str> =
        rows.iter().filter(|row| winners.has(&row.winner)).map(|row| row.id.as_str()).collect();
    if shared.is_empty() {
        return Ok(());
    }
    let named: Vec<String> = shared.iter().take(NAMED).map(|id| format!("`{id}`")).collect();
    let more = if shared.len() > NAMED { ", ..." } else { "" };
    Err(OpError::new(format!(
        "{} of {} of {} {} trained on, too: {}{more} {} in {}; keep them in one of the two \
         files, or set `apart_from` to None to measure on them all the same",
        shared.len(),
        count(rows.len(), "sample"),
        path.display(),
        form(shared.len(), "is", "are"),
        named.join(", "),
        form(shared.len(), "has the winner of a sample", "have the winners of samples"),
        trained.display()
    )))
}

/// A remark where the two files lie in different folders: most likely, one was changed and the other forgotten.
pub(super) fn note(path: &Path, trained: &Path) -> Option<String> {
    let folder = |path: &Path| {
        // A folder stands for the pairs in it.
        let path = identity(path);
        if path.is_dir() { Some(path) } else { path.parent().map(Path::to_owned) }
    };
    (folder(path) != folder(trained)).then(|| {
        format!(
            "warning: {} is in another folder than the pairs trained on ({}): if that is not what you want, set `path` to pairs of your own \
             that are not trained on",
            path.display(),
            trained.display()
        )
    })
}

/// A remark where samples have a reference that is trained on, too: they are not of subjects that the training has never seen.
pub(super) fn seen_subjects(rows: &[Row], trained: &Path) -> Option<String> {
    // A file that cannot be read is refused elsewhere.
    let (others, _) = read(trained).ok()?;
    let pictures = |rows: &[Row]| -> HashSet<PathBuf> {
        rows.iter().flat_map(|row| row.references.iter().map(|r| r.image.clone())).collect()
    };
    let trained_on = Pictures::of(pictures(&others).iter().map(PathBuf::as_path));
    let seen: HashSet<PathBuf> =
        pictures(rows).into_iter().filter(|picture| trained_on.has(picture)).collect();
    let lines: Vec<usize> = rows
        .iter()
        .filter(|row| row.references.iter().any(|r| seen.contains(&r.image)))
        .map(|row| row.line)
        .collect();
    (!lines.is_empty()).then(|| {
        format!(
            "warning: {} of {} {} a reference picture that is trained on, too ({}): what they measure says little of subjects that were never \
             seen; docs/data.md splits pairs by their subjects",
            lines.len(),
            count(rows.len(), "sample"),
            form(lines.len(), "has", "have"),
            words::lines(lines.iter().copied())
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of samples with these winners, which need not exist.
    fn list(folder: &Path, name: &str, winners: &[&str]) -> PathBuf {
        let line = |(i, winner): (usize, &&str)| {
            format!(
                r#"{{"id": "{name}-{i}", "prompt": "", "win": {{"image": "{winner}"}}, "lose": {{"image": "l.png"}}}}"#
            ) + "\n"
        };
        let path = folder.join(name);
        fs::create_dir_all(folder).unwrap();
        fs::write(&path, winners.iter().enumerate().map(line).collect::<String>()).unwrap();
        path
    }

    #[test]
    fn samples_that_are_trained_on_are_refused_by_name_and_the_rest_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let trained = list(dir.path(), "pairs", &["a.png", "b.png", "c.png"]);
        for name in ["a.png", "b.png", "c.png"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let apart = list(dir.path(), "apart", &["d.png", "e.png"]);
        check(&read(&apart).unwrap().0, &apart, &trained).unwrap();
        // The same file by another name.
        let shared = list(dir.path(), "shared", &["d.png", "./b.png"]);
        let error = check(&read(&shared).unwrap().0, &shared, &trained).unwrap_err().to_string();
        assert!(error.contains("1 of 2 samples") && error.contains("`shared-1`"), "{error}");
        // A copy of it; a picture as long as another is none.
        fs::write(dir.path().join("b.png"), "picture").unwrap();
        fs::write(dir.path().join("d.png"), "another").unwrap();
        fs::write(dir.path().join("e.png"), "picture").unwrap();
        let error = check(&read(&apart).unwrap().0, &apart, &trained).unwrap_err().to_string();
        assert!(error.contains("1 of 2 samples") && error.contains("`apart-1`"), "{error}");
        let error = check(&[], &apart, &dir.path().join("nothing")).unwrap_err().to_string();
        assert!(error.contains("apart_from") && error.contains("nothing"), "{error}");
    }

    #[test]
    fn held_out_samples_of_subjects_that_are_trained_on_are_counted_by_their_references() {
        let dir = tempfile::tempdir().unwrap();
        let list = |name: &str, references: &[&str]| {
            let line = |(i, r): (usize, &&str)| {
                format!(r#"{{"prompt": "", "refs": ["{r}"], "win": "{name}{i}.png", "lose": "l.png"}}"#)
                    + "\n"
            };
            let path = dir.path().join(name);
            fs::write(&path, references.iter().enumerate().map(line).collect::<String>()).unwrap();
            path
        };
        for (name, bytes) in [("a.png", "one"), ("b.png", "two"), ("copy.png", "one"), ("c.png", "new")] {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        let trained = list("pairs", &["a.png", "b.png"]);
        let said = |references: &[&str]| seen_subjects(&read(&list("held", references)).unwrap().0, &trained);
        assert_eq!(said(&["c.png"]), None);
        let two = said(&["c.png", "b.png", "copy.png"]).unwrap();
        assert!(two.contains("2 of 3 samples have") && two.contains("lines 2, 3"), "{two}");
        let one = said(&["./a.png", "c.png"]).unwrap();
        assert!(one.contains("1 of 2 samples has") && one.contains("line 1"), "{one}");
    }

    #[test]
    fn pairs_of_another_folder_are_remarked_on() {
        let dir = tempfile::tempdir().unwrap();
        let trained = list(&dir.path().join("mine"), "pairs", &["a.png"]);
        let beside = list(&dir.path().join("mine"), "held", &["b.png"]);
        let elsewhere = list(&dir.path().join("demo"), "held", &["c.png"]);
        assert_eq!(note(&beside, &trained), None);
        assert_eq!(note(&beside, &dir.path().join("mine")), None, "the folder stands for its pairs");
        assert!(note(&elsewhere, &trained).unwrap().contains("set `path`"));
    }
}
