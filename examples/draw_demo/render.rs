//! From scenes to pixels: winner, loser, references and their masks.

use image::{GrayImage, Luma, Rgb, RgbImage};

use crate::{
    random::noise,
    scene::{Placed, REFERENCE_SIDE, SCENE_SIDE, Scene},
    surfaces::{Colour, mix},
};

/// Places inside a pixel where subjects are sampled.
const SAMPLES: [(f32, f32); 4] = [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)];
/// How far a shadow falls, in units of the subject, and what it leaves of the light.
const SHADOW: (f32, f32, f32) = (0.09, 0.11, 0.68);

/// The scene as it should be.
pub fn winner(scene: &Scene) -> RgbImage {
    render(scene, false)
}

/// The scene with every subject disrupted inside its silhouette; all other pixels are the winner's.
pub fn loser(scene: &Scene) -> RgbImage {
    render(scene, true)
}

/// White where a subject of the scene covers at least half of a pixel.
pub fn prior(subject: &Placed) -> GrayImage {
    mask(SCENE_SIDE, |x, y| covers(subject, false, x, y))
}

/// White where the subject of a reference covers at least half of a pixel.
pub fn reference_mask(subject: &Placed) -> GrayImage {
    mask(REFERENCE_SIDE, |x, y| covers(subject, true, x, y))
}

/// The subject alone in another view, on a plain ground.
pub fn reference(subject: &Placed) -> RgbImage {
    picture(REFERENCE_SIDE, |x, y| {
        let grain = 0.05 * (noise(x / 9.0, y / 9.0, 11) - 0.5) + 0.06 * (0.5 - y / REFERENCE_SIDE as f32);
        let ground = subject.reference_ground.map(|c| c + grain);
        over(ground, x, y, |x, y| {
            let (u, v) = subject.reference_view.subject_point(x, y);
            subject.identity.colour(u, v).map(|colour| subject.reference_view.lit(colour, x, y))
        })
    })
}

fn render(scene: &Scene, disrupted: bool) -> RgbImage {
    picture(SCENE_SIDE, |x, y| {
        let side = SCENE_SIDE as f32;
        let mut colour = scene.ground.colour(x / side, y / side, scene.ground_key);
        for subject in &scene.subjects {
            let (dx, dy) = (SHADOW.0 * subject.view.scale, SHADOW.1 * subject.view.scale);
            let shade =
                SAMPLES.iter().filter(|(a, b)| covers(subject, false, x + a - dx, y + b - dy)).count();
            colour = mix(colour, colour.map(|c| c * SHADOW.2), shade as f32 / 4.0);
        }
        for subject in &scene.subjects {
            colour = over(colour, x, y, |x, y| {
                let (u, v) = subject.view.subject_point(x, y);
                let own = subject.identity.colour(u, v)?;
                let shown =
                    if disrupted { subject.disruption.colour(&subject.identity, u, v) } else { Some(own) };
                shown.map(|colour| subject.view.lit(colour, x, y))
            });
        }
        colour
    })
}

/// Is this point of a picture inside the subject?
fn covers(subject: &Placed, in_reference: bool, x: f32, y: f32) -> bool {
    let view = if in_reference { &subject.reference_view } else { &subject.view };
    let (u, v) = view.subject_point(x, y);
    subject.identity.shape.part(u, v).is_some()
}

/// A pixel's ground with what covers it, sample by sample.
fn over(ground: Colour, x: f32, y: f32, top: impl Fn(f32, f32) -> Option<Colour>) -> Colour {
    let mut sum = [0.0; 3];
    for (a, b) in SAMPLES {
        let colour = top(x + a, y + b).unwrap_or(ground);
        for (total, c) in sum.iter_mut().zip(colour) {
            *total += c / SAMPLES.len() as f32;
        }
    }
    sum
}

/// A picture from the colour at each pixel's upper left corner.
fn picture(side: usize, colour: impl Fn(f32, f32) -> Colour) -> RgbImage {
    RgbImage::from_fn(side as u32, side as u32, |x, y| {
        Rgb(colour(x as f32, y as f32).map(|c| (c.clamp(0.0, 1.0) * 255.0 + 0.5) as u8))
    })
}

fn mask(side: usize, inside: impl Fn(f32, f32) -> bool) -> GrayImage {
    GrayImage::from_fn(side as u32, side as u32, |x, y| {
        let count = SAMPLES.iter().filter(|(a, b)| inside(x as f32 + a, y as f32 + b)).count();
        Luma([if 2 * count >= SAMPLES.len() { 255 } else { 0 }])
    })
}
