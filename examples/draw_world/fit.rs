//! How much of a subject is in a picture? The subject is drawn in every view, and the best one is compared with the picture, pixel by
//! pixel: a measure of identity that nothing has learned.

use image::RgbImage;

use crate::{
    scene::{Identity, SCENE_SIDE, Scene, View},
    surfaces::Colour,
};

/// The light that views are drawn in at first: the middle of what scenes have.
const BRIGHTNESS: f32 = 0.98;
/// Pixels from the middle of a subject to the edge of what is compared, in its units.
const REACH: f32 = 1.25;

/// The share of a subject that a picture shows: 1 is the subject itself, 0 is no nearer to it than the bare ground, and less is
/// further away than that. Views of all places up to 8 pixels from the winner's are tried, of all sizes, turns and lights that
/// scenes have, coarse to fine.
///
/// Beside it, whether it is larger than that of the same texture and colours in every other shape.
pub fn fit(picture: &RgbImage, scene: &Scene, subject: usize) -> (f32, bool) {
    let identity = &scene.subjects[subject].identity;
    let of = |identity: &Identity| fit_of(picture, scene, subject, identity);
    let own = of(identity);
    (own, identity.in_other_shapes().all(|other| of(&other) < own))
}

/// How well a picture fits to an identity in the place of a subject.
fn fit_of(picture: &RgbImage, scene: &Scene, subject: usize, identity: &Identity) -> f32 {
    let (x, y) = scene.subjects[subject].view.centre;
    let sizes: [f32; 3] = if scene.subjects.len() == 1 { [24.5, 26.0, 27.5] } else { [20.3, 21.3, 22.3] };
    let of = |view: &View, stride: usize| share(picture, scene, identity, view, stride);
    let mut best = (f32::NEG_INFINITY, scene.subjects[subject].view);
    for i in 0..25usize {
        let centre = (x + 4.0 * (i % 5) as f32 - 8.0, y + 4.0 * (i / 5) as f32 - 8.0);
        for scale in sizes {
            for angle in [-0.14, 0.0, 0.14] {
                let view = View { centre, scale, angle, brightness: BRIGHTNESS };
                let share = of(&view, 3);
                if share > best.0 {
                    best = (share, view);
                }
            }
        }
    }
    best.0 = of(&best.1, 1);
    let mut step = [2.0, 1.0, 0.08, 0.03];
    for _ in 0..4 {
        for direction in 0..10 {
            let sign = if direction % 2 == 0 { 1.0 } else { -1.0 };
            let mut view = best.1;
            match direction / 2 {
                0 => view.centre.0 += sign * step[0],
                1 => view.centre.1 += sign * step[0],
                2 => view.scale += sign * step[1],
                3 => view.angle += sign * step[2],
                _ => view.brightness += sign * step[3],
            }
            let share = of(&view, 1);
            if share > best.0 {
                best = (share, view);
            }
        }
        step = step.map(|size| size / 2.0);
    }
    best.0
}

/// The same for one view, on every `stride`th pixel of every `stride`th row around it.
fn share(picture: &RgbImage, scene: &Scene, identity: &Identity, view: &View, stride: usize) -> f32 {
    let reach = REACH * view.scale;
    let range = |middle: f32| {
        let first = (middle - reach).max(0.0) as usize;
        (first..((middle + reach) as usize).min(SCENE_SIDE)).step_by(stride)
    };
    let (mut difference, mut subject_alone) = (0.0f32, 0.0f32);
    for row in range(view.centre.1) {
        for column in range(view.centre.0) {
            let (x, y) = (column as f32 + 0.5, row as f32 + 0.5);
            let ground = scene.ground(y / SCENE_SIDE as f32);
            let (u, v) = view.subject_point(x, y);
            let shown = identity.colour(u, v).map(|colour| view.lit(colour));
            subject_alone += shown.map_or(0.0, |colour| distance(colour, ground));
            difference += distance(
                shown.unwrap_or(ground),
                picture.get_pixel(column as u32, row as u32).0.map(|byte| f32::from(byte) / 255.0),
            );
        }
    }
    1.0 - difference / subject_alone.max(1e-6)
}

/// The sum of the differences of the channels.
fn distance(a: Colour, b: Colour) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum()
}
