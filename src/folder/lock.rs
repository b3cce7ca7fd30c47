//! One run a folder: a locked file that names the process.
//!
//! The operating system drops the lock when the process ends, however it ends; so a lock is never stale, and no
//! process id has to be believed. The file stays: to remove it while it is locked would let a third run in.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    path::Path,
};

use super::FolderError;

pub(super) const NAME: &str = "lock";

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    /// The lock of `folder`, and a sentence if the run before did not end by itself.
    pub fn take(folder: &Path) -> Result<(Self, Option<String>), FolderError> {
        let path = folder.join(NAME);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| FolderError::io("make the lock", &path, e))?;
        let mut before = String::new();
        let holder = |before: &str| match before.trim() {
            "" => "another process".to_owned(),
            pid => format!("process {pid}"),
        };
        let read = file.read_to_string(&mut before);
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(FolderError::new(format!(
                    "{} is at work in `{}`; wait for it, or choose another folder by --out",
                    holder(&before),
                    folder.display()
                )));
            }
            Err(TryLockError::Error(e)) => return Err(FolderError::io("lock", &path, e)),
        }
        read.map_err(|e| FolderError::io("read", &path, e))?;
        let stale = (!before.trim().is_empty())
            .then(|| format!("the run before ({}) did not end by itself", holder(&before)));
        let lock = Self(file);
        lock.write(&format!("{}\n", std::process::id())).map_err(|e| FolderError::io("write", &path, e))?;
        Ok((lock, stale))
    }

    fn write(&self, text: &str) -> std::io::Result<()> {
        let mut file = &self.0;
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // An empty file says that the run ended by itself.
        let _ = self.write("");
    }
}
