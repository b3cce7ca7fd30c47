//! Picture files: decoded to 8-bit RGB, or to masks.
//!
//! EXIF orientation is applied. Transparency is laid over white in a picture and over black in a mask. Grey becomes
//! RGB, 16 bits become 8. A JPEG that ends early is refused (the decoder would fill the rest with grey), and so is
//! one in CMYK, whose colours cannot be known without its profile.

use std::{fs, io::Cursor, path::Path};

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};

/// 8-bit RGB, row-major, channels last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb {
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
    /// The pixels.
    pub rgb: Vec<u8>,
}

/// Foreground or not, row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreground {
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
    /// Is the pixel at least as bright as the middle grey?
    pub inside: Vec<bool>,
}

/// Segments of a JPEG file, as (marker, payload), up to the first scan.
fn segments(bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut at = 2;
    std::iter::from_fn(move || {
        while bytes.get(at) == Some(&0xff) && bytes.get(at + 1) == Some(&0xff) {
            at += 1;
        }
        let &[0xff, marker, high, low] = bytes.get(at..at + 4)?.first_chunk::<4>()? else { return None };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let payload = bytes.get(at + 4..at + 2 + length)?;
        at += 2 + length;
        (marker != 0xda).then_some((marker, payload))
    })
}

fn check_jpeg(bytes: &[u8]) -> Result<(), String> {
    // Start-of-frame markers but for tables of Huffman codes and arithmetic conditioning.
    let is_frame = |m: u8| (0xc0..=0xcf).contains(&m) && ![0xc4, 0xc8, 0xcc].contains(&m);
    let frame = segments(bytes).find(|(marker, _)| is_frame(*marker));
    if frame.and_then(|(_, payload)| payload.get(5)) == Some(&4) {
        return Err("is a CMYK JPEG: save it as RGB".into());
    }
    // Inside a scan 0xff stands before 0x00 or a restart marker only, so an end marker after the last scan's start
    // is the end of the picture, and not of a thumbnail before it.
    let scan = bytes.windows(2).rposition(|w| w == [0xff, 0xda]);
    if !bytes[scan.unwrap_or(0)..].windows(2).any(|w| w == [0xff, 0xd9]) {
        return Err("is truncated: the JPEG has no end".into());
    }
    Ok(())
}

fn decode(path: &Path) -> Result<DynamicImage, String> {
    let fault = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let bytes = fs::read(path).map_err(|e| fault(&e))?;
    if bytes.is_empty() {
        return Err(fault(&"is empty"));
    }
    let format =
        image::guess_format(&bytes).ok().filter(|f| matches!(f, ImageFormat::Png | ImageFormat::Jpeg));
    let format = format.ok_or_else(|| fault(&"is neither a PNG nor a JPEG file"))?;
    if format == ImageFormat::Jpeg {
        check_jpeg(&bytes).map_err(|e| fault(&e))?;
    }
    let reader = ImageReader::with_format(Cursor::new(&bytes), format);
    let mut decoder = reader.into_decoder().map_err(|e| fault(&e))?;
    let orientation = decoder.orientation().map_err(|e| fault(&e))?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(|e| fault(&e))?;
    picture.apply_orientation(orientation);
    Ok(picture)
}

/// The colours of every pixel over a background of one grey.
fn over(picture: DynamicImage, background: u8) -> Rgb {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    if !picture.color().has_alpha() {
        return Rgb { height, width, rgb: picture.into_rgb8().into_raw() };
    }
    let mut rgb = Vec::with_capacity(width * height * 3);
    for [r, g, b, a] in picture.into_rgba8().into_raw().as_chunks::<4>().0 {
        let mix = |c: u8| {
            (u32::from(c) * u32::from(*a) + u32::from(background) * (255 - u32::from(*a)) + 127) / 255
        };
        rgb.extend([*r, *g, *b].map(|c| mix(c) as u8));
    }
    Rgb { height, width, rgb }
}

impl Rgb {
    /// Read a picture.
    ///
    /// # Errors
    /// If the file is missing, empty, of another format, truncated or damaged; the message names it.
    pub fn open(path: &Path) -> Result<Self, String> {
        Ok(over(decode(path)?, 255))
    }
}

impl Foreground {
    /// Read a mask: bright is foreground.
    ///
    /// # Errors
    /// As [`Rgb::open`].
    pub fn open(path: &Path) -> Result<Self, String> {
        let Rgb { height, width, rgb } = over(decode(path)?, 0);
        let inside =
            rgb.as_chunks::<3>().0.iter().map(|p| p.iter().map(|c| u32::from(*c)).sum::<u32>() >= 3 * 128);
        Ok(Self { height, width, inside: inside.collect() })
    }

    /// The share of the pixels that are inside.
    pub fn share(&self) -> f64 {
        self.inside.iter().filter(|i| **i).count() as f64 / self.inside.len().max(1) as f64
    }
}
