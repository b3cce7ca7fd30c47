//! Drawn scenes as safetensors shards of latents, masks and text, so that a trainer needs no image code.
//!
//! Shape letters: `N` samples of a shard, `R` references of each (1 or 2), `L` text tokens.
//!
//! | tensor | shape |
//! |---|---|
//! | `target` | `[N, 16, 24, 24]` latents of the winner |
//! | `references` | `[N, R, 16, 16, 16]` latents |
//! | `reference_masks` | `[N, R, 64]` 1 where at least half of a token is the subject |
//! | `priors` | `[N, R, 144]` the same for the winner |
//! | `text`, `pooled` | `[N, L, 48]`, `[N, 32]` |

use std::{fs, path::Path};

use image::{GrayImage, RgbImage};
use prefgraph_nn::{Cpu, Tensor, autoencoders::Dct, text::Hash};
use safetensors::tensor::{Dtype, TensorView};

use crate::{
    Failure, render,
    scene::{REFERENCE_SIDE, SCENE_SIDE, Scene},
};

/// Text tokens, their width, and the width of the pooled vector.
const TEXT: (usize, usize, usize) = (16, 48, 32);
/// Pixels along each side of a token: two latent cells of eight.
const TOKEN: usize = 16;
/// Samples of a shard at most.
const SHARD: usize = 1000;

/// Write scenes `0..count` of this seed; those with one subject and those with two go into separate shards.
pub fn write(folder: &Path, seed: u64, count: u64) -> Result<(), Failure> {
    fs::create_dir_all(folder)?;
    for subjects in [1, 2] {
        let samples: Vec<u64> = (0..count).filter(|sample| (sample % 3 == 2) == (subjects == 2)).collect();
        for (number, samples) in samples.chunks(SHARD).enumerate() {
            let scenes: Vec<Scene> = samples.iter().map(|&sample| Scene::draw(seed, sample)).collect();
            let path = folder.join(format!("subjects{subjects}-{number:03}.safetensors"));
            write_shard(&path, subjects, &scenes)?;
            eprintln!("{}: {} samples", path.display(), scenes.len());
        }
    }
    Ok(())
}

fn write_shard(path: &Path, subjects: usize, scenes: &[Scene]) -> Result<(), Failure> {
    let (device, dct) = (Cpu::new(1)?, Dct::new());
    let hash = Hash::new(TEXT.0, TEXT.1, TEXT.2)?;
    let latents = |picture: &RgbImage| -> Result<Vec<f32>, Failure> {
        let (rows, columns) = (picture.height() as usize, picture.width() as usize);
        let picture = Tensor::new(&device, (1, 3, rows, columns), planes(picture))?;
        Ok(dct.encode(&device, &picture)?.into_values())
    };
    let (mut target, mut references, mut reference_masks, mut priors) = (vec![], vec![], vec![], vec![]);
    for scene in scenes {
        target.extend(latents(&render::winner(scene))?);
        for subject in &scene.subjects {
            references.extend(latents(&render::reference(subject))?);
            reference_masks.extend(tokens(&render::reference_mask(subject)));
            priors.extend(tokens(&render::prior(subject)));
        }
    }
    let text = hash.encode(&device, &scenes.iter().map(Scene::prompt).collect::<Vec<_>>())?;
    let count = scenes.len();
    let (grid, reference_grid) = (SCENE_SIDE / 8, REFERENCE_SIDE / 8);
    let tensors = [
        ("target", vec![count, 16, grid, grid], target),
        ("references", vec![count, subjects, 16, reference_grid, reference_grid], references),
        ("reference_masks", vec![count, subjects, (REFERENCE_SIDE / TOKEN).pow(2)], reference_masks),
        ("priors", vec![count, subjects, (SCENE_SIDE / TOKEN).pow(2)], priors),
        ("text", vec![count, TEXT.0, TEXT.1], text.tokens.into_values()),
        ("pooled", vec![count, TEXT.2], text.pooled.into_values()),
    ]
    .map(|(name, shape, values)| {
        (name, shape, values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
    });
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| Ok((*name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, Failure>>()?;
    Ok(safetensors::serialize_to_file(views, None, path)?)
}

/// Rows of red, then green, then blue, in [-1, 1].
fn planes(picture: &RgbImage) -> Vec<f32> {
    (0..3).flat_map(|c| picture.pixels().map(move |p| f32::from(p.0[c]) / 127.5 - 1.0)).collect()
}

/// 1 for each token of which the mask holds at least half; the best token if none is.
fn tokens(mask: &GrayImage) -> Vec<f32> {
    let side = mask.width() as usize / TOKEN;
    let mut counts = vec![0usize; side * side];
    for (x, y, pixel) in mask.enumerate_pixels() {
        counts[y as usize / TOKEN * side + x as usize / TOKEN] += usize::from(pixel.0[0] > 127);
    }
    let needed = (TOKEN * TOKEN / 2).min(counts.iter().copied().max().unwrap_or(0)).max(1);
    counts.iter().map(|&count| if count >= needed { 1.0 } else { 0.0 }).collect()
}
