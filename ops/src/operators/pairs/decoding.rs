//! How much memory decoding takes, told from the headers of a few pictures.

use std::path::Path;

use image::ImageReader;

use super::Pairs;

/// Samples whose pictures are looked at, from the whole file.
const LOOKED_AT: usize = 8;
/// Bytes a pixel: as it is decoded, as 8-bit RGB, and the masks that are compared with it.
const PER_PIXEL: usize = 8;

impl Pairs {
    /// Bytes that the largest of these pictures takes until it has the size of training.
    pub(super) fn decoding_bytes(&self) -> usize {
        let apart = (self.rows.len() / LOOKED_AT).max(1);
        let files = self.rows.iter().step_by(apart).take(LOOKED_AT).flat_map(|row| row.files());
        // What cannot be read is refused elsewhere, or left out.
        let largest = files.filter_map(pixels).max().unwrap_or(0);
        largest.min(self.settings.max_pixels).saturating_mul(PER_PIXEL)
    }
}

fn pixels(path: &Path) -> Option<usize> {
    let (width, height) = ImageReader::open(path).ok()?.with_guessed_format().ok()?.into_dimensions().ok()?;
    (width as usize).checked_mul(height as usize)
}
