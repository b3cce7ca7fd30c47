//! Reads whole regular files; refuses pipes and devices.

use std::{
    fs::{self, File, Metadata},
    io::{ErrorKind, Read},
    path::{Component, Path},
};

/// Bytes that a file may have beside its pixels: profiles, thumbnails, the video of a motion photo.
const EXTRAS: u64 = 64 << 20;

/// Most bytes that a pixel takes, uncompressed: four channels of 16 bits.
const PIXEL: u64 = 8;

/// What the system says of a regular, non-empty file; links are followed.
///
/// # Errors
/// If there is none, or it is anything else: reading a pipe waits for its writer, reading a device may never end.
pub(in super::super) fn regular(path: &Path) -> Result<Metadata, String> {
    let found = fs::metadata(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound => format!("there is no such file{}", tilde(path)),
        _ => format!("cannot be opened: {e}"),
    })?;
    if found.is_dir() {
        return Err("is a folder, not a file".into());
    }
    if !found.is_file() {
        return Err("is a pipe, a device or a socket: only regular files are read".into());
    }
    // Files of /proc are regular and claim no bytes, whatever reading them would give.
    if found.len() == 0 {
        return Err("is empty".into());
    }
    Ok(found)
}

/// Why a path with `~` was not found, if that may be the reason.
fn tilde(path: &Path) -> &'static str {
    let home = |part: Component<'_>| part.as_os_str().as_encoded_bytes().starts_with(b"~");
    match path.components().any(home) {
        true => "; `~` means your home folder only as `~/` at the start of a path",
        false => "",
    }
}

/// The bytes of a regular file.
///
/// # Errors
/// If it is not one, cannot be read, or does not fit into memory.
pub(in super::super) fn read(path: &Path) -> Result<Vec<u8>, String> {
    read_up_to(path, u64::MAX)
}

/// The bytes of a picture file.
///
/// # Errors
/// As [`read`], and if the file is larger than any picture of so many pixels.
pub(super) fn read_picture(path: &Path, max_pixels: usize) -> Result<Vec<u8>, String> {
    read_up_to(path, (max_pixels as u64).saturating_mul(PIXEL).saturating_add(EXTRAS))
}

fn read_up_to(path: &Path, most: u64) -> Result<Vec<u8>, String> {
    let length = regular(path)?.len();
    if length > most {
        return Err(format!(
            "is {} MiB long, more than any picture within `max_pixels` takes: raise `max_pixels` if it is one",
            length >> 20
        ));
    }
    let mut bytes = Vec::new();
    let room = usize::try_from(length).ok().and_then(|length| bytes.try_reserve_exact(length).ok());
    room.ok_or_else(|| format!("is {} MiB long, and memory does not have that much room", length >> 20))?;
    // No more than what was promised: a file may grow while it is read.
    let file = File::open(path).map_err(|e| format!("cannot be opened: {e}"))?;
    file.take(length).read_to_end(&mut bytes).map_err(|e| format!("cannot be read: {e}"))?;
    Ok(bytes)
}
