//! Unfinished files: written beside their place, under a name that tells them apart, and locked by their writer.
//!
//! A process that is killed leaves its unfinished file behind, but not the lock, which the operating system releases. So
//! whoever can take the lock knows that the writer is gone; no process id has to be trusted, and it holds across
//! containers that share a folder. Where a file system has no locks, unfinished files stay.

use std::{
    fs::{File, TryLockError},
    io,
    path::Path,
};

/// What the names of unfinished files and folders begin with.
pub const UNFINISHED: &str = ".writing-";

/// A file on its way to `path`: dropped, it is gone; kept, it takes the place of what was there.
#[derive(Debug)]
pub struct Unfinished(tempfile::NamedTempFile);

impl Unfinished {
    /// An empty file in the folder of `path`.
    ///
    /// # Errors
    /// If none can be made there.
    pub fn beside(path: &Path) -> io::Result<Self> {
        loop {
            let file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(folder_of(path))?;
            match file.as_file().try_lock() {
                // Until it was locked it looked abandoned, and may have been removed.
                Ok(()) if !is_at(file.as_file(), file.path()) => {}
                Err(TryLockError::WouldBlock) => {}
                Ok(()) | Err(TryLockError::Error(_)) => return Ok(Self(file)),
            }
        }
    }

    /// The file, open for writing.
    pub fn file(&mut self) -> &mut File {
        self.0.as_file_mut()
    }

    /// Make it as readable as any other file and rename it to `path`. Nothing is flushed to the disk.
    ///
    /// # Errors
    /// If that fails; what was at `path` is then as it was.
    pub fn keep(self, path: &Path) -> io::Result<()> {
        readable_as_other_files(self.0.as_file())?;
        self.0.persist(path).map(drop).map_err(|e| e.error)
    }
}

/// The folder that a path names a file of.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Is the name in `path` that of an unfinished file or folder?
pub fn is_unfinished(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(UNFINISHED))
}

/// Remove an unfinished file if its writer is gone; was it removed?
///
/// # Errors
/// If it cannot be looked at or removed. One that has gone by itself is no error.
pub fn remove_if_abandoned(path: &Path) -> io::Result<bool> {
    let found = || -> io::Result<bool> {
        if !is_unfinished(path) || !std::fs::symlink_metadata(path)?.is_file() {
            return Ok(false);
        }
        let file = super::open_regular(path)?;
        match file.try_lock() {
            Ok(()) => std::fs::remove_file(path).map(|()| true),
            Err(_) => Ok(false),
        }
    };
    found().or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(false) } else { Err(e) })
}

/// Remove the unfinished files in `folder` whose writers are gone, and say how many. It is a courtesy: what cannot be
/// removed stays.
pub fn remove_abandoned(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|e| remove_if_abandoned(&e.path()).unwrap_or(false)).count()
}

/// Does `path` name this open file or folder?
#[cfg(unix)]
pub fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |m: std::fs::Metadata| (m.dev(), m.ino());
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(named)) => id(open) == id(named),
        _ => false,
    }
}

/// Does `path` name this open file or folder? Here it can only be told that something is there.
#[cfg(not(unix))]
pub fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

/// A temporary file is made for its owner alone; what stays is to be as readable as any other file.
#[cfg(unix)]
fn readable_as_other_files(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn readable_as_other_files(_: &File) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_whose_writer_is_gone_is_removed_and_one_that_is_being_written_stays() {
        let dir = tempfile::tempdir().unwrap();
        let abandoned = dir.path().join(".writing-killed");
        fs::write(&abandoned, b"half").unwrap();
        fs::write(dir.path().join("kept"), b"whole").unwrap();
        fs::create_dir(dir.path().join(".writing-folder")).unwrap();
        let mut living = Unfinished::beside(&dir.path().join("x")).unwrap();
        assert_eq!(remove_abandoned(dir.path()), 1);
        assert!(!abandoned.exists());
        io::Write::write_all(living.file(), b"all").unwrap();
        living.keep(&dir.path().join("x")).unwrap();
        assert_eq!(fs::read(dir.path().join("x")).unwrap(), b"all");
        assert_eq!(remove_abandoned(dir.path()), 0);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_file_that_is_dropped_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        drop(Unfinished::beside(&dir.path().join("x")).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(!remove_if_abandoned(&dir.path().join(".writing-none")).unwrap());
    }
}
