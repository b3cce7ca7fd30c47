//! The place of a file that is to be written: asked for before hours of work, not after.

use std::path::Path;

/// Is there something at the place of a file? What may be replaced the caller knows.
///
/// # Errors
/// If no file can be written there, as a sentence behind the path: it is a folder, or its folder is missing.
pub(super) fn is_taken(place: &Path) -> Result<bool, String> {
    if place.is_dir() {
        return Err("is a folder: name the file that is to be written".into());
    }
    let folder = place.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match folder.is_dir() {
        true => Ok(place.exists()),
        false => Err(format!("cannot be written: make its folder first, `{}`", folder.display())),
    }
}

/// The same for every path to one file; nothing where there is none. Hard links are told by the system's number of the file.
#[cfg(unix)]
pub(super) fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

#[cfg(not(unix))]
pub(super) fn identity(path: &Path) -> Option<std::path::PathBuf> {
    std::fs::canonicalize(path).ok()
}
