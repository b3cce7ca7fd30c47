//! How pictures come to the size and the values that a vision encoder was trained with.
//!
//! ```text
//! H, W  rows and columns of a picture    S  side of what the encoder takes
//! ```

use super::bicubic;

/// The shortest side is resampled to a number of pixels, a square is cut out of the middle, and its values are normalised: what
/// transformers' `CLIPImageProcessor` does. Grey levels are those of Pillow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preprocess {
    /// Pixels of the shortest side; at least `side`.
    pub shortest: usize,
    /// S.
    pub side: usize,
    /// Taken off values in [0, 1], for red, green and blue.
    pub mean: [f32; 3],
    /// What they are divided by then.
    pub deviation: [f32; 3],
}

impl Preprocess {
    /// That of CLIP and OpenCLIP.
    pub const fn clip(side: usize) -> Self {
        let mean = [0.481_454_66, 0.457_827_5, 0.408_210_73];
        let deviation = [0.268_629_54, 0.261_302_6, 0.275_777_1];
        Self { shortest: side, side, mean, deviation }
    }

    /// The square `[S, S, 3]` of a picture of `[H, W, 3]` bytes, before its values are normalised.
    ///
    /// # Panics
    /// If the number of bytes is another, or there are none.
    pub fn square(&self, rgb: &[u8], (height, width): (usize, usize)) -> Vec<u8> {
        let short = height.min(width);
        assert!(short > 0 && rgb.len() == height * width * 3, "bytes of a picture of {height} x {width}");
        let size = [height, width].map(|pixels| self.shortest * pixels / short);
        let resized = bicubic::resize(rgb, (height, width), (size[0], size[1]));
        let (top, left) = ((size[0] - self.side) / 2, (size[1] - self.side) / 2);
        let row = |y: usize| &resized[((top + y) * size[1] + left) * 3..][..self.side * 3];
        (0..self.side).flat_map(row).copied().collect()
    }

    /// The planes `[3, S, S]` of a picture of `[H, W, 3]` bytes.
    ///
    /// # Panics
    /// As [`square`](Self::square).
    pub fn planes(&self, rgb: &[u8], size: (usize, usize)) -> Vec<f32> {
        let square = self.square(rgb, size);
        let plane = |channel: usize| {
            let (mean, deviation) = (self.mean[channel], self.deviation[channel]);
            let values = square[channel..].iter().step_by(3);
            values.map(move |v| ((f64::from(*v) / 255.0) as f32 - mean) / deviation)
        };
        (0..3).flat_map(plane).collect()
    }
}
