//! A file seen as bytes of host memory, without reading it first.
#![allow(unsafe_code, reason = "mapping a file is unsafe: another process can change it behind the map")]

use std::{
    fs::File,
    ops::{Deref, Range},
    path::Path,
};

use crate::error::{Error, Result};

/// A read-only map of a whole file.
#[derive(Debug)]
pub struct FileMap(memmap2::Mmap);

impl FileMap {
    /// Map the file.
    ///
    /// # Errors
    /// If it cannot be opened or mapped.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::file(path, format!("cannot be opened: {e}")))?;
        let kind = file.metadata().map_err(|e| Error::file(path, e))?;
        if !kind.is_file() {
            return Err(Error::file(path, "is not a regular file"));
        }
        // SAFETY: the map is private to this value, read-only and of plain bytes, for which every bit pattern is
        // valid. A file that another process rewrites in place while it is mapped can change the bytes or end
        // the process by a signal; weights are replaced by renaming (`files::write_atomically`), which leaves the
        // mapped file as it was.
        let map = unsafe { memmap2::Mmap::map(&file) }
            .map_err(|e| Error::file(path, format!("cannot be mapped: {e}")))?;
        Ok(Self(map))
    }

    /// Ask the system to read these bytes now, since they are needed soon. Where it takes no such advice, they are read when
    /// they are touched.
    pub fn will_need(&self, bytes: Range<usize>) {
        #[cfg(unix)]
        let _ = self.0.advise_range(memmap2::Advice::WillNeed, bytes.start, bytes.len());
        #[cfg(not(unix))]
        let _ = bytes;
    }
}

impl Deref for FileMap {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}
