//! Who is in a picture? An identity encoder ranks the references of held-out subjects by how near they are to drawn pictures.
//!
//! Shape letters: `E` width of an embedding, `S` side of what the encoder takes, in pixels.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use image::{GrayImage, RgbImage};
use prefgraph_nn::{
    Cpu, Tensor,
    vision::{Preprocess, Vit},
};
use serde_json::Value;

use crate::Failure;

/// Pixels along each side of what the encoder sees of a picture of one subject and of two.
const SQUARES: [u32; 2] = [64, 48];

/// The references of a list, and what it shows where.
struct Held {
    subjects: Vec<Subject>,
    /// The id of every pair, its winner, and its subjects as places in `subjects`.
    pairs: Vec<(String, PathBuf, Vec<usize>)>,
}

/// A subject that a pair shows.
struct Subject {
    name: String,
    /// `[E]`, of its reference.
    embedding: Vec<f32>,
    /// Where the winner has it.
    prior: GrayImage,
}

/// An encoder with what it needs to run.
struct Encoder {
    device: Cpu,
    vit: Vit,
}

impl Encoder {
    /// `[E]`, of unit length.
    fn embed(&self, picture: &RgbImage) -> Result<Vec<f32>, Failure> {
        let side = self.vit.config().picture;
        let size = (picture.height() as usize, picture.width() as usize);
        let planes = Preprocess::imagenet(side, side).planes(picture, size);
        let pictures = Tensor::new(&self.device, (1, 3, side, side), planes)?;
        let tokens = self.vit.tokens(&self.device, &self.device, &pictures)?;
        // The class token stands first.
        let class = &tokens.values()[..self.vit.config().width];
        let length = class.iter().map(|x| x * x).sum::<f32>().sqrt();
        Ok(class.iter().map(|x| x / length).collect())
    }
}

/// Print which share of subjects have, of `among` references, their own nearest to their picture: the winner, or
/// `pictures/reference-...-ID.png`, as the operator `pictures` writes it. Of a picture the encoder sees the square where the winner has the
/// subject. The other references are those that follow in the list, without those of the same picture.
pub fn rank(folder: &Path, pictures: Option<&Path>, encoder: &Path, among: usize) -> Result<(), Failure> {
    let encoder = Encoder { device: Cpu::new(1)?, vit: Vit::open(encoder)? };
    let held = read(folder, &encoder)?;
    let (mut counts, mut out) = ([[0usize; 2]; 2], io::stdout().lock());
    for (id, winner, shown) in &held.pairs {
        let path = pictures.map_or_else(|| Ok(winner.clone()), |folder| drawn(folder, id))?;
        let picture = open(&path)?;
        for &own in shown {
            let square =
                encoder.embed(&around(&picture, &held.subjects[own].prior, SQUARES[shown.len() - 1]))?;
            let near = |subject: usize| -> f32 {
                held.subjects[subject].embedding.iter().zip(&square).map(|(a, b)| a * b).sum()
            };
            let following = (own + 1..held.subjects.len()).chain(0..own);
            let others: Vec<usize> =
                following.filter(|other| !shown.contains(other)).take(among - 1).collect();
            if others.len() < among - 1 {
                return Err(
                    format!("{}: too few subjects to rank {among} references", folder.display()).into()
                );
            }
            let nearest = others.iter().copied().max_by(|a, b| near(*a).total_cmp(&near(*b)));
            let is_first = nearest.is_none_or(|other| near(own) > near(other));
            counts[shown.len() - 1][usize::from(is_first)] += 1;
            let instead = nearest.filter(|_| !is_first).map(|other| held.subjects[other].name.as_str());
            writeln!(
                out,
                "{id}\t{}\t{}",
                held.subjects[own].name,
                instead.map_or("first".into(), |i| format!("behind {i}"))
            )?;
        }
    }
    for (of, [behind, first]) in ["pictures of one subject", "pictures of two"].iter().zip(counts) {
        let all = behind + first;
        if all > 0 {
            let share = first as f64 / all as f64;
            writeln!(
                out,
                "{of}: {first} of {all} subjects first of {among} ({share:.2}; chance {:.2})",
                1.0 / among as f64
            )?;
        }
    }
    Ok(())
}

fn read(folder: &Path, encoder: &Encoder) -> Result<Held, Failure> {
    let list = folder.join("held_out.jsonl");
    let text = fs::read_to_string(&list).map_err(|e| format!("{}: {e}", list.display()))?;
    let mut held = Held { subjects: Vec::new(), pairs: Vec::new() };
    for line in text.lines() {
        let pair: Value = serde_json::from_str(line)?;
        let field = |value: &Value| value.as_str().map(str::to_owned).ok_or("a field is missing");
        let mut shown = Vec::new();
        for (k, reference) in pair["refs"].as_array().ok_or("a pair without references")?.iter().enumerate() {
            shown.push(held.subjects.len());
            let embedding = encoder.embed(&open(&folder.join(field(&reference["image"])?))?)?;
            let prior = folder.join(field(&pair["win"]["prior"][k])?);
            let prior = image::open(&prior).map_err(|e| format!("{}: {e}", prior.display()))?.into_luma8();
            held.subjects.push(Subject { name: field(&reference["subject"])?, embedding, prior });
        }
        held.pairs.push((field(&pair["id"])?, folder.join(field(&pair["win"]["image"])?), shown));
    }
    Ok(held)
}

fn open(path: &Path) -> Result<RgbImage, Failure> {
    Ok(image::open(path).map_err(|e| format!("{}: {e}", path.display()))?.into_rgb8())
}

/// The square of this side around what a prior shows, as far inside the picture as it has to be.
fn around(picture: &RgbImage, prior: &GrayImage, side: u32) -> RgbImage {
    let white = || prior.enumerate_pixels().filter(|(_, _, pixel)| pixel.0[0] > 127);
    let corner = |along: fn((u32, u32)) -> u32, most: u32| {
        let places = || white().map(|(x, y, _)| along((x, y)));
        let middle = (places().min().unwrap_or(0) + places().max().unwrap_or(0)).div_ceil(2);
        middle.saturating_sub(side / 2).min(most - side)
    };
    let (left, top) = (corner(|at| at.0, picture.width()), corner(|at| at.1, picture.height()));
    image::imageops::crop_imm(picture, left, top, side, side).to_image()
}

/// The picture of this id.
fn drawn(folder: &Path, id: &str) -> Result<PathBuf, Failure> {
    let end = format!("-{id}.png");
    let entries = fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_, Failure>>()?;
    let is_it = |path: &&PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with("reference") && name.ends_with(&end))
    };
    let found = paths.iter().find(is_it).cloned();
    found.ok_or_else(|| format!("{}: no picture reference-...{end}", folder.display()).into())
}
