//! Preference pairs as files: a list of them, JPEG pictures, PNG masks.

use std::{
    fs,
    io::{BufWriter, Write},
    path::Path,
};

use image::{GrayImage, RgbImage, codecs::jpeg::JpegEncoder};
use serde_json::json;

use crate::{
    Failure,
    list::{unseen, write_line},
    render,
    scene::{Identity, Scene},
    shapes::Shape,
    surfaces::Texture,
};

const QUALITY: u8 = 92;

/// Write the pairs of the first `count` samples into `pairs.jsonl`.
pub fn write_pairs(folder: &Path, seed: u64, count: u64) -> Result<(), Failure> {
    write(folder, "pairs.jsonl", "demo", seed, 0..count)
}

/// Write into `held_out.jsonl` as many pairs with one and with two subjects as `wanted` says: those of the first samples from number
/// `after` on that share no combination of shape and texture with the samples before it, nor with each other.
pub fn write_held_out(folder: &Path, seed: u64, after: u64, wanted: [usize; 2]) -> Result<(), Failure> {
    let kinds = |sample: u64| -> Vec<(Shape, Texture)> {
        let subjects = Scene::draw(seed, sample).subjects;
        subjects.iter().map(|subject| kind(&subject.identity)).collect()
    };
    let seen: Vec<(Shape, Texture)> = (0..after).flat_map(kinds).collect();
    let all = Shape::ALL.len() * Texture::ALL.len();
    let (samples, left) = unseen((after..).map(|sample| (sample, kinds(sample))), seen, all, wanted);
    if left != [0, 0] {
        return Err(format!("no more combinations of shape and texture: {left:?} samples are missing").into());
    }
    write(folder, "held_out.jsonl", "held-out", seed, samples)
}

fn kind(identity: &Identity) -> (Shape, Texture) {
    (identity.shape, identity.texture)
}

/// Write the pairs of these samples into a folder that is made if it is missing.
fn write(
    folder: &Path,
    list: &str,
    prefix: &str,
    seed: u64,
    samples: impl IntoIterator<Item = u64>,
) -> Result<(), Failure> {
    let images = folder.join("images");
    fs::create_dir_all(&images)?;
    let path = folder.join(list);
    let mut list = BufWriter::new(fs::File::create(&path)?);
    let mut count = 0;
    for sample in samples {
        count += 1;
        let scene = Scene::draw(seed, sample);
        let id = format!("{prefix}-{sample:03}");
        let name = |what: &str| format!("images/{id}-{what}");
        let save = |what: &str, picture: &RgbImage| save_jpeg(&folder.join(name(what)), picture);
        save("win.jpg", &render::winner(&scene))?;
        save("lose.jpg", &render::loser(&scene))?;
        let (mut references, mut priors) = (Vec::new(), Vec::new());
        for (k, subject) in scene.subjects.iter().enumerate() {
            let (image, mask, prior) =
                (format!("ref{k}.jpg"), format!("ref{k}-mask.png"), format!("prior{k}.png"));
            save(&image, &render::reference(subject))?;
            save_png(&folder.join(name(&mask)), &render::reference_mask(subject))?;
            save_png(&folder.join(name(&prior)), &render::prior(subject))?;
            references.push(json!({
                "image": name(&image), "subject": subject.identity.shape.name(), "mask": name(&mask),
            }));
            priors.push(name(&prior));
        }
        let pictures = ["win.jpg", "lose.jpg"].map(name);
        write_line(&mut list, (&id, &scene.prompt()), &references, pictures, &priors)?;
    }
    list.flush()?;
    eprintln!("{count} pairs in {}", path.display());
    Ok(())
}

fn save_jpeg(path: &Path, picture: &RgbImage) -> Result<(), Failure> {
    let mut file = BufWriter::new(fs::File::create(path)?);
    picture.write_with_encoder(JpegEncoder::new_with_quality(&mut file, QUALITY))?;
    Ok(file.flush()?)
}

fn save_png(path: &Path, mask: &GrayImage) -> Result<(), Failure> {
    Ok(mask.save(path)?)
}
