//! Picture files: decoded to 8-bit RGB, or to masks.
//!
//! ```text
//!  file     whole regular files              jpeg, png, webp   where a picture ends, and what it says of itself
//!  format   what a file is                   mask              which pixels are the subject
//! ```
//!
//! EXIF orientation is applied. Transparency in a picture is laid over white. Grey becomes RGB, 16 bits become 8; colour
//! profiles are ignored. What the decoders would pass over is refused: a picture that is cut short (they fill the rest
//! with grey), one in CMYK (its colours depend on a profile), an animation (which frame is meant is not known).

pub(super) mod file;
mod format;
mod jpeg;
mod mask;
mod png;
#[cfg(test)]
mod tests;
mod webp;

use std::{fmt::Display, io::Cursor, path::Path};

use image::{
    DynamicImage, ImageDecoder, Limits,
    codecs::{jpeg::JpegDecoder, png::PngDecoder, webp::WebPDecoder},
    metadata::Orientation,
};

use crate::guard;
use format::Format;
pub use mask::Foreground;

/// The most pixels that a picture may have unless a setting says otherwise: more than the largest sensors in common
/// cameras have, and about a gibibyte of memory at worst.
pub const MAX_PIXELS: usize = 128_000_000;

/// 8-bit RGB, row-major, channels last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb {
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
    /// The pixels.
    pub rgb: Vec<u8>,
    /// Did EXIF ask for another orientation than the stored one?
    pub turned: bool,
}

/// A picture as it is to be seen.
struct Decoded {
    picture: DynamicImage,
    turned: bool,
}

/// A size as people read it.
pub(super) fn size_text(height: usize, width: usize) -> String {
    format!("{width} x {height}")
}

/// The picture in a file of at most `max_pixels`.
fn open(path: &Path, max_pixels: usize) -> Result<Decoded, String> {
    read(path, max_pixels, |bytes| finish(decoder(bytes, max_pixels)?, max_pixels, true))
}

/// What `look` makes of a picture file.
fn read<T>(
    path: &Path,
    max_pixels: usize,
    look: impl FnOnce(&[u8]) -> Result<T, String>,
) -> Result<T, String> {
    let read = || look(&file::read_picture(path, max_pixels)?);
    // A decoder that gives up on a damaged file must cost that sample, not the run.
    let found = guard::catch(read).unwrap_or_else(|panic| Err(format!("its decoder failed: {panic}")));
    found.map_err(|e| format!("{}: {e}", path.display()))
}

fn decoder(bytes: &[u8], max_pixels: usize) -> Result<Box<dyn ImageDecoder + '_>, String> {
    Ok(match format::format(bytes)? {
        Format::Jpeg => {
            let end = jpeg::end(bytes)?;
            Box::new(JpegDecoder::new(Cursor::new(&bytes[..end])).map_err(damaged)?)
        }
        Format::WebP => {
            let end = webp::end(bytes)?;
            Box::new(WebPDecoder::new(Cursor::new(&bytes[..end])).map_err(damaged)?)
        }
        Format::Png => {
            let size = png::header(bytes)?;
            check_size(size.width, size.height, max_pixels)?;
            // Rows, and what a file may unpack beside them: profiles and texts.
            let mut limits = Limits::no_limits();
            limits.max_alloc = Some(16 * u64::from(size.width) + (64 << 20));
            Box::new(PngDecoder::with_limits(Cursor::new(bytes), limits).map_err(damaged)?)
        }
    })
}

fn damaged(error: impl Display) -> String {
    format!("cannot be decoded: {error}")
}

/// No memory for pixels has been asked for yet. `turn`: is the picture to be seen as EXIF says?
fn finish(mut decoder: Box<dyn ImageDecoder + '_>, max_pixels: usize, turn: bool) -> Result<Decoded, String> {
    let (width, height) = decoder.dimensions();
    check_size(width, height, max_pixels)?;
    let room = usize::try_from(decoder.total_bytes()).ok();
    let room = room.filter(|bytes| Vec::<u8>::new().try_reserve_exact(*bytes).is_ok());
    room.ok_or_else(|| {
        let size = size_text(height as usize, width as usize);
        format!("has {size} pixels, and memory does not have room for them")
    })?;
    let orientation = decoder.orientation().map_err(damaged)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    if turn {
        picture.apply_orientation(orientation);
    }
    Ok(Decoded { picture, turned: orientation != Orientation::NoTransforms })
}

fn check_size(width: u32, height: u32, max_pixels: usize) -> Result<(), String> {
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 {
        return Err("has no pixels".into());
    }
    if pixels > max_pixels as u64 {
        return Err(format!(
            "has {} pixels (width x height), {pixels} in all: `max_pixels` allows {max_pixels}; raise it if the picture is \
             really so large",
            size_text(height as usize, width as usize)
        ));
    }
    Ok(())
}

/// The colours of every pixel over white.
fn over_white(picture: DynamicImage) -> Vec<u8> {
    if !picture.color().has_alpha() {
        return picture.into_rgb8().into_raw();
    }
    let mut rgb = Vec::with_capacity(picture.width() as usize * picture.height() as usize * 3);
    for [r, g, b, a] in picture.into_rgba8().into_raw().as_chunks::<4>().0 {
        let mix = |c: u8| (u32::from(c) * u32::from(*a) + 255 * (255 - u32::from(*a)) + 127) / 255;
        rgb.extend([*r, *g, *b].map(|c| mix(c) as u8));
    }
    rgb
}

impl Rgb {
    /// Read a picture of at most `max_pixels` pixels.
    ///
    /// # Errors
    /// If the file is missing, no regular file, of a format that is not read, cut short, damaged or too large; the
    /// message names it.
    pub fn open(path: &Path, max_pixels: usize) -> Result<Self, String> {
        Ok(Self::of(open(path, max_pixels)?))
    }

    /// The same as it is stored, whatever EXIF asks for: what Pillow opens.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_stored(path: &Path, max_pixels: usize) -> Result<Self, String> {
        let stored = |bytes: &[u8]| finish(decoder(bytes, max_pixels)?, max_pixels, false);
        Ok(Self::of(read(path, max_pixels, stored)?))
    }

    /// The size of a picture as it is stored, by the header of its file; the file must be whole.
    ///
    /// # Errors
    /// As [`open`](Self::open), but for damage that only decoding finds.
    pub fn stored_size(path: &Path, max_pixels: usize) -> Result<StoredSize, String> {
        read(path, max_pixels, |bytes| {
            let mut decoder = decoder(bytes, max_pixels)?;
            let (width, height) = decoder.dimensions();
            check_size(width, height, max_pixels)?;
            let turned = decoder.orientation().map_err(damaged)? != Orientation::NoTransforms;
            Ok(StoredSize { size: (height as usize, width as usize), turned })
        })
    }

    fn of(Decoded { picture, turned }: Decoded) -> Self {
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        Self { height, width, rgb: over_white(picture), turned }
    }
}

/// What the header of a picture file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredSize {
    /// Rows and columns of pixels.
    pub size: (usize, usize),
    /// Does EXIF ask for another orientation than the stored one?
    pub turned: bool,
}
