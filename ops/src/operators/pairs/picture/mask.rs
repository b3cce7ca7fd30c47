//! From the pixels of a mask file to the subject.
//!
//! A mask is grey and bright where the subject is. A picture whose alpha is opaque here and clear there is a cut-out, as
//! removers of backgrounds write it: its alpha is the mask. What can be read in two ways, or in none, is refused: a mask
//! that is taken for another one trains the wrong part of the picture, and nothing shows it.

use std::path::Path;

use image::DynamicImage;

use super::{Decoded, open};

/// Foreground or not, row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreground {
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
    /// Is the pixel at least as bright as the middle grey, or in a cut-out as opaque?
    pub inside: Vec<bool>,
    /// Did EXIF ask for another orientation than the stored one?
    pub turned: bool,
}

/// The least brightness, and the least alpha, of the foreground.
const MIDDLE: u8 = 128;

/// Channels that lie further apart are a colour.
const COLOUR: u8 = 64;

/// Pixels as near as this to black, or to white, are black or white.
const NEAR: u8 = 16;

/// One pixel in so many is not enough to count: edges are soft.
const FEW: usize = 100;

impl Foreground {
    /// Read a mask of at most `max_pixels` pixels.
    ///
    /// # Errors
    /// As [`Rgb::open`](super::Rgb::open), and if no pixel is foreground, the mask has colours, or its alpha and its colours
    /// are two different masks; the message names the file.
    pub fn open(path: &Path, max_pixels: usize) -> Result<Self, String> {
        let Decoded { picture, turned } = open(path, max_pixels)?;
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        let inside = foreground(&picture).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Self { height, width, inside, turned })
    }

    /// The share of the pixels that are inside.
    pub fn share(&self) -> f64 {
        share(&self.inside)
    }

    /// Is it most likely the mask of everything but the subject? Then nearly all of its border is inside, and nearly nothing of its middle, a ninth
    /// of the picture.
    pub fn looks_inverted(&self) -> bool {
        let (h, w) = (self.height, self.width);
        let of = |wanted: &dyn Fn(usize, usize) -> bool| {
            let pixels = (0..h).flat_map(|y| (0..w).map(move |x| (y, x))).filter(|(y, x)| wanted(*y, *x));
            share(&pixels.map(|(y, x)| self.inside[y * w + x]).collect::<Vec<_>>())
        };
        let border = of(&|y, x| y == 0 || x == 0 || y + 1 == h || x + 1 == w);
        let middle = of(&|y, x| (h / 3..h - h / 3).contains(&y) && (w / 3..w - w / 3).contains(&x));
        border > 0.9 && middle < 0.1
    }
}

fn share(inside: &[bool]) -> f64 {
    inside.iter().filter(|i| **i).count() as f64 / inside.len().max(1) as f64
}

type Pixel = [u8; 3];

fn spread(pixel: Pixel) -> u8 {
    pixel.iter().max().unwrap_or(&0) - pixel.iter().min().unwrap_or(&0)
}

fn is_bright(pixel: Pixel) -> bool {
    pixel.iter().map(|c| u32::from(*c)).sum::<u32>() >= 3 * u32::from(MIDDLE)
}

fn foreground(picture: &DynamicImage) -> Result<Vec<bool>, String> {
    if picture.color().has_alpha() {
        let rgba = picture.to_rgba8();
        let rgba = rgba.as_raw().as_chunks::<4>().0;
        let opaque: Vec<bool> = rgba.iter().map(|p| p[3] >= MIDDLE).collect();
        let count = opaque.iter().filter(|o| **o).count();
        if count == 0 {
            return Err(clear(rgba.iter().map(|p| p[3]).max().unwrap_or(0)));
        }
        if count < opaque.len() {
            let colours = || rgba.iter().map(|[r, g, b, _]| [*r, *g, *b]);
            return match colours_disagree(colours, &opaque) {
                Some(bright) => Err(two_readings(&opaque, &bright)),
                None => Ok(opaque),
            };
        }
    }
    let rgb = picture.to_rgb8();
    let pixels = rgb.as_raw().as_chunks::<3>().0;
    let inside: Vec<bool> = pixels.iter().map(|p| is_bright(*p)).collect();
    if !inside.contains(&true) {
        return Err(dark(picture, pixels));
    }
    match pixels.iter().position(|p| spread(*p) > COLOUR) {
        Some(at) => Err(coloured(pixels[at], at % rgb.width() as usize, at / rgb.width() as usize)),
        None => Ok(inside),
    }
}

/// What the colours of a cut-out say, if they are black and white, as a mask is, and say another thing than the alpha. The
/// colours of a photograph are neither.
fn colours_disagree<I: Iterator<Item = Pixel>>(
    colours: impl Fn() -> I,
    opaque: &[bool],
) -> Option<Vec<bool>> {
    let enough = opaque.len().div_ceil(FEW);
    let grey = |p: &Pixel| spread(*p) <= NEAR;
    let black = colours().filter(|p| grey(p) && p[0] <= NEAR).count();
    let white = colours().filter(|p| grey(p) && p[0] >= 255 - NEAR).count();
    if black < enough || white < enough || black + white < opaque.len() - opaque.len() / 10 {
        return None;
    }
    let bright: Vec<bool> = colours().map(is_bright).collect();
    let differing = bright.iter().zip(opaque).filter(|(a, b)| a != b).count();
    (differing > enough).then_some(bright)
}

fn two_readings(opaque: &[bool], bright: &[bool]) -> String {
    let percent = |inside: &[bool]| 100.0 * share(inside);
    format!(
        "is two masks in one: by its alpha {:.0} % of it are the subject (where it is opaque), by its colours {:.0} % (where it \
         is white); save the one that is meant as a grey picture without alpha",
        percent(opaque),
        percent(bright)
    )
}

fn clear(most: u8) -> String {
    match most {
        0 => "is fully transparent: no pixel is foreground".into(),
        1 => "has no foreground: its largest alpha is 1 of 255, and foreground begins at 128; multiply it by 255".into(),
        _ => format!("has no foreground: its largest alpha is {most} of 255, and foreground begins at 128"),
    }
}

fn coloured([r, g, b]: Pixel, x: usize, y: usize) -> String {
    format!(
        "is in colours, e.g. ({r}, {g}, {b}) at x {x}, y {y}: a mask is grey, white where the subject is; of a picture of \
         labels, save the one label of this subject as white and all others as black"
    )
}

/// Why a mask without a bright pixel has none.
fn dark(picture: &DynamicImage, pixels: &[Pixel]) -> String {
    let brightest = pixels.iter().copied().max_by_key(|p| p.iter().map(|c| u32::from(*c)).sum::<u32>());
    let [r, g, b] = brightest.unwrap_or_default();
    let mean = (u32::from(r) + u32::from(g) + u32::from(b)) / 3;
    if let Some(most) = deep(picture)
        && (1..256).contains(&most)
    {
        let times = if most == 1 { 65535 } else { 257 };
        return format!(
            "has no foreground: its brightest value is {most} of 65535 (values of 8 bits in a file of 16): multiply by \
             {times}, or save it with 8 bits"
        );
    }
    match mean {
        0 if [r, g, b] == [0; 3] => "has no foreground: it is black everywhere".into(),
        1 => "has no foreground: its brightest value is 1 of 255, and foreground begins at 128: multiply by 255".into(),
        _ if spread([r, g, b]) > COLOUR => format!(
            "has no foreground: its brightest colour is ({r}, {g}, {b}), which is {mean} of 255, and foreground begins at \
             128; of a picture of labels, save the one label of this subject as white and all others as black"
        ),
        _ => format!(
            "has no foreground: its brightest value is {mean} of 255, and foreground begins at 128; of a picture of labels, \
             save the one label of this subject as 255 and all others as 0"
        ),
    }
}

/// The brightest value of a picture of 16 bits.
fn deep(picture: &DynamicImage) -> Option<u16> {
    match picture {
        DynamicImage::ImageLuma16(p) => p.as_raw().iter().copied().max(),
        DynamicImage::ImageRgb16(p) => p.as_raw().iter().copied().max(),
        // Alpha is opaque here, so that only colours count.
        DynamicImage::ImageLumaA16(p) => p.as_raw().iter().step_by(2).copied().max(),
        DynamicImage::ImageRgba16(p) => p.pixels().flat_map(|p| [p[0], p[1], p[2]]).max(),
        _ => None,
    }
}
