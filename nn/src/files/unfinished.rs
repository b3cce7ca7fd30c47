//! Unfinished files: written next to their destination under a recognisable name, and locked by their writer.
//!
//! A killed process leaves its unfinished file behind, but the operating system releases the lock. Taking the lock thus
//! proves that the writer is gone, without trusting process ids, and across containers that share a folder. On file
//! systems without locks, unfinished files stay.

use std::{
    fs::{File, TryLockError},
    io,
    path::Path,
};

/// Prefix of the names of unfinished files and folders.
pub const UNFINISHED: &str = ".writing-";

/// A file being written: dropping it removes it, keeping it replaces the file at its destination.
#[derive(Debug)]
pub struct Unfinished(tempfile::NamedTempFile);

impl Unfinished {
    /// An empty file in the folder of `path`.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn beside(path: &Path) -> io::Result<Self> {
        loop {
            let file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(folder_of(path))?;
            match file.as_file().try_lock() {
                // Before it was locked it looked abandoned, and may have been removed.
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

    /// Where it lies.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Give it the usual permissions and rename it to `path`. It is not flushed to the disk.
    ///
    /// # Errors
    /// If that fails; the file at `path` is then unchanged.
    pub fn keep(self, path: &Path) -> io::Result<()> {
        readable_as_other_files(self.0.as_file())?;
        self.0.persist(path).map(drop).map_err(|e| e.error)
    }
}

/// The folder that holds the file at `path`.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Is the name in `path` that of an unfinished file or folder?
pub fn is_unfinished(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(UNFINISHED))
}

/// Remove an unfinished file if its writer is gone; returns whether it was removed.
///
/// # Errors
/// If it cannot be opened or removed. A file that has disappeared meanwhile is not an error.
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

/// Remove the unfinished files in `folder` whose writers are gone; returns their number. Files that cannot be removed stay.
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

/// Does `path` name this open file or folder? Here only its existence can be checked.
#[cfg(not(unix))]
pub fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

/// Temporary files are created for their owner alone; files that stay should be as readable as any other.
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
