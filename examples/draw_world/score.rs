//! Scores of drawn pictures: is it the subject, is it where the prompt says, is the ground as it should be?

use std::{
    io::{self, Write},
    path::PathBuf,
};

use image::{GrayImage, Luma, RgbImage};
use serde_json::{Map, Value, json};

use crate::{
    Failure,
    encoder::Encoder,
    fit::fit,
    held::{Held, Ranking},
    pairs::prefix,
    render,
    scene::{SCENE_SIDE, Scene, Split},
};

/// What a channel differs by where something stands on the ground.
const STANDS_OUT: f32 = 0.12;
/// Pixels around the winner's subjects that do not count as background: outlines are softer in what is drawn.
const MARGIN: u32 = 4;

/// What to score, and by what.
pub struct Settings {
    /// The folder of `held_out.jsonl`.
    pub folder: PathBuf,
    /// The split and the seed that it was drawn with.
    pub split: (Split, u64),
    /// The folder of drawn pictures; the winners where there is none.
    pub pictures: Option<PathBuf>,
    /// How the names of the pictures begin.
    pub name: String,
    /// Folders of identity encoders.
    pub encoders: Vec<PathBuf>,
    /// References that are ranked for each subject.
    pub among: usize,
}

/// Print one JSON object for each subject. Figures of a whole picture (layout, ground, background) stand with each of its subjects.
pub fn score(settings: &Settings) -> Result<(), Failure> {
    let held = Held::read(&settings.folder)?;
    let encoders = settings.encoders.iter().map(|e| Encoder::open(e)).collect::<Result<Vec<_>, Failure>>()?;
    let rankings = encoders
        .iter()
        .map(|encoder| Ranking::new(&held, encoder, settings.among))
        .collect::<Result<Vec<_>, Failure>>()?;
    let mut out = io::stdout().lock();
    for pair in &held.pairs {
        let scene = scene_of(&pair.id, settings.split)?;
        let picture = held.picture(pair, settings.pictures.as_deref(), &settings.name)?;
        if picture.dimensions() != (SCENE_SIDE as u32, SCENE_SIDE as u32) {
            return Err(format!("the picture of {} is not {SCENE_SIDE}x{SCENE_SIDE} pixels", pair.id).into());
        }
        let whole = whole_picture(&picture, &scene);
        for (k, &own) in pair.shown.iter().enumerate() {
            let (named, drawn) = (&held.subjects[own].name, scene.subjects.get(k).map(|s| s.identity.name()));
            if drawn.as_ref() != Some(named) {
                let (seed, drawn) = (settings.split.1, drawn.as_deref().unwrap_or("nobody"));
                let id = &pair.id;
                return Err(format!("{id} shows {named}, but with seed {seed} it would be {drawn}: pass the seed that the list was drawn with").into());
            }
            let mut line = Map::new();
            line.insert("id".into(), json!(pair.id));
            line.insert("subject".into(), json!(held.subjects[own].name));
            line.insert("subjects".into(), json!(pair.shown.len()));
            for (ranking, folder) in rankings.iter().zip(&settings.encoders) {
                let rank = ranking.rank(&picture, pair, own)?;
                let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy();
                line.insert(name.to_string(), json!(rank.own));
                line.insert(format!("{name}_first"), json!(u8::from(rank.is_first())));
            }
            let (fit, is_right_shape) = fit(&picture, &scene, k);
            line.insert("fit".into(), json!(fit));
            line.insert("shape".into(), json!(u8::from(is_right_shape)));
            line.extend(whole.clone());
            writeln!(out, "{}", Value::Object(line))?;
        }
    }
    Ok(())
}

/// The scene that a pair was drawn from.
fn scene_of(id: &str, (split, seed): (Split, u64)) -> Result<Scene, Failure> {
    let number = id.strip_prefix(prefix(split)).and_then(|rest| rest.strip_prefix('-'));
    let number = number.and_then(|number| number.parse().ok());
    let number = number.ok_or_else(|| format!("`{id}` is not a pair of the split {split:?}"))?;
    Ok(Scene::draw(split, seed, number))
}

/// Figures of a picture as a whole.
///
/// * `layout`: how far what stands out from the ground covers the winner's subjects, as intersection over union;
/// * `ground`: 1 if the colour of the background is nearest to that of the ground in the prompt;
/// * `background`: mean difference from the winner outside its subjects, in grey levels of 255.
fn whole_picture(picture: &RgbImage, scene: &Scene) -> Map<String, Value> {
    let winner = render::winner(scene);
    let (drawn, wanted) = (standing_out(picture, scene), standing_out(&winner, scene));
    let both = drawn.pixels().zip(wanted.pixels()).filter(|(a, b)| a.0[0].min(b.0[0]) > 0).count();
    let either = drawn.pixels().zip(wanted.pixels()).filter(|(a, b)| a.0[0].max(b.0[0]) > 0).count();
    let priors: Vec<GrayImage> = scene.subjects.iter().map(render::prior).collect();
    let near_subject = |x: u32, y: u32| {
        let around = |at: u32| at.saturating_sub(MARGIN)..(at + MARGIN + 1).min(SCENE_SIDE as u32);
        let pixels = || around(y).flat_map(|row| around(x).map(move |column| (column, row)));
        priors.iter().any(|prior| pixels().any(|(column, row)| prior.get_pixel(column, row).0[0] > 127))
    };
    let (mut difference, mut count, mut sum) = (0u64, 0u64, [0u64; 3]);
    for (x, y, pixel) in picture.enumerate_pixels().filter(|(x, y, _)| !near_subject(*x, *y)) {
        let of_winner = winner.get_pixel(x, y).0;
        difference += pixel.0.iter().zip(of_winner).map(|(a, b)| u64::from(a.abs_diff(b))).sum::<u64>();
        sum.iter_mut().zip(pixel.0).for_each(|(total, byte)| *total += u64::from(byte));
        count += 1;
    }
    let mean = sum.map(|total| (total as f64 / (count.max(1) as f64 * 255.0)) as f32);
    let is_ground = Scene::nearest_ground(mean) == scene.ground_name();
    let mut figures = Map::new();
    figures.insert("layout".into(), json!(both as f64 / either.max(1) as f64));
    figures.insert("ground".into(), json!(u8::from(is_ground)));
    figures.insert("background".into(), json!(difference as f64 / (3 * count.max(1)) as f64));
    figures
}

/// White where a picture differs from the scene's bare ground.
fn standing_out(picture: &RgbImage, scene: &Scene) -> GrayImage {
    GrayImage::from_fn(picture.width(), picture.height(), |x, y| {
        let ground = scene.ground((y as f32 + 0.5) / SCENE_SIDE as f32);
        let byte = |c: u8| f32::from(c) / 255.0;
        let differs =
            picture.get_pixel(x, y).0.iter().zip(ground).any(|(c, g)| (byte(*c) - g).abs() > STANDS_OUT);
        Luma([if differs { 255 } else { 0 }])
    })
}
