//! Imagined samples, with pictures of one colour each.
//!
//! Their pictures are small: what a graph costs follows from the sizes that it states, to which every picture is scaled.

use std::{fs, io, path::Path};

use image::{GrayImage, Luma, Rgb, RgbImage};
use prefgraph_ops::{Operator, operators::pairs::Prompts, words::count};
use serde_json::json;

use crate::spec::{Facts, text};

/// As many as the held-out pairs of the demo.
const SAMPLES: usize = 16;
/// Pixels along each side of a picture.
const SIDE: u32 = 64;

/// What samples are imagined for a node.
#[derive(Clone, Copy)]
pub(super) struct Imagined {
    samples: usize,
    /// Of each sample.
    references: usize,
    are_prompts: bool,
}

impl Imagined {
    /// Those that a node can read, with as many references as it wants; one where it does not say, if its references are read at all.
    pub fn of(facts: &Facts, node: &str) -> Self {
        let stated = |setting: &str| facts.get(&format!("{node}.{setting}"));
        let counts = stated("reference_counts").and_then(|value| text::read::<Vec<usize>>(value).ok());
        let output = format!("{node}.references");
        let is_read = || facts.values().any(|value| *value == output);
        let references =
            counts.and_then(|counts| counts.into_iter().max()).unwrap_or_else(|| usize::from(is_read()));
        let batch = stated("batch").and_then(|value| text::read::<usize>(value).ok());
        let are_prompts = facts.get(node).is_some_and(|op| op == Prompts::NAME);
        // Some batches are more than any memory holds: that is said by the plan.
        let samples = batch.unwrap_or(1).clamp(SAMPLES, 100_000);
        Self { samples, references, are_prompts }
    }
}

/// Write them into the file, with pictures beside it that begin with its name; what they are in words. All have one
/// winner and one reference, which `number` tells from those of other files.
pub(super) fn write(file: &Path, imagined: Imagined, number: usize) -> io::Result<String> {
    let folder = file.parent().unwrap_or(Path::new(""));
    fs::create_dir_all(folder)?;
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let [win, lose, reference, mask] =
        ["win", "lose", "reference", "mask"].map(|what| format!("{stem}-{what}.png"));
    let colour =
        |name: &str, rgb: [u8; 3]| save(RgbImage::from_pixel(SIDE, SIDE, Rgb(rgb)).save(folder.join(name)));
    let number = number as u8;
    colour(&win, [number, 0, 0])?;
    colour(&lose, [128; 3])?;
    colour(&reference, [64, number, 0])?;
    let middle = SIDE / 4..SIDE - SIDE / 4;
    let inside = |x, y| middle.contains(&x) && middle.contains(&y);
    let subject = GrayImage::from_fn(SIDE, SIDE, |x, y| Luma([if inside(x, y) { 255 } else { 0 }]));
    save(subject.save(folder.join(&mask)))?;
    let Imagined { samples, references, are_prompts } = imagined;
    let each = |value: serde_json::Value| vec![value; references];
    let line = |sample: usize| {
        let line = json!({
            "id": format!("imagined-{sample}"), "prompt": "a photo",
            "refs": each(json!({"image": reference, "mask": mask})),
            "win": {"image": win, "prior": each(json!(mask))}, "lose": {"image": lose},
        });
        format!("{line}\n")
    };
    let lines: String = (0..samples).map(line).collect();
    fs::write(file, lines)?;
    let what = count(samples as u64, if are_prompts { "prompt" } else { "pair" });
    Ok(match references {
        0 => format!("{what} without references"),
        n => format!("{what} with {} each", count(n as u64, "reference")),
    })
}

fn save(saved: image::ImageResult<()>) -> io::Result<()> {
    saved.map_err(|e| match e {
        image::ImageError::IoError(e) => e,
        other => io::Error::other(other),
    })
}
