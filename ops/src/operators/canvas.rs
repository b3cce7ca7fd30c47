//! The canvas of `preview` and `strip`: pictures side by side on white. Also the names of picture files.

use crate::ports::{Effect, Picture, Texts};

/// Pixels between two pictures.
pub(crate) const GAP: usize = 4;

/// A white picture to paint others on.
pub(crate) struct Canvas {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Canvas {
    pub(crate) fn new(height: usize, width: usize) -> Self {
        Self { width, height, rgb: vec![255; height * width * 3] }
    }

    /// Paint a picture, each pixel's light scaled by `light(y, x)`.
    pub(crate) fn paint(
        &mut self,
        at: (usize, usize),
        (height, width): (usize, usize),
        rgb: &[u8],
        light: impl Fn(usize, usize) -> f32,
    ) {
        for y in 0..height {
            for x in 0..width {
                let (from, to) = ((y * width + x) * 3, ((at.0 + y) * self.width + at.1 + x) * 3);
                for c in 0..3 {
                    self.rgb[to + c] = (f32::from(rgb[from + c]) * light(y, x)).round() as u8;
                }
            }
        }
    }

    /// The picture as a file of the preview folder, named by what it shows, the step and the first sample of the batch:
    /// enough to find the batch again.
    pub(crate) fn preview(self, what: &str, step: u64, ids: Option<&Texts>) -> Effect {
        let id = file_part(ids.and_then(|ids| ids.0.first()).map_or("", String::as_str));
        let dash = if id.is_empty() { "" } else { "-" };
        let name = format!("{what}step-{step:06}{dash}{id}");
        let Self { height, width, rgb } = self;
        Effect::Preview(name, Picture { height, width, rgb: rgb.into() })
    }
}

/// As much of a sample's id as the name of a file can bear.
pub(crate) fn file_part(id: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    id.chars().take(40).map(safe).collect()
}
