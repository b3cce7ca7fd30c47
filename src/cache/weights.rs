//! The identity of weights: cheap for files of many gigabytes, complete for small ones.
//!
//! A file of up to [`WHOLE`] bytes is hashed as a whole, so that only its contents count. Of a larger one are hashed: its
//! length, its modification time, the header if it is a safetensors file, and [`BLOCKS`] blocks of [`BLOCK`] bytes at
//! equal distances, the first and the last bytes included. A large file that is edited in place, with its length kept
//! and its time set back, in none of these places, is taken for the old one; one that is only touched or copied is taken
//! for another.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use super::stamp::FileStamp;

/// Files up to this size are hashed as a whole.
pub const WHOLE: u64 = 64 << 20;
/// Blocks that are hashed of a larger file.
pub const BLOCKS: u64 = 64;
/// Bytes of each.
pub const BLOCK: u64 = 64 << 10;

/// The identity of what is at `path`: a file, an index with its shards, or all the files of a folder.
///
/// # Errors
/// If something of it cannot be read; the message names it.
pub(super) fn fingerprint(path: &Path) -> Result<String, String> {
    let fault = |path: &Path, e: io::Error| format!("{}: {e}", path.display());
    let mut parts = Vec::new();
    for file in files(path)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        parts.push((name, one(&file, WHOLE).map_err(|e| fault(&file, e))?));
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

fn one(path: &Path, whole: u64) -> io::Result<String> {
    let stamp = FileStamp::of(path)?;
    let mut file = File::open(path)?;
    let mut hash = blake3::Hasher::new();
    if stamp.length <= whole {
        io::copy(&mut file, &mut hash)?;
        return Ok(format!("whole {}", hash.finalize().to_hex()));
    }
    hash.update(&stamp.length.to_le_bytes());
    hash.update(&stamp.modified.to_le_bytes());
    let mut first = [0; 8];
    file.read_exact(&mut first)?;
    let header = u64::from_le_bytes(first);
    // In another kind of file these bytes are no length of a header.
    if header <= stamp.length.saturating_sub(8).min(100 << 20) {
        io::copy(&mut (&mut file).take(header), &mut hash)?;
    }
    for block in 0..BLOCKS {
        let last = stamp.length.saturating_sub(BLOCK);
        file.seek(SeekFrom::Start(last / (BLOCKS - 1) * block + last % (BLOCKS - 1) * block / (BLOCKS - 1)))?;
        io::copy(&mut (&mut file).take(BLOCK), &mut hash)?;
    }
    Ok(format!("sampled {}", hash.finalize().to_hex()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_file_is_its_contents_under_any_name_and_at_any_time() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, b"weights").unwrap();
        fs::write(&b, b"weights").unwrap();
        assert_eq!(fingerprint(&a), fingerprint(&b));
        fs::write(&b, b"weighty").unwrap();
        assert_ne!(fingerprint(&a), fingerprint(&b));
        assert!(fingerprint(&dir.path().join("none")).unwrap_err().contains("none"));
    }

    #[test]
    fn a_large_file_is_known_by_its_time_its_length_and_blocks_up_to_its_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large");
        let mut bytes = vec![7u8; 5 << 20];
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        let print = |bytes: &[u8], time| {
            fs::write(&path, bytes).unwrap();
            File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
            one(&path, 1 << 20).unwrap()
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
    }

    #[test]
    fn a_folder_and_an_index_stand_for_all_their_files() {
        let dir = tempfile::tempdir().unwrap();
        let index = dir.path().join("model.safetensors.index.json");
        fs::write(&index, r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#).unwrap();
        for name in ["1.safetensors", "2.safetensors"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        let before = (fingerprint(&index).unwrap(), fingerprint(dir.path()).unwrap());
        fs::write(dir.path().join("2.safetensors"), "other").unwrap();
        let after = (fingerprint(&index).unwrap(), fingerprint(dir.path()).unwrap());
        assert!(before.0 != after.0 && before.1 != after.1);
    }
}
