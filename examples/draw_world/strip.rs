//! Pictures of held-out subjects side by side: references, winners, and what was drawn.

use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage, imageops::replace};

use crate::{
    Failure,
    held::{Held, Pair},
    scene::{REFERENCE_SIDE, SCENE_SIDE},
};

/// Pixels between pictures.
const GAP: usize = 4;

/// Write the first pairs of a list as columns, those with one subject above those with two. From above: references, winner, and the picture
/// of each of these folders, `NAME-...-ID.png`.
pub fn write(
    folder: &Path,
    drawn: &[PathBuf],
    name: &str,
    columns: usize,
    out: &Path,
) -> Result<(), Failure> {
    let held = Held::read(folder)?;
    let of = |subjects: usize| -> Vec<&Pair> {
        held.pairs.iter().filter(|pair| pair.shown.len() == subjects).take(columns).collect()
    };
    let parts = [(1, of(1)), (2, of(2))];
    let scene = SCENE_SIDE + GAP;
    let height_of = |subjects: usize| subjects * (REFERENCE_SIDE + GAP) + (1 + drawn.len()) * scene + 2 * GAP;
    let height =
        parts.iter().filter(|(_, pairs)| !pairs.is_empty()).map(|(s, _)| height_of(*s)).sum::<usize>();
    let width = columns * scene - GAP;
    let mut strip = RgbImage::from_pixel(width as u32, height as u32, Rgb([255; 3]));
    let mut top = 0;
    for (subjects, pairs) in parts.iter().filter(|(_, pairs)| !pairs.is_empty()) {
        for (column, pair) in pairs.iter().enumerate() {
            let (left, mut y) = (column * scene, top);
            let mut put = |picture: &RgbImage, beside: usize| {
                replace(&mut strip, picture, (left + beside) as i64, y as i64);
                y += picture.height() as usize + GAP;
            };
            for &subject in &pair.shown {
                put(&held.subjects[subject].reference, (SCENE_SIDE - REFERENCE_SIDE) / 2);
            }
            put(&held.picture(pair, None, name)?, 0);
            for folder in drawn {
                put(&held.picture(pair, Some(folder), name)?, 0);
            }
        }
        top += height_of(*subjects);
    }
    Ok(strip.save(out)?)
}
