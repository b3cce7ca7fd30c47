//! Opening files without blocking on pipes and devices.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// Open a regular file for reading. Named pipes and devices are refused unopened, since opening one could block for ever.
///
/// # Errors
/// If it cannot be opened; of kind [`io::ErrorKind::InvalidInput`] if it is not a regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let refused = || io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
    if !std::fs::metadata(path)?.is_file() {
        return Err(refused());
    }
    let file = File::open(path)?;
    // Something else may have taken its place since.
    if file.metadata()?.is_file() { Ok(file) } else { Err(refused()) }
}

/// All bytes of a regular file.
///
/// # Errors
/// As [`open_regular`], and if it cannot be read.
pub fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}
