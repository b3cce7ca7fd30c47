//! From scenes to pixels: winner, loser, references and their masks.

use image::{GrayImage, Luma, Rgb, RgbImage};

use crate::{
    scene::{Placed, REFERENCE_SIDE, SCENE_SIDE, Scene, View},
    surfaces::Colour,
};

/// Samples along each side of a pixel.
const SAMPLES: usize = 3;

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
    mask(SCENE_SIDE, subject, &subject.view)
}

/// White where the subject of a reference covers at least half of a pixel.
pub fn reference_mask(subject: &Placed) -> GrayImage {
    mask(REFERENCE_SIDE, subject, &subject.reference_view)
}

/// The subject alone in another view, on a plain ground.
pub fn reference(subject: &Placed) -> RgbImage {
    picture(REFERENCE_SIDE, |x, y| {
        let (u, v) = subject.reference_view.subject_point(x, y);
        let shown = subject.identity.colour(u, v).map(|colour| subject.reference_view.lit(colour));
        shown.unwrap_or([subject.reference_ground; 3])
    })
}

fn render(scene: &Scene, disrupted: bool) -> RgbImage {
    picture(SCENE_SIDE, |x, y| {
        let of = |subject: &Placed| {
            let (u, v) = subject.view.subject_point(x, y);
            let own = subject.identity.colour(u, v)?;
            let shown =
                if disrupted { subject.disruption.colour(&subject.identity, u, v) } else { Some(own) };
            shown.map(|colour| subject.view.lit(colour))
        };
        scene.subjects.iter().find_map(of).unwrap_or_else(|| scene.ground(y / SCENE_SIDE as f32))
    })
}

/// Where a pixel is sampled, beside its upper left corner.
fn samples() -> impl Iterator<Item = (f32, f32)> {
    let at = |i: usize| (i as f32 + 0.5) / SAMPLES as f32;
    (0..SAMPLES * SAMPLES).map(move |i| (at(i % SAMPLES), at(i / SAMPLES)))
}

/// A picture from the colour at points of it.
fn picture(side: usize, colour: impl Fn(f32, f32) -> Colour) -> RgbImage {
    RgbImage::from_fn(side as u32, side as u32, |x, y| {
        let mut sum = [0.0f32; 3];
        for (a, b) in samples() {
            let shown = colour(x as f32 + a, y as f32 + b);
            sum.iter_mut().zip(shown).for_each(|(total, c)| *total += c.clamp(0.0, 1.0));
        }
        Rgb(sum.map(|c| (c / (SAMPLES * SAMPLES) as f32 * 255.0 + 0.5) as u8))
    })
}

fn mask(side: usize, subject: &Placed, view: &View) -> GrayImage {
    GrayImage::from_fn(side as u32, side as u32, |x, y| {
        let inside = |(a, b): &(f32, f32)| {
            let (u, v) = view.subject_point(x as f32 + a, y as f32 + b);
            subject.identity.shape().part(u, v).is_some()
        };
        let count = samples().filter(inside).count();
        Luma([if 2 * count >= SAMPLES * SAMPLES { 255 } else { 0 }])
    })
}
