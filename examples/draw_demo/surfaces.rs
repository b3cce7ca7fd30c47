//! Surfaces: colours, the textures of subjects, and backgrounds.

use crate::random::{Random, lattice, noise};

/// Red, green, blue in [0, 1].
pub type Colour = [f32; 3];

/// A pattern of two colours over a subject.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Texture {
    Striped,
    Dotted,
    Checked,
    Ringed,
    Wavy,
    Mottled,
    Speckled,
    Shaded,
}

impl Texture {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Striped,
        Self::Dotted,
        Self::Checked,
        Self::Ringed,
        Self::Wavy,
        Self::Mottled,
        Self::Speckled,
        Self::Shaded,
    ];

    /// The adjective in prompts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Striped => "striped",
            Self::Dotted => "dotted",
            Self::Checked => "checked",
            Self::Ringed => "ringed",
            Self::Wavy => "wavy",
            Self::Mottled => "mottled",
            Self::Speckled => "speckled",
            Self::Shaded => "shaded",
        }
    }

    /// The share of the second colour at a point of the subject, `pitch` repeats in a unit of length.
    pub fn share(self, x: f32, y: f32, pitch: f32, key: u64) -> f32 {
        let (u, v) = (x * pitch, y * pitch);
        let step = |inside: bool| if inside { 1.0 } else { 0.0 };
        match self {
            Self::Striped => step(u.rem_euclid(1.0) < 0.5),
            Self::Dotted => {
                let (dx, dy) = (u - u.round(), v - v.round());
                step(dx * dx + dy * dy < 0.1)
            }
            Self::Checked => step((u.floor() + v.floor()).rem_euclid(2.0) < 1.0),
            Self::Ringed => step((u * u + v * v).sqrt().rem_euclid(1.0) < 0.5),
            Self::Wavy => step((u + 0.3 * (v * 3.0).sin()).rem_euclid(1.0) < 0.5),
            Self::Mottled => ((noise(u * 1.3, v * 1.3, key) - 0.5) * 8.0 + 0.5).clamp(0.0, 1.0),
            Self::Speckled => step(lattice((u * 4.0).floor() as i64, (v * 4.0).floor() as i64, key) < 0.3),
            Self::Shaded => (0.5 + 0.55 * x).clamp(0.0, 1.0),
        }
    }
}

/// What a scene stands on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ground {
    Sandy,
    Grassy,
    Wooden,
    Tiled,
    Snowy,
    Brick,
    Watery,
    Stone,
}

impl Ground {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Sandy,
        Self::Grassy,
        Self::Wooden,
        Self::Tiled,
        Self::Snowy,
        Self::Brick,
        Self::Watery,
        Self::Stone,
    ];

    /// The adjective in prompts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sandy => "sandy",
            Self::Grassy => "grassy",
            Self::Wooden => "wooden",
            Self::Tiled => "tiled",
            Self::Snowy => "snowy",
            Self::Brick => "brick",
            Self::Watery => "watery",
            Self::Stone => "stone",
        }
    }

    /// The colour at a point; the picture is one unit wide. `key` makes one ground differ from another.
    pub fn colour(self, x: f32, y: f32, key: u64) -> Colour {
        let shift = (lattice(0, 0, key) - 0.5, lattice(1, 0, key) - 0.5);
        let (x, y) = (x + 7.0 * shift.0, y + 7.0 * shift.1);
        let fine = noise(x * 70.0, y * 70.0, key ^ 1) - 0.5;
        let broad = noise(x * 5.0, y * 5.0, key ^ 2) - 0.5;
        let (base, value) = match self {
            Self::Sandy => ([0.80, 0.68, 0.48], 0.10 * fine + 0.12 * broad),
            Self::Grassy => {
                let blades = noise(x * 60.0, y * 14.0, key ^ 3) - 0.5;
                ([0.33, 0.48, 0.22], 0.22 * blades + 0.10 * broad)
            }
            Self::Wooden => {
                let plank = (y * 5.0).floor();
                let grain = noise(x * 4.0 + plank * 9.0, y * 60.0, key ^ 4) - 0.5;
                let gap = if (y * 5.0).rem_euclid(1.0) < 0.05 { -0.2 } else { 0.0 };
                ([0.55, 0.40, 0.27], 0.16 * grain + gap + 0.1 * (lattice(plank as i64, 5, key) - 0.5))
            }
            Self::Tiled => {
                let joint = (x * 5.0).rem_euclid(1.0) < 0.06 || (y * 5.0).rem_euclid(1.0) < 0.06;
                let tile = lattice((x * 5.0).floor() as i64, (y * 5.0).floor() as i64, key) - 0.5;
                ([0.66, 0.70, 0.72], if joint { -0.25 } else { 0.08 * tile })
            }
            Self::Snowy => ([0.90, 0.92, 0.96], 0.04 * fine + 0.10 * broad),
            Self::Brick => {
                let row = (y * 9.0).floor();
                let across = x * 4.5 + 0.5 * row.rem_euclid(2.0);
                let joint = (y * 9.0).rem_euclid(1.0) < 0.12 || across.rem_euclid(1.0) < 0.06;
                let brick = lattice(across.floor() as i64, row as i64, key) - 0.5;
                if joint { ([0.68, 0.64, 0.60], 0.05 * fine) } else { ([0.56, 0.31, 0.25], 0.14 * brick) }
            }
            Self::Watery => {
                let ripple = (y * 60.0 + 6.0 * noise(x * 6.0, y * 10.0, key ^ 6)).sin();
                ([0.28, 0.46, 0.58], 0.06 * ripple + 0.12 * broad)
            }
            Self::Stone => ([0.50, 0.50, 0.49], 0.16 * fine + 0.20 * broad),
        };
        let tint = [lattice(2, 0, key), lattice(3, 0, key), lattice(4, 0, key)];
        std::array::from_fn(|c| base[c] + value + 0.1 * (tint[c] - 0.5))
    }
}

/// A vivid colour for a subject.
pub fn vivid(random: &mut Random, hue: f32) -> Colour {
    from_hue(hue, random.between(0.55, 0.95), random.between(0.55, 0.95))
}

/// Hue in turns, saturation and value in [0, 1].
pub fn from_hue(hue: f32, saturation: f32, value: f32) -> Colour {
    let hue = hue.rem_euclid(1.0) * 6.0;
    std::array::from_fn(|c| {
        let k = ([5.0, 3.0, 1.0][c] + hue).rem_euclid(6.0);
        value - value * saturation * k.min(4.0 - k).clamp(0.0, 1.0)
    })
}

/// `a` with this share of `b`.
pub fn mix(a: Colour, b: Colour, share: f32) -> Colour {
    std::array::from_fn(|c| a[c] + (b[c] - a[c]) * share)
}
