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
    let read = || decode(&file::read_picture(path, max_pixels)?, max_pixels);
    // A decoder that gives up on a damaged file must cost that sample, not the run.
    let decoded = guard::catch(read).unwrap_or_else(|panic| Err(format!("its decoder failed: {panic}")));
    decoded.map_err(|e| format!("{}: {e}", path.display()))
}

fn decode(bytes: &[u8], max_pixels: usize) -> Result<Decoded, String> {
    match format::format(bytes)? {
        Format::Jpeg => {
            let end = jpeg::end(bytes)?;
            finish(JpegDecoder::new(Cursor::new(&bytes[..end])).map_err(damaged)?, max_pixels)
        }
        Format::WebP => {
            let end = webp::end(bytes)?;
            finish(WebPDecoder::new(Cursor::new(&bytes[..end])).map_err(damaged)?, max_pixels)
        }
        Format::Png => {
            let size = png::header(bytes)?;
            check_size(size.width, size.height, max_pixels)?;
            // Rows, and what a file may unpack beside them: profiles and texts.
            let mut limits = Limits::no_limits();
            limits.max_alloc = Some(16 * u64::from(size.width) + (64 << 20));
            finish(PngDecoder::with_limits(Cursor::new(bytes), limits).map_err(damaged)?, max_pixels)
        }
    }
}

fn damaged(error: impl Display) -> String {
    format!("cannot be decoded: {error}")
}

/// No memory for pixels has been asked for yet.
fn finish(mut decoder: impl ImageDecoder, max_pixels: usize) -> Result<Decoded, String> {
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
    picture.apply_orientation(orientation);
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
        let Decoded { picture, turned } = open(path, max_pixels)?;
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        Ok(Self { height, width, rgb: over_white(picture), turned })
    }
}
