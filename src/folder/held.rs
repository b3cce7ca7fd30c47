//! A folder held open, to notice if it is moved, removed or replaced.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use prefgraph_nn::files::{is_at, read_regular};

use super::FolderError;

/// An open folder; empty on systems that cannot open folders.
#[derive(Debug)]
pub(super) struct Held(Option<File>);

impl Held {
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        match File::open(path) {
            Ok(folder) => Ok(Self(Some(folder))),
            Err(_) if cfg!(not(unix)) => Ok(Self(None)),
            Err(e) => Err(FolderError::io("open the folder", path, e)),
        }
    }

    /// Does `path` still name this folder?
    pub fn check(&self, path: &Path) -> Result<(), FolderError> {
        let Some(folder) = &self.0 else { return Ok(()) };
        if is_at(folder, path) {
            return Ok(());
        }
        let what = match fs::metadata(path) {
            Ok(_) => format!("the run's folder is gone, and another folder is at `{}`", path.display()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                format!("the run's folder `{}` is gone", path.display())
            }
            Err(e) => return Err(FolderError::io("check the run's folder", path, e)),
        };
        Err(FolderError::new(match self.whereabouts() {
            Some(place) => format!("{what}; it was moved to `{}`", place.display()),
            None => format!("{what}: it was removed, or moved to an unknown place"),
        }))
    }

    /// Where the folder is now, if it still exists and the system can tell.
    pub fn whereabouts(&self) -> Option<PathBuf> {
        let folder = self.0.as_ref()?;
        let place = named(folder)?;
        is_at(folder, &place).then_some(place)
    }
}

/// The current path of an open folder.
#[cfg(target_os = "linux")]
fn named(folder: &File) -> Option<PathBuf> {
    use std::os::fd::AsRawFd;
    fs::read_link(format!("/proc/self/fd/{}", folder.as_raw_fd())).ok()
}

#[cfg(not(target_os = "linux"))]
fn named(_: &File) -> Option<PathBuf> {
    None
}

/// The bytes of a file; `None` if it does not exist. A dangling link is an error.
pub(super) fn read_if_there(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
        Ok(_) => read_regular(path).map(Some),
    }
}
