//! Preference pairs as files: `pairs.jsonl`, JPEG pictures, PNG masks.

use std::{
    fs,
    io::{BufWriter, Write},
    path::Path,
};

use image::{GrayImage, RgbImage, codecs::jpeg::JpegEncoder};
use serde_json::json;

use crate::{Failure, render, scene::Scene};

const QUALITY: u8 = 92;

/// Write `count` pairs into a folder that is made if it is missing.
pub fn write(folder: &Path, seed: u64, count: u64) -> Result<(), Failure> {
    let images = folder.join("images");
    fs::create_dir_all(&images)?;
    let mut list = BufWriter::new(fs::File::create(folder.join("pairs.jsonl"))?);
    for sample in 0..count {
        let scene = Scene::draw(seed, sample);
        let id = format!("demo-{sample:03}");
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
        // Written by hand at the top level, so that a line reads in the order of the format's description.
        writeln!(
            list,
            r#"{{"id": {}, "prompt": {}, "refs": {}, "win": {}, "lose": {}}}"#,
            json!(id),
            json!(scene.prompt()),
            json!(references),
            json!({"image": name("win.jpg"), "prior": priors}),
            json!({"image": name("lose.jpg"), "prior": priors}),
        )?;
    }
    list.flush()?;
    eprintln!("{count} pairs in {}", folder.display());
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
