//! Pictures cut into patches, as the rows of a matrix product: a convolution whose windows do not overlap.
//!
//! ```text
//! B  pictures    H, W  rows and columns of pixels    S  side of a patch
//! ```

use super::config::VitConfig;
use crate::{
    autoencoders::Batch,
    error::{Error, Result},
};

/// Rows and columns of patches of these pictures.
///
/// # Errors
/// If the model does not take pictures of this size.
pub(super) fn grid_of(config: &VitConfig, pictures: &Batch) -> Result<(usize, usize)> {
    let (batch, channels, height, width) = pictures.shape();
    let side = config.patch;
    let whole = |pixels: usize| pixels > 0 && pixels.is_multiple_of(side);
    let fits = match config.family.interpolates() {
        true => whole(height) && whole(width),
        false => (height, width) == (config.picture, config.picture),
    };
    if batch > 0 && channels == 3 && fits {
        return Ok((height / side, width / side));
    }
    let expected = match config.family.interpolates() {
        true => format!("[B, 3, a multiple of {side}, a multiple of {side}]"),
        false => format!("[B, 3, {0}, {0}]", config.picture),
    };
    Err(Error::Shape {
        what: "pictures for the vision encoder".into(),
        expected,
        found: format!("{:?}", pictures.dims()),
    })
}

/// `[B H/S W/S, 3 S S]`: patches row by row, each plane by plane, as the weight of the convolution has them.
pub(super) fn rows(pictures: &Batch, side: usize) -> Vec<f32> {
    let (batch, channels, height, width) = pictures.shape();
    let plane = |picture: usize, channel: usize| {
        &pictures.values()[(picture * channels + channel) * height * width..][..height * width]
    };
    let mut out = Vec::with_capacity(pictures.values().len());
    for picture in 0..batch {
        for top in (0..height).step_by(side) {
            for left in (0..width).step_by(side) {
                for plane in (0..channels).map(|channel| plane(picture, channel)) {
                    for y in top..top + side {
                        out.extend_from_slice(&plane[y * width + left..][..side]);
                    }
                }
            }
        }
    }
    out
}
