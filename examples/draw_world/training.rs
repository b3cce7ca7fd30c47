//! Drawn scenes as safetensors shards of pictures, masks and text, so that a trainer needs no image code.
//!
//! Shape letters: `N` samples of a shard, `R` references of each (1 or 2), `L` text tokens.
//!
//! | tensor | shape |
//! |---|---|
//! | `winner` | `[N, 96, 96, 3]` bytes |
//! | `references` | `[N, R, 64, 64, 3]` bytes |
//! | `reference_masks` | `[N, R, 64]` bytes, 1 where at least half of a token is the subject |
//! | `priors` | `[N, R, 144]` bytes, the same for the winner |
//! | `identities` | `[N, R, 4]` bytes: shape, texture, colour of the body, colour of the pattern |
//! | `text`, `pooled` | `[N, L, 48]`, `[N, 32]` |

use std::{fs, path::Path};

use image::GrayImage;
use prefgraph_nn::{Cpu, text::Hash};
use safetensors::tensor::{Dtype, TensorView};

use crate::{
    Failure, render,
    scene::{REFERENCE_SIDE, SCENE_SIDE, Scene, Split},
};

/// Text tokens, their width, and the width of the pooled vector.
const TEXT: (usize, usize, usize) = (8, 48, 32);
/// Pixels along each side of a token: two latent cells of four.
const TOKEN: usize = 8;
/// Samples of a shard at most.
const SHARD: usize = 2000;

/// Write scenes `0..count` of this split and seed; those with one subject and those with two go into separate shards.
pub fn write(folder: &Path, split: Split, seed: u64, count: u64) -> Result<(), Failure> {
    fs::create_dir_all(folder)?;
    for subjects in [1, 2] {
        let samples: Vec<u64> = (0..count).filter(|sample| (sample % 3 == 2) == (subjects == 2)).collect();
        for (number, samples) in samples.chunks(SHARD).enumerate() {
            let scenes: Vec<Scene> = samples.iter().map(|&sample| Scene::draw(split, seed, sample)).collect();
            let path = folder.join(format!("subjects{subjects}-{number:03}.safetensors"));
            write_shard(&path, subjects, &scenes)?;
            eprintln!("{}: {} samples", path.display(), scenes.len());
        }
    }
    Ok(())
}

fn write_shard(path: &Path, subjects: usize, scenes: &[Scene]) -> Result<(), Failure> {
    let (mut winner, mut references, mut identities) = (vec![], vec![], vec![]);
    let (mut reference_masks, mut priors) = (vec![], vec![]);
    for scene in scenes {
        winner.extend(render::winner(scene).into_raw());
        for subject in &scene.subjects {
            references.extend(render::reference(subject).into_raw());
            reference_masks.extend(tokens(&render::reference_mask(subject)));
            priors.extend(tokens(&render::prior(subject)));
            identities.extend(subject.identity.numbers());
        }
    }
    let hash = Hash::new(TEXT.0, TEXT.1, TEXT.2)?;
    let text = hash.encode(&Cpu::new(1)?, &scenes.iter().map(Scene::prompt).collect::<Vec<_>>())?;
    let bytes = |values: Vec<f32>| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let (count, of) = (scenes.len(), |side: usize| (side / TOKEN).pow(2));
    let tensors = [
        ("winner", Dtype::U8, vec![count, SCENE_SIDE, SCENE_SIDE, 3], winner),
        ("references", Dtype::U8, vec![count, subjects, REFERENCE_SIDE, REFERENCE_SIDE, 3], references),
        ("reference_masks", Dtype::U8, vec![count, subjects, of(REFERENCE_SIDE)], reference_masks),
        ("priors", Dtype::U8, vec![count, subjects, of(SCENE_SIDE)], priors),
        ("identities", Dtype::U8, vec![count, subjects, 4], identities),
        ("text", Dtype::F32, vec![count, TEXT.0, TEXT.1], bytes(text.tokens.into_values())),
        ("pooled", Dtype::F32, vec![count, TEXT.2], bytes(text.pooled.into_values())),
    ];
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| Ok((*name, TensorView::new(*dtype, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, Failure>>()?;
    Ok(safetensors::serialize_to_file(views, None, path)?)
}

/// 1 for each token of which the mask holds at least half; the best token if none is.
fn tokens(mask: &GrayImage) -> Vec<u8> {
    let side = mask.width() as usize / TOKEN;
    let mut counts = vec![0usize; side * side];
    for (x, y, pixel) in mask.enumerate_pixels() {
        counts[y as usize / TOKEN * side + x as usize / TOKEN] += usize::from(pixel.0[0] > 127);
    }
    let needed = (TOKEN * TOKEN / 2).min(counts.iter().copied().max().unwrap_or(0)).max(1);
    counts.iter().map(|&count| u8::from(count >= needed)).collect()
}
