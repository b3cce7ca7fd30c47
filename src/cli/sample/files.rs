//! Pictures on the disk: names that can be told apart, and what each records about itself.

use std::{
    fs,
    path::{Path, PathBuf},
};

use prefgraph_nn::{files::write_atomically, lora::AdapterFormat};
use prefgraph_ops::ports::Images;

use crate::cli::Failure;

/// Bytes of the prompt in a name.
const WORDS: usize = 40;

/// Existing files that a message names.
const LISTED: usize = 3;

/// The first words of the prompt and the seed: pictures that differ in one of them lie side by side.
pub(super) fn name(prompt: &str, seed: u64) -> String {
    let mut name = String::new();
    let lower = prompt.to_lowercase();
    for word in lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        let left = WORDS.saturating_sub(name.len());
        // Of a first word that is longer, as of a sentence without spaces, the beginning.
        let whole = word.len() <= left;
        let word = match (whole, name.is_empty()) {
            (true, _) => word,
            (false, true) => &word[..word.floor_char_boundary(left)],
            (false, false) => break,
        };
        name.extend([word, "-"]);
        if !whole {
            break;
        }
    }
    if name.is_empty() {
        name.push_str("picture-");
    }
    format!("{name}seed-{seed}.png")
}

/// The adapter in the folder of a run, where the graph is the one that the run wrote there.
pub(super) fn trained_beside(graph: &Path) -> Option<PathBuf> {
    let of_run = graph.file_name().is_some_and(|name| name == "graph.ron");
    let path = graph.with_file_name(AdapterFormat::Diffusers.file_name("adapter"));
    (of_run && path.is_file()).then_some(path)
}

/// Refuse to write over pictures, unless that was asked for.
///
/// # Errors
/// If one of them exists.
pub(super) fn check(paths: &[PathBuf], overwrite: bool) -> Result<(), Failure> {
    let taken = |path: &&PathBuf| fs::symlink_metadata(path).is_ok();
    let taken: Vec<&PathBuf> = paths.iter().filter(taken).collect();
    if overwrite || taken.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = taken.iter().take(LISTED).map(|path| format!("`{}`", path.display())).collect();
    let more = match taken.len().saturating_sub(LISTED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let exist = if taken.len() == 1 { "exists" } else { "exist" };
    Err(Failure::new(format!(
        "{}{more} {exist}: another --out or --seed leaves them as they are, --overwrite replaces them",
        names.join(", ")
    )))
}

/// The folder that pictures are written into.
///
/// # Errors
/// If it cannot be made.
pub(super) fn make_folder(path: &Path) -> Result<(), Failure> {
    fs::create_dir_all(path)
        .map_err(|e| Failure::new(format!("cannot make the folder `{}`: {e}", path.display())))
}

/// What a picture records about itself.
pub(super) struct About<'a> {
    pub prompt: &'a str,
    pub seed: u64,
    pub adapter: Option<&'a Path>,
    /// What its branch is multiplied by.
    pub lora_scale: f64,
    pub references: &'a [PathBuf],
    pub steps: usize,
    pub guidance: Option<f64>,
    /// Classifier-free guidance, and what it leads away from.
    pub cfg: f64,
    /// Of image tokens, where the graph states it.
    pub ip_scale: Option<f64>,
    pub negative: Option<&'a str>,
    pub graph: &'a str,
}

impl About<'_> {
    /// Keywords and texts of PNG's text chunks.
    fn texts(&self) -> Vec<(&'static str, String)> {
        let mut texts = vec![
            ("prompt", self.prompt.to_owned()),
            ("seed", self.seed.to_string()),
            ("steps", self.steps.to_string()),
            ("graph", self.graph.to_owned()),
            ("adapter", self.adapter.map_or("none".to_owned(), |path| path.display().to_string())),
        ];
        if self.lora_scale != 1.0 {
            texts.push(("lora_scale", self.lora_scale.to_string()));
        }
        texts.extend(self.guidance.map(|g| ("guidance", g.to_string())));
        if self.cfg != 1.0 {
            texts.push(("cfg", self.cfg.to_string()));
        }
        texts.extend(self.ip_scale.map(|scale| ("ip_scale", scale.to_string())));
        texts.extend(self.negative.map(|negative| ("negative", negative.to_owned())));
        texts.extend(self.references.iter().map(|path| ("reference", path.display().to_string())));
        texts
    }
}

/// Write the first picture of a batch.
///
/// # Errors
/// If that fails; a picture that was there is then as it was.
pub(super) fn write(path: &Path, images: &Images, about: &About<'_>) -> Result<(), Failure> {
    let fault = |e: &dyn std::fmt::Display| Failure::new(format!("cannot write `{}`: {e}", path.display()));
    let bytes = encoded(images, about).map_err(|e| fault(&e))?;
    write_atomically(path, &bytes).map_err(Failure::new)
}

fn encoded(images: &Images, about: &About<'_>) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, images.width as u32, images.height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    for (keyword, text) in about.texts() {
        // The kind of chunk that takes any Unicode.
        encoder.add_itxt_chunk(keyword.to_owned(), text)?;
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(images.picture(0))?;
    writer.finish()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_first_words_and_the_seed() {
        assert_eq!(name("A dog, on a beach!", 7), "a-dog-on-a-beach-seed-7.png");
        assert_eq!(name("../../etc/passwd", 0), "etc-passwd-seed-0.png");
        assert_eq!(name("海辺の犬!", 1), "海辺の犬-seed-1.png");
        assert_eq!(name("🐕", 1), "picture-seed-1.png");
        assert_eq!(
            name(&"seven77 ".repeat(30), 1),
            format!("{}seed-1.png", "seven77-".repeat(5)),
            "whole words"
        );
        assert_eq!(name(&"x".repeat(300), 1), format!("{}-seed-1.png", "x".repeat(40)));
        assert_eq!(name(&"犬".repeat(300), 1), format!("{}-seed-1.png", "犬".repeat(13)), "whole characters");
    }
}
