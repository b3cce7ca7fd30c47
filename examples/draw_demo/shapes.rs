//! Silhouettes: which part of a subject, if any, a point belongs to.

/// A kind of subject. Silhouettes fill most of the disc of radius 1; y points down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    Mug,
    Teapot,
    Star,
    Heart,
    Fish,
    Cat,
    Vase,
    House,
    Mushroom,
    Duck,
    Car,
    Flower,
}

/// What a point of a subject is coloured by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// The subject's texture.
    Body,
    /// The subject's accent colour: a handle, a roof, wheels.
    Accent,
    /// Nearly black: eyes, windows.
    Dark,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Mug,
        Self::Teapot,
        Self::Star,
        Self::Heart,
        Self::Fish,
        Self::Cat,
        Self::Vase,
        Self::House,
        Self::Mushroom,
        Self::Duck,
        Self::Car,
        Self::Flower,
    ];

    /// The noun in prompts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mug => "mug",
            Self::Teapot => "teapot",
            Self::Star => "star",
            Self::Heart => "heart",
            Self::Fish => "fish",
            Self::Cat => "cat",
            Self::Vase => "vase",
            Self::House => "house",
            Self::Mushroom => "mushroom",
            Self::Duck => "duck",
            Self::Car => "car",
            Self::Flower => "flower",
        }
    }

    /// The part at a point, or nothing outside the silhouette.
    pub fn part(self, x: f32, y: f32) -> Option<Part> {
        let first =
            |layers: &[(bool, Part)]| layers.iter().find(|(inside, _)| *inside).map(|(_, part)| *part);
        use Part::{Accent, Body, Dark};
        match self {
            Self::Mug => first(&[
                (in_box(x + 0.15, y + 0.66, 0.62, 0.09), Accent),
                (in_box(x + 0.15, y, 0.6, 0.7), Body),
                (in_ring(x - 0.5, y, 0.25, 0.42), Accent),
            ]),
            Self::Teapot => first(&[
                (in_disc(x, y + 0.55, 0.14), Accent),
                (in_box(x, y + 0.4, 0.32, 0.06), Accent),
                (in_ellipse(x, y - 0.12, 0.66, 0.54), Body),
                (in_stroke((x, y), (0.5, 0.15), (0.92, -0.4), 0.12), Body),
                (in_ring(x + 0.66, y - 0.08, 0.2, 0.34), Accent),
            ]),
            Self::Star => {
                let (radius, turn) = polar(x, -y, 5.0);
                (radius < 0.44 / (0.44 + 0.56 * turn) * 0.98).then_some(Body)
            }
            Self::Heart => {
                let (x, y) = (x * 1.2, 0.15 - y * 1.2);
                let ring = x * x + y * y - 1.0;
                (ring * ring * ring - x * x * y * y * y < 0.0).then_some(Body)
            }
            Self::Fish => first(&[
                (in_disc(x + 0.55, y + 0.1, 0.09), Dark),
                (in_ellipse(x + 0.2, y, 0.75, 0.5), Body),
                (x > 0.35 && x < 0.95 && y.abs() < (x - 0.25) * 0.75, Accent),
            ]),
            Self::Cat => first(&[
                (in_disc(x.abs() - 0.28, y, 0.1), Dark),
                (in_disc(x, y - 0.25, 0.09), Accent),
                (in_disc(x, y - 0.15, 0.72), Body),
                (y > -0.95 && y < -0.1 && (x.abs() - 0.48).abs() < (y + 0.95) * 0.5, Accent),
            ]),
            Self::Vase => {
                let width = 0.28 + 0.34 * (1.9 * (y + 0.35)).cos().max(-0.2);
                first(&[
                    (in_box(x, y + 0.87, 0.36, 0.08), Accent),
                    (in_box(x, y - 0.88, 0.36, 0.07), Accent),
                    (y.abs() < 0.9 && x.abs() < width, Body),
                ])
            }
            Self::House => first(&[
                (in_box(x, y - 0.6, 0.16, 0.3), Dark),
                (in_box(x, y - 0.4, 0.68, 0.5), Body),
                (y > -0.85 && y <= -0.1 && x.abs() < (y + 0.85) * 1.2, Accent),
            ]),
            Self::Mushroom => first(&[
                (y < 0.05 && in_ellipse(x, y - 0.05, 0.9, 0.85), Body),
                (in_box(x, y - 0.42, 0.28, 0.42), Accent),
            ]),
            Self::Duck => first(&[
                (in_disc(x - 0.42, y + 0.5, 0.08), Dark),
                (in_disc(x - 0.35, y + 0.42, 0.36), Body),
                (in_ellipse(x + 0.12, y - 0.3, 0.75, 0.48), Body),
                (in_stroke((x, y), (0.65, -0.38), (0.92, -0.34), 0.1), Accent),
            ]),
            Self::Car => first(&[
                (in_disc(x.abs() - 0.5, y - 0.42, 0.24), Accent),
                (in_box(x + 0.05, y + 0.28, 0.32, 0.14), Dark),
                (in_box(x + 0.05, y + 0.25, 0.5, 0.28), Body),
                (in_box(x, y - 0.18, 0.92, 0.3), Body),
            ]),
            Self::Flower => {
                let (radius, turn) = polar(x, y, 6.0);
                first(&[(radius < 0.3, Accent), (radius < 0.97 - 0.35 * turn * turn, Body)])
            }
        }
    }
}

fn in_box(x: f32, y: f32, half_width: f32, half_height: f32) -> bool {
    x.abs() < half_width && y.abs() < half_height
}

fn in_disc(x: f32, y: f32, radius: f32) -> bool {
    x * x + y * y < radius * radius
}

fn in_ellipse(x: f32, y: f32, half_width: f32, half_height: f32) -> bool {
    in_disc(x / half_width, y / half_height, 1.0)
}

fn in_ring(x: f32, y: f32, inner: f32, outer: f32) -> bool {
    in_disc(x, y, outer) && !in_disc(x, y, inner)
}

/// Within `radius` of the segment.
fn in_stroke(point: (f32, f32), from: (f32, f32), to: (f32, f32), radius: f32) -> bool {
    let (x, y) = (point.0 - from.0, point.1 - from.1);
    let (dx, dy) = (to.0 - from.0, to.1 - from.1);
    let along = ((x * dx + y * dy) / (dx * dx + dy * dy)).clamp(0.0, 1.0);
    in_disc(x - along * dx, y - along * dy, radius)
}

/// Radius, and the angle folded into `arms` equal arms: 0 at the tip of an arm, 1 between two.
fn polar(x: f32, y: f32, arms: f32) -> (f32, f32) {
    let turns = x.atan2(y) / std::f32::consts::TAU * arms;
    ((x * x + y * y).sqrt(), (turns - turns.round()).abs() * 2.0)
}
