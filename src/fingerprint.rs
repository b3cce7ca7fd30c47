//! The identity of files: cheap for files of many gigabytes, complete for small ones.
//!
//! A file up to a limit is hashed in full, so that only its contents count. Of a larger file, the hash covers its length,
//! the header if it is a safetensors file, and evenly spaced blocks that include the first and the last bytes; for the
//! cache also its modification time. An edit in place that keeps the length and misses these blocks goes unnoticed.

use std::{
    fs,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use prefgraph_nn::files::open_regular;

/// Weights up to this size are hashed as a whole.
pub const WHOLE: u64 = 64 << 20;
/// Blocks that are hashed of larger weights.
pub const BLOCKS: u64 = 64;
/// Bytes of each.
pub const BLOCK: u64 = 64 << 10;

/// How much of a file is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sampling {
    /// Up to this length all of it.
    whole: u64,
    /// Of a longer file, so many blocks.
    blocks: u64,
    /// Bytes of each.
    block: u64,
    /// Does the modification time of a longer file count?
    time: bool,
}

impl Sampling {
    /// Weights whose outputs are cached: if in doubt, compute again.
    pub const CACHED_WEIGHTS: Self = Self { whole: WHOLE, blocks: BLOCKS, block: BLOCK, time: true };
    /// Weights that may have been copied to another place or machine.
    pub const WEIGHTS: Self = Self { time: false, ..Self::CACHED_WEIGHTS };
    /// Pictures, of which there may be many. They are compressed: another picture of the same length differs almost
    /// everywhere.
    pub const PICTURE: Self = Self { whole: 128 << 10, blocks: 4, block: 32 << 10, time: false };
}

/// What a file system knows of a file without reading it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FileStamp {
    pub length: u64,
    /// Nanoseconds since 1970.
    pub modified: u64,
}

impl FileStamp {
    pub fn of(path: &Path) -> io::Result<Self> {
        Self::from(&fs::metadata(path)?)
    }

    fn from(found: &fs::Metadata) -> io::Result<Self> {
        let modified = found.modified()?.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        Ok(Self { length: found.len(), modified })
    }
}

/// The identity of what is at `path`: a file, an index with its shards, or all the files of a folder.
///
/// # Errors
/// If something of it cannot be read; the message names it.
pub(crate) fn fingerprint(path: &Path, sampling: Sampling) -> Result<String, String> {
    let mut parts = Vec::new();
    for file in files(path)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        parts.push((name, of_file(&file, sampling).map_err(|e| format!("{}: {e}", file.display()))?));
    }
    match &parts[..] {
        [] => Err(format!("{}: the folder is empty", path.display())),
        // The name of a single file is not a part of what is in it.
        [(_, alone)] => Ok(alone.clone()),
        many => {
            let mut hash = blake3::Hasher::new();
            for (name, part) in many {
                hash.update(format!("{name} {part}\n").as_bytes());
            }
            Ok(format!("{} files {}", many.len(), hash.finalize().to_hex()))
        }
    }
}

fn files(path: &Path) -> Result<Vec<PathBuf>, String> {
    let fault = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    if path.is_dir() {
        let mut all = Vec::new();
        for entry in fs::read_dir(path).map_err(|e| fault(&e))? {
            let file = entry.map_err(|e| fault(&e))?.path();
            let hidden = file.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
            if file.is_file() && !hidden {
                all.push(file);
            }
        }
        all.sort();
        return Ok(all);
    }
    let mut all = vec![path.to_owned()];
    if path.to_string_lossy().ends_with(".index.json") {
        let text = fs::read_to_string(path).map_err(|e| fault(&e))?;
        let index: serde_json::Value = serde_json::from_str(&text).map_err(|e| fault(&e))?;
        let shards = index["weight_map"].as_object().into_iter().flat_map(|map| map.values());
        let mut shards: Vec<PathBuf> =
            shards.filter_map(|name| Some(path.with_file_name(name.as_str()?))).collect();
        shards.sort();
        shards.dedup();
        all.extend(shards);
    }
    Ok(all)
}

/// The identity of one file.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn of_file(path: &Path, sampling: Sampling) -> io::Result<String> {
    let mut file = open_regular(path)?;
    let stamp = FileStamp::from(&file.metadata()?)?;
    let mut hash = blake3::Hasher::new();
    if stamp.length <= sampling.whole {
        io::copy(&mut file, &mut hash)?;
        return Ok(format!("whole {}", hash.finalize().to_hex()));
    }
    hash.update(&stamp.length.to_le_bytes());
    if sampling.time {
        hash.update(&stamp.modified.to_le_bytes());
    }
    let mut first = [0; 8];
    file.read_exact(&mut first)?;
    let header = u64::from_le_bytes(first);
    // In another kind of file these bytes are no length of a header.
    if header <= stamp.length.saturating_sub(8).min(100 << 20) {
        io::copy(&mut (&mut file).take(header), &mut hash)?;
    }
    let Sampling { blocks, block: size, .. } = sampling;
    let last = stamp.length.saturating_sub(size);
    for block in 0..blocks {
        file.seek(SeekFrom::Start(last / (blocks - 1) * block + last % (blocks - 1) * block / (blocks - 1)))?;
        io::copy(&mut (&mut file).take(size), &mut hash)?;
    }
    Ok(format!("sampled {}", hash.finalize().to_hex()))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    const HOW: Sampling = Sampling::CACHED_WEIGHTS;

    #[test]
    fn a_small_file_is_its_contents_under_any_name_and_at_any_time() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, b"weights").unwrap();
        fs::write(&b, b"weights").unwrap();
        assert_eq!(fingerprint(&a, HOW), fingerprint(&b, HOW));
        fs::write(&b, b"weighty").unwrap();
        assert_ne!(fingerprint(&a, HOW), fingerprint(&b, HOW));
        assert!(fingerprint(&dir.path().join("none"), HOW).unwrap_err().contains("none"));
    }

    #[test]
    fn a_large_file_is_known_by_its_time_its_length_and_blocks_up_to_its_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large");
        let mut bytes = vec![7u8; 5 << 20];
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        let sampling = Sampling { whole: 1 << 20, ..HOW };
        let print = |bytes: &[u8], time| {
            fs::write(&path, bytes).unwrap();
            File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
            of_file(&path, sampling).unwrap()
        };
        let first = print(&bytes, time);
        assert!(first.starts_with("sampled"));
        assert_eq!(print(&bytes, time), first);
        assert_ne!(print(&bytes, time + std::time::Duration::from_secs(1)), first);
        assert_ne!(print(&bytes[1..], time), first);
        for place in [0, bytes.len() - 1] {
            bytes[place] = 8;
            assert_ne!(print(&bytes, time), first, "byte {place}");
            bytes[place] = 7;
        }
        let untimed = || of_file(&path, Sampling { time: false, ..sampling }).unwrap();
        print(&bytes, time);
        let copied = untimed();
        print(&bytes, time + std::time::Duration::from_secs(9));
        assert_eq!(untimed(), copied, "its time does not count where it may have been copied");
    }

    #[test]
    fn a_folder_and_an_index_stand_for_all_their_files() {
        let dir = tempfile::tempdir().unwrap();
        let index = dir.path().join("model.safetensors.index.json");
        fs::write(&index, r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#).unwrap();
        for name in ["1.safetensors", "2.safetensors"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        let before = (fingerprint(&index, HOW).unwrap(), fingerprint(dir.path(), HOW).unwrap());
        fs::write(dir.path().join("2.safetensors"), "other").unwrap();
        let after = (fingerprint(&index, HOW).unwrap(), fingerprint(dir.path(), HOW).unwrap());
        assert!(before.0 != after.0 && before.1 != after.1);
    }
}
