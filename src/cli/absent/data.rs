//! Imagined pairs, with pictures of one colour each.

use std::{fs, io, path::Path};

use image::{GrayImage, Luma, Rgb, RgbImage};
use prefgraph_ops::words::count;
use serde_json::json;

use crate::spec::{Facts, text};

/// Samples, as the held-out pairs of the demo.
const SAMPLES: usize = 16;

/// Pixels of pictures, rows before columns, and references of a sample.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    picture: (usize, usize),
    reference: (usize, usize),
    references: usize,
    batch: usize,
}

impl Sizes {
    /// Those that a node of pairs states.
    pub fn of(facts: &Facts, node: &str) -> Self {
        let stated = |setting: &str| facts.get(&format!("{node}.{setting}"));
        let whole = |setting: &str| stated(setting).and_then(|value| text::read::<usize>(value).ok());
        let given = |setting: &str| {
            stated(setting).and_then(|value| text::read::<Option<usize>>(value).ok().flatten())
        };
        let picture = (whole("height").unwrap_or(512), whole("width").unwrap_or(512));
        let reference =
            (given("reference_height").unwrap_or(picture.0), given("reference_width").unwrap_or(picture.1));
        let counts = stated("reference_counts").and_then(|value| text::read::<Vec<usize>>(value).ok());
        let references = counts.and_then(|counts| counts.into_iter().max()).unwrap_or(1);
        Self { picture, reference, references, batch: whole("batch").unwrap_or(1) }
    }
}

/// Write them into the file, with pictures beside it that begin with its name; what they are in words. All have one
/// winner and one reference, which `number` tells from those of other files.
pub(super) fn write(file: &Path, sizes: Sizes, number: usize) -> io::Result<String> {
    let folder = file.parent().unwrap_or(Path::new(""));
    fs::create_dir_all(folder)?;
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let [win, lose, reference_picture, mask, subject] =
        ["win", "lose", "reference", "mask", "subject"].map(|what| format!("{stem}-{what}.png"));
    let Sizes { picture, reference, references, batch } = sizes;
    let samples = SAMPLES.max(batch);
    let colour = |name: &str, (height, width): (usize, usize), rgb: [u8; 3]| {
        save(RgbImage::from_pixel(width as u32, height as u32, Rgb(rgb)).save(folder.join(name)))
    };
    let area = |name: &str, (height, width): (usize, usize)| {
        let (h, w) = (height as u32, width as u32);
        let inside = |x, y| (w / 4..w - w / 4).contains(&x) && (h / 4..h - h / 4).contains(&y);
        save(
            GrayImage::from_fn(w, h, |x, y| Luma([if inside(x, y) { 255 } else { 0 }]))
                .save(folder.join(name)),
        )
    };
    colour(&lose, picture, [128; 3])?;
    colour(&reference_picture, reference, [64, number as u8, 0])?;
    area(&subject, picture)?;
    area(&mask, reference)?;
    colour(&win, picture, [number as u8, 0, 0])?;
    let each = |value: serde_json::Value| vec![value; references];
    let line = |sample: usize| {
        let line = json!({
            "id": format!("imagined-{sample}"), "prompt": "a photo",
            "refs": each(json!({"image": reference_picture, "mask": mask})),
            "win": {"image": win, "prior": each(json!(subject))}, "lose": {"image": lose},
        });
        format!("{line}\n")
    };
    let lines: String = (0..samples).map(line).collect();
    fs::write(file, lines)?;
    Ok(format!("{} with {} each", count(samples as u64, "pair"), count(references as u64, "reference")))
}

fn save(saved: image::ImageResult<()>) -> io::Result<()> {
    saved.map_err(|e| match e {
        image::ImageError::IoError(e) => e,
        other => io::Error::other(other),
    })
}
