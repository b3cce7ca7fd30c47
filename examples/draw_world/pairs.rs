//! Preference pairs as files: a list of them, PNG pictures and masks.

use std::{
    fs,
    io::{BufWriter, Write},
    path::Path,
};

use serde_json::json;

use crate::{
    Failure,
    list::{unseen, write_line},
    render,
    scene::{Identity, Scene, Split},
};

/// Samples that are looked at for pairs of new subjects, at most.
const MOST: u64 = 10_000;

/// Write the pairs of the first `count` samples into `pairs.jsonl`.
pub fn write_pairs(folder: &Path, seed: u64, count: u64) -> Result<(), Failure> {
    let scenes = (0..count).map(|sample| (sample, Scene::draw(Split::Training, seed, sample)));
    write(folder, "pairs.jsonl", prefix(Split::Training), scenes)
}

/// The beginning of the ids of a split's pairs; a dash and the sample's number follow.
pub fn prefix(split: Split) -> &'static str {
    match split {
        Split::Training => "world",
        Split::HeldOut => "held-out",
        Split::Validation => "validation",
    }
}

/// Write into `held_out.jsonl` as many pairs with one and with two subjects of a split as `wanted` says, no subject twice.
pub fn write_held_out(folder: &Path, split: Split, seed: u64, wanted: [usize; 2]) -> Result<(), Failure> {
    let samples = (0..MOST).map(|sample| {
        let scene = Scene::draw(split, seed, sample);
        let subjects: Vec<Identity> = scene.subjects.iter().map(|subject| subject.identity).collect();
        ((sample, scene), subjects)
    });
    let (scenes, left) = unseen(samples, Vec::new(), usize::MAX, wanted);
    if left != [0, 0] {
        return Err(format!("no more subjects to measure on: {left:?} samples are missing").into());
    }
    write(folder, "held_out.jsonl", prefix(split), scenes)
}

/// Write the pairs of these samples into a folder that is made if it is missing.
fn write(
    folder: &Path,
    list: &str,
    prefix: &str,
    scenes: impl IntoIterator<Item = (u64, Scene)>,
) -> Result<(), Failure> {
    fs::create_dir_all(folder.join("images"))?;
    let path = folder.join(list);
    let mut list = BufWriter::new(fs::File::create(&path)?);
    let mut count = 0;
    for (sample, scene) in scenes {
        count += 1;
        let id = format!("{prefix}-{sample:03}");
        let name = |what: &str| format!("images/{id}-{what}.png");
        render::winner(&scene).save(folder.join(name("win")))?;
        render::loser(&scene).save(folder.join(name("lose")))?;
        let (mut references, mut priors) = (Vec::new(), Vec::new());
        for (k, subject) in scene.subjects.iter().enumerate() {
            let (image, mask, prior) =
                (name(&format!("ref{k}")), name(&format!("ref{k}-mask")), name(&format!("prior{k}")));
            render::reference(subject).save(folder.join(&image))?;
            render::reference_mask(subject).save(folder.join(&mask))?;
            render::prior(subject).save(folder.join(&prior))?;
            references.push(json!({"image": image, "subject": subject.identity.name(), "mask": mask}));
            priors.push(prior);
        }
        let pictures = ["win", "lose"].map(name);
        write_line(&mut list, (&id, &scene.prompt()), &references, pictures, &priors)?;
    }
    list.flush()?;
    eprintln!("{count} pairs in {}", path.display());
    Ok(())
}
