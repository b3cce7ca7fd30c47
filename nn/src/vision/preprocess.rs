//! How pictures come to the size and the values that a vision encoder was trained with.
//!
//! ```text
//! H, W  rows and columns of a picture    S  side of what the encoder takes
//! ```

use super::bicubic;

/// Which square is the middle one where an odd number of rows or columns is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Middle {
    /// The one nearer to the top and the left, as in transformers' `CLIPImageProcessor`.
    Floor,
    /// The one before which an even number is cut off, as torchvision's `CenterCrop` rounds: that of CLIP's and DINO's own code.
    Even,
}

impl Middle {
    /// Rows or columns before the middle where so many are cut off.
    fn before(self, cut: usize) -> usize {
        match self {
            Self::Floor => cut / 2,
            Self::Even => cut / 2 + usize::from(cut % 4 == 3),
        }
    }
}

/// The shortest side is resampled to a number of pixels, a square is cut out of the middle, and its values are normalised: what
/// transformers' `CLIPImageProcessor` does, and torchvision's `Resize` and `CenterCrop`. Grey levels are those of Pillow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preprocess {
    /// Pixels of the shortest side; at least `side`.
    pub shortest: usize,
    /// S.
    pub side: usize,
    /// Which square is cut out.
    pub middle: Middle,
    /// Taken off values in [0, 1], for red, green and blue.
    pub mean: [f32; 3],
    /// What they are divided by then.
    pub deviation: [f32; 3],
}

impl Preprocess {
    /// That of CLIP and OpenCLIP in transformers.
    pub const fn clip(side: usize) -> Self {
        let mean = [0.481_454_66, 0.457_827_5, 0.408_210_73];
        let deviation = [0.268_629_54, 0.261_302_6, 0.275_777_1];
        Self { shortest: side, side, middle: Middle::Floor, mean, deviation }
    }

    /// With the mean and the standard deviation of ImageNet's values, which DINO and DINOv2 were trained with, cut as torchvision
    /// does.
    pub const fn imagenet(shortest: usize, side: usize) -> Self {
        let (mean, deviation) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
        Self { shortest, side, middle: Middle::Even, mean, deviation }
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
        let [top, left] = size.map(|pixels| self.middle.before(pixels - self.side));
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
