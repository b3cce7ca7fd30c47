//! Files mapped into memory.
#![allow(unsafe_code, reason = "mapping a file is unsafe: another process can change it behind the map")]

use std::{
    fs::File,
    ops::{Deref, Range},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use crate::{
    error::{Error, Result},
    files::open_regular,
};

/// A read-only map of a whole file.
#[derive(Debug)]
pub struct FileMap {
    map: memmap2::Mmap,
    source: Arc<MappedFile>,
}

/// The mapped file, kept open so that its length can be checked even after it was renamed.
#[derive(Debug)]
struct MappedFile {
    path: PathBuf,
    file: File,
    length: u64,
}

/// All mapped files, for [`check_lengths`].
static MAPPED: Mutex<Vec<Weak<MappedFile>>> = Mutex::new(Vec::new());

impl FileMap {
    /// Map the file.
    ///
    /// # Errors
    /// If it cannot be opened or mapped, or is not a regular file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = open_regular(path).map_err(|e| Error::file(path, format!("cannot be opened: {e}")))?;
        // SAFETY: the map is private to this value, read-only and of plain bytes, for which every bit pattern is
        // valid. A file that another process rewrites in place while it is mapped can change the bytes or end
        // the process by a signal; weights are replaced by renaming (`files::write_atomically`), which leaves the
        // mapped file as it was, and `check_lengths` names a truncated file.
        let map = unsafe { memmap2::Mmap::map(&file) }
            .map_err(|e| Error::file(path, format!("cannot be mapped: {e}")))?;
        let source = Arc::new(MappedFile { path: path.into(), file, length: map.len() as u64 });
        let mut mapped = MAPPED.lock().unwrap_or_else(PoisonError::into_inner);
        mapped.retain(|source| source.strong_count() > 0);
        mapped.push(Arc::downgrade(&source));
        drop(mapped);
        Ok(Self { map, source })
    }

    /// Where the file was when it was mapped.
    pub fn path(&self) -> &Path {
        &self.source.path
    }

    /// Ask the system to read these bytes now, since they are needed soon. Where it takes no such advice, they are read when
    /// they are touched.
    pub fn will_need(&self, bytes: Range<usize>) {
        #[cfg(unix)]
        let _ = self.map.advise_range(memmap2::Advice::WillNeed, bytes.start, bytes.len());
        #[cfg(not(unix))]
        let _ = bytes;
    }
}

impl Deref for FileMap {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map
    }
}

/// Are all mapped files at least as long as when they were mapped? Touching a page beyond the end of a truncated file ends
/// the process by a signal (SIGBUS) without a message; checking first can still name the file. Files that were replaced by
/// renaming are not affected.
///
/// # Errors
/// Naming a truncated file.
pub fn check_lengths() -> Result<()> {
    let mapped = MAPPED.lock().unwrap_or_else(PoisonError::into_inner);
    let mapped: Vec<Arc<MappedFile>> = mapped.iter().filter_map(Weak::upgrade).collect();
    for source in mapped {
        let found = source.file.metadata().map_err(|e| Error::file(&source.path, e))?.len();
        if found < source.length {
            return Err(Error::file(
                &source.path,
                format!(
                    "was truncated from {} to {found} bytes while in use: restore the file; to replace a file that is in use, \
                     write the new one next to it and rename it",
                    source.length
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_truncated_while_mapped_is_named_and_one_that_is_replaced_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (cut, replaced) = (dir.path().join("cut"), dir.path().join("replaced"));
        std::fs::write(&cut, [1; 100]).unwrap();
        std::fs::write(&replaced, [1; 100]).unwrap();
        let maps = [FileMap::open(&cut).unwrap(), FileMap::open(&replaced).unwrap()];
        std::fs::write(dir.path().join("short"), [1; 5]).unwrap();
        std::fs::rename(dir.path().join("short"), &replaced).unwrap();
        let accused = || check_lengths().err().map(|e| e.to_string()).unwrap_or_default();
        assert!(!accused().contains("replaced"), "{}", accused());
        File::options().write(true).open(&cut).unwrap().set_len(10).unwrap();
        assert!(accused().contains("cut: was truncated from 100 to 10 bytes"), "{}", accused());
        drop(maps);
        assert!(!accused().contains("truncated from 100 to 10"), "{}", accused());
    }
}
