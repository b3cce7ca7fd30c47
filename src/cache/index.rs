//! Which entry belongs to which sample: an append-only file, so that two runs can write it at once and a run that is
//! killed loses a line at most.
//!
//! A line is `LENGTH MODIFIED LOOKUP KEY`: the length and the modification time of the entry's file when it was known to
//! be whole, the hash of what is known of the sample before it is read with all that makes the entry of it, and the
//! entry's key. Where there is nothing to be kept for a sample, the key is dashes, and exclamation marks where it could not be used. Of several lines for one lookup the
//! last counts; what is not such a line is passed over.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use super::{CacheError, Hash};
use crate::fingerprint::FileStamp;

/// What the index knows of one sample and one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// There is nothing to keep: a sample without references.
    Nothing,
    /// It could not be used. That may have a reason outside the data, so every filling tries again.
    LeftOut,
    /// Its entry, and the file's stamp when it was whole.
    Entry(Hash, FileStamp),
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    path: PathBuf,
    known: HashMap<Hash, Known>,
}

const NO_KEY: &str = "----------------------------------------------------------------";
const LEFT_OUT: &str = "!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!";

fn parse(line: &str) -> Option<(Hash, Known)> {
    let mut parts = line.split(' ');
    let (length, modified) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let (lookup, key) = (parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let known = match key {
        NO_KEY => Known::Nothing,
        LEFT_OUT => Known::LeftOut,
        key => Known::Entry(Hash::from_hex(key).ok()?, FileStamp { length, modified }),
    };
    Some((Hash::from_hex(lookup).ok()?, known))
}

fn line(lookup: Hash, known: &Known) -> String {
    let (stamp, key) = match known {
        Known::Nothing => (FileStamp::default(), NO_KEY.to_owned()),
        Known::LeftOut => (FileStamp::default(), LEFT_OUT.to_owned()),
        Known::Entry(key, stamp) => (*stamp, key.to_hex().to_string()),
    };
    format!("{} {} {} {key}\n", stamp.length, stamp.modified, lookup.to_hex())
}

impl Index {
    /// Read what there is; a file that is not there or not readable knows nothing.
    pub fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap_or_default();
        let known = String::from_utf8_lossy(&bytes).lines().filter_map(parse).collect();
        Self { path: path.to_owned(), known }
    }

    pub fn get(&self, lookup: Hash) -> Option<Known> {
        self.known.get(&lookup).copied()
    }

    /// Learn these, and append what was not known.
    pub fn add(&mut self, learned: &[(Hash, Known)]) -> Result<(), CacheError> {
        let mut text = String::new();
        for (lookup, known) in learned {
            if self.known.insert(*lookup, *known) != Some(*known) {
                text += &line(*lookup, known);
            }
        }
        if text.is_empty() {
            return Ok(());
        }
        self.append(&text).map_err(|e| CacheError::io("write", &self.path, e))
    }

    fn append(&self, text: &str) -> std::io::Result<()> {
        let mut file = File::options().create(true).read(true).append(true).open(&self.path)?;
        let mut last = [b'\n'];
        if file.seek(SeekFrom::End(0))? > 0 {
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
        }
        // After a torn line the next one must not be a part of it.
        let text = if last == [b'\n'] { text.to_owned() } else { format!("\n{text}") };
        file.write_all(text.as_bytes())
    }

    /// Forget all that has no entry any more, and write the rest anew.
    pub fn keep(&mut self, good: impl Fn(Hash) -> bool) -> Result<(), CacheError> {
        self.known.retain(|_, known| match known {
            Known::Nothing | Known::LeftOut => false,
            Known::Entry(key, _) => good(*key),
        });
        let mut lines: Vec<String> = self.known.iter().map(|(lookup, known)| line(*lookup, known)).collect();
        lines.sort_unstable();
        prefgraph_nn::files::write_atomically(&self.path, lines.concat().as_bytes())
            .map_err(|e| CacheError::io("write", &self.path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_read_again_and_torn_lines_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index");
        let hash = |text: &str| blake3::hash(text.as_bytes());
        let entry = |key: &str| Known::Entry(hash(key), FileStamp { length: 5, modified: 7 });
        let mut index = Index::read(&path);
        index.add(&[(hash("a"), entry("1")), (hash("b"), Known::Nothing)]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        index.add(&[(hash("a"), entry("1"))]).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text, "what is known is not written again");
        for end in 0..text.len() {
            fs::write(&path, &text[..end]).unwrap();
            let mut index = Index::read(&path);
            assert!(index.known.iter().all(|(lookup, known)| text.contains(line(*lookup, known).trim_end())));
            index.add(&[(hash("c"), entry("2"))]).unwrap();
            assert_eq!(Index::read(&path).get(hash("c")), Some(entry("2")), "cut at {end}");
        }
        let mut index = Index::read(&path);
        index.add(&[(hash("c"), entry("3"))]).unwrap();
        assert_eq!(Index::read(&path).get(hash("c")), Some(entry("3")), "the last line counts");
        index.keep(|key| key == hash("3")).unwrap();
        assert_eq!(Index::read(&path).known.len(), 1);
    }
}
