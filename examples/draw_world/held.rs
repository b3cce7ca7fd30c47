//! A list of pairs with its references as an encoder sees them, and the pictures that were drawn for it.
//!
//! Shape letters: `E` width of an embedding.

use std::{
    fs,
    path::{Path, PathBuf},
};

use image::{GrayImage, RgbImage};
use serde_json::Value;

use crate::{
    Failure,
    encoder::{Encoder, cosine},
};

/// Pixels along each side of what an encoder sees of a picture of one subject and of two.
const SQUARES: [u32; 2] = [64, 48];

/// The references of a list, and what it shows where.
pub struct Held {
    /// All subjects, in the order of the list.
    pub subjects: Vec<Subject>,
    /// The pairs, in the order of the list.
    pub pairs: Vec<Pair>,
}

/// A pair of the list.
pub struct Pair {
    /// Its id.
    pub id: String,
    /// Its winner's picture.
    pub winner: PathBuf,
    /// Its subjects as places in [`Held::subjects`].
    pub shown: Vec<usize>,
}

/// A subject that a pair shows.
pub struct Subject {
    /// What a person may call it.
    pub name: String,
    /// Its reference.
    pub reference: RgbImage,
    /// Where the winner has it.
    prior: GrayImage,
}

/// The references of a list by one encoder.
pub struct Ranking<'a> {
    held: &'a Held,
    encoder: &'a Encoder,
    /// `[E]` of each subject.
    embeddings: Vec<Vec<f32>>,
    /// References that are ranked for each subject.
    among: usize,
}

/// How near the references are to a subject of a picture.
pub struct Rank {
    /// The cosine of the subject's own reference.
    pub own: f32,
    /// That of the nearest other reference, and whose it is: a place in [`Held::subjects`].
    pub nearest: (f32, usize),
}

impl Rank {
    /// Whether its own reference is the nearest.
    pub fn is_first(&self) -> bool {
        self.own > self.nearest.0
    }
}

impl Held {
    /// The pairs of `held_out.jsonl` in a folder.
    pub fn read(folder: &Path) -> Result<Self, Failure> {
        let list = folder.join("held_out.jsonl");
        let text = fs::read_to_string(&list).map_err(|e| format!("{}: {e}", list.display()))?;
        let mut held = Self { subjects: Vec::new(), pairs: Vec::new() };
        for line in text.lines() {
            let pair: Value = serde_json::from_str(line)?;
            let field = |value: &Value| value.as_str().map(str::to_owned).ok_or("a field is missing");
            let mut shown = Vec::new();
            for (k, reference) in
                pair["refs"].as_array().ok_or("a pair without references")?.iter().enumerate()
            {
                shown.push(held.subjects.len());
                let prior = folder.join(field(&pair["win"]["prior"][k])?);
                held.subjects.push(Subject {
                    name: field(&reference["subject"])?,
                    reference: open(&folder.join(field(&reference["image"])?))?,
                    prior: image::open(&prior).map_err(|e| format!("{}: {e}", prior.display()))?.into_luma8(),
                });
            }
            let winner = folder.join(field(&pair["win"]["image"])?);
            held.pairs.push(Pair { id: field(&pair["id"])?, winner, shown });
        }
        Ok(held)
    }

    /// The picture of a pair: its winner, or what `graph-run` drew into `pictures` for it, `NAME-...-ID.png`.
    pub fn picture(&self, pair: &Pair, pictures: Option<&Path>, name: &str) -> Result<RgbImage, Failure> {
        pictures.map_or_else(|| open(&pair.winner), |folder| open(&drawn(folder, name, &pair.id)?))
    }
}

impl<'a> Ranking<'a> {
    /// Embed all references. Fails if there are fewer than `among` that no pair shows beside its own.
    pub fn new(held: &'a Held, encoder: &'a Encoder, among: usize) -> Result<Self, Failure> {
        if !(2..held.subjects.len()).contains(&among) {
            return Err(
                format!("{} subjects are too few to rank {among} references", held.subjects.len()).into()
            );
        }
        let embeddings = held.subjects.iter().map(|subject| encoder.embed(&subject.reference));
        Ok(Self { held, encoder, embeddings: embeddings.collect::<Result<_, Failure>>()?, among })
    }

    /// Of a picture of `pair`, the encoder sees the square where the winner has the subject `own`. The other references are those that
    /// follow in the list, without those of the same picture.
    pub fn rank(&self, picture: &RgbImage, pair: &Pair, own: usize) -> Result<Rank, Failure> {
        let subjects = &self.held.subjects;
        let square = around(picture, &subjects[own].prior, SQUARES[pair.shown.len() - 1]);
        let square = self.encoder.embed(&square)?;
        let near = |subject: usize| cosine(&self.embeddings[subject], &square);
        let following = (own + 1..subjects.len()).chain(0..own);
        let others = following.filter(|other| !pair.shown.contains(other)).take(self.among - 1);
        let nearest = others.map(|other| (near(other), other)).max_by(|a, b| a.0.total_cmp(&b.0));
        Ok(Rank { own: near(own), nearest: nearest.ok_or("no other subject to rank")? })
    }
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
fn drawn(folder: &Path, name: &str, id: &str) -> Result<PathBuf, Failure> {
    let end = format!("-{id}.png");
    let entries = fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_, Failure>>()?;
    let is_it = |path: &&PathBuf| {
        let file = path.file_name().and_then(|file| file.to_str());
        file.is_some_and(|file| file.starts_with(name) && file.ends_with(&end))
    };
    let found = paths.iter().find(is_it).cloned();
    found.ok_or_else(|| format!("{}: no picture {name}-...{end}", folder.display()).into())
}
