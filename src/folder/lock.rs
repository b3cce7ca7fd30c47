//! One run per folder: a locked file that names the process.
//!
//! The operating system drops the lock when the process ends, however it ends; so a lock is never stale, and no
//! process id has to be believed.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

use prefgraph_nn::files::is_at;

use super::FolderError;

pub(super) const NAME: &str = "lock";

/// A lock, held until dropped. Unless [`keep`](Self::keep) was called, dropping it restores the file.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
    path: PathBuf,
    /// What was in the file; `None` if there was none.
    before: Option<Vec<u8>>,
    kept: bool,
}

impl Lock {
    /// The lock of `folder`, and a sentence if the previous run did not end by itself.
    pub fn take(folder: &Path) -> Result<(Self, Option<String>), FolderError> {
        let path = folder.join(NAME);
        loop {
            let (mut file, made) = open(&path).map_err(|e| FolderError::io("make the lock", &path, e))?;
            let mut before = Vec::new();
            let read = file.read_to_end(&mut before);
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(FolderError::new(format!(
                        "{} is at work in `{}`; wait for it, or choose another folder with --out",
                        holder(&before).unwrap_or_else(|| "another process".into()),
                        folder.display()
                    )));
                }
                Err(TryLockError::Error(e)) => return Err(FolderError::io("lock", &path, e)),
            }
            read.map_err(|e| FolderError::io("read", &path, e))?;
            // The process that held it before may have removed it.
            if !is_at(&file, &path) {
                continue;
            }
            let stale =
                holder(&before).map(|holder| format!("the previous run ({holder}) did not end by itself"));
            let lock = Self { file, path, before: (!made).then_some(before), kept: false };
            lock.write(format!("{}\n", std::process::id()).as_bytes())
                .map_err(|e| FolderError::io("write", &lock.path, e))?;
            return Ok((lock, stale));
        }
    }

    /// A run starts: when it ends, the file will say so.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    fn write(&self, text: &[u8]) -> io::Result<()> {
        let mut file = &self.file;
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(text)?;
        file.sync_all()
    }
}

/// The file, and whether it was created. Anything but a regular file is refused: opening a pipe could block for ever.
fn open(path: &Path) -> io::Result<(File, bool)> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    match std::fs::metadata(path) {
        Ok(found) if !found.is_file() => {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
        }
        Ok(_) => Ok((options.open(path)?, false)),
        // If another process creates it now, this one fails to lock it.
        Err(_) => Ok((options.create(true).truncate(false).open(path)?, true)),
    }
}

/// The process that the file names, if it names one.
fn holder(text: &[u8]) -> Option<String> {
    match String::from_utf8_lossy(text).trim() {
        "" => None,
        id if id.bytes().all(|b| b.is_ascii_digit()) => Some(format!("process {id}")),
        _ => Some("another process".into()),
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        match &self.before {
            // An empty file means that the run was not killed.
            _ if self.kept => drop(self.write(b"")),
            Some(before) => drop(self.write(before)),
            // The path may lead to the lock of another run by now.
            None if is_at(&self.file, &self.path) => drop(std::fs::remove_file(&self.path)),
            None => {}
        }
    }
}
