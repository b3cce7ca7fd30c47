//! A scene as a value: its subjects, their positions and views, and how a disrupted copy differs. Pure functions of (seed, sample).

use crate::{
    random::Random,
    shapes::{Part, Shape},
    surfaces::{Colour, Ground, Texture, mix, vivid},
};

/// Pixels along each side of a winner or loser: 12x12 tokens.
pub const SCENE_SIDE: usize = 192;
/// Pixels along each side of a reference: 8x8 tokens.
pub const REFERENCE_SIDE: usize = 128;

/// What makes a subject itself, whatever the view.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Its kind.
    pub shape: Shape,
    /// Its pattern.
    pub texture: Texture,
    /// The two colours of the pattern and the accent colour.
    palette: [Colour; 3],
    /// Repeats of the pattern in a unit of length.
    pitch: f32,
    /// Angle of the pattern on the subject.
    slant: f32,
    key: u64,
}

impl Identity {
    fn draw(random: &mut Random) -> Self {
        let hue = random.between(0.0, 1.0);
        // The other two hues keep their distance from the first.
        let (second, accent) = (hue + random.between(0.2, 0.8), hue + random.between(0.2, 0.8));
        let second = vivid(random, second);
        let second = mix(second, random.choice(&[[1.0; 3], [0.08; 3], second]), 0.8);
        Self {
            shape: random.choice(&Shape::ALL),
            texture: random.choice(&Texture::ALL),
            palette: [vivid(random, hue), second, vivid(random, accent)],
            pitch: random.between(1.8, 3.2),
            slant: random.between(0.0, std::f32::consts::TAU),
            key: random.key(),
        }
    }

    /// Colour at a point of the subject, or nothing outside it.
    pub fn colour(&self, x: f32, y: f32) -> Option<Colour> {
        Some(match self.shape.part(x, y)? {
            Part::Accent => self.palette[2],
            Part::Dark => [0.07, 0.07, 0.09],
            Part::Body => {
                let (sin, cos) = self.slant.sin_cos();
                let share = self.texture.share(x * cos + y * sin, y * cos - x * sin, self.pitch, self.key);
                mix(self.palette[0], self.palette[1], share)
            }
        })
    }
}

/// From where, and in what light, a subject is seen.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Centre, in pixels.
    pub centre: (f32, f32),
    /// Pixels in a unit of the subject.
    pub scale: f32,
    angle: f32,
    mirrored: bool,
    light: (f32, f32),
    brightness: f32,
}

impl View {
    fn draw(random: &mut Random, centre: (f32, f32), scale: f32, turn: f32) -> Self {
        let light = random.between(0.0, std::f32::consts::TAU);
        Self {
            centre,
            scale,
            angle: random.between(-turn, turn),
            mirrored: random.below(2) == 1,
            light: (light.cos(), light.sin()),
            brightness: random.between(0.88, 1.08),
        }
    }

    /// The subject's own coordinates of a pixel.
    pub fn subject_point(&self, x: f32, y: f32) -> (f32, f32) {
        let (x, y) = ((x - self.centre.0) / self.scale, (y - self.centre.1) / self.scale);
        let (sin, cos) = self.angle.sin_cos();
        let (x, y) = (x * cos + y * sin, y * cos - x * sin);
        (if self.mirrored { -x } else { x }, y)
    }

    /// A colour in this light: the side towards the light is brighter.
    pub fn lit(&self, colour: Colour, x: f32, y: f32) -> Colour {
        let towards = ((x - self.centre.0) * self.light.0 + (y - self.centre.1) * self.light.1) / self.scale;
        colour.map(|c| c * (self.brightness + 0.18 * towards))
    }
}

/// How a loser's subject differs from the winner's, always inside the winner's silhouette.
#[derive(Clone, Copy, Debug)]
pub enum Disruption {
    /// Its texture and colours are another subject's.
    Redressed(Identity),
    /// Its silhouette is another subject's, as far as it covers the place.
    Replaced(Identity),
    /// Its points are displaced by waves: strength, and waves in a unit of length.
    Warped(f32, f32),
    /// Its three colours changed places.
    Recoloured,
}

impl Disruption {
    fn draw(random: &mut Random, subject: &Identity) -> Self {
        let mut other = Identity::draw(random);
        while other.shape == subject.shape || other.texture == subject.texture {
            other = Identity::draw(random);
        }
        match random.below(4) {
            0 => Self::Redressed(other),
            1 => Self::Replaced(other),
            2 => Self::Warped(random.between(0.22, 0.35), random.between(3.0, 6.0)),
            _ => Self::Recoloured,
        }
    }

    /// Colour at a point of the disrupted subject, or nothing where the ground shows.
    pub fn colour(&self, subject: &Identity, x: f32, y: f32) -> Option<Colour> {
        match *self {
            Self::Redressed(other) => Identity { shape: subject.shape, ..other }.colour(x, y),
            Self::Replaced(other) => other.colour(x, y),
            Self::Warped(strength, waves) => {
                subject.colour(x + strength * (waves * y).sin(), y + strength * (waves * x).cos())
            }
            Self::Recoloured => {
                let [first, second, accent] = subject.palette;
                Identity { palette: [accent, first, second], ..*subject }.colour(x, y)
            }
        }
    }
}

/// A subject of a scene.
#[derive(Clone, Copy, Debug)]
pub struct Placed {
    /// Who it is.
    pub identity: Identity,
    /// How the scene shows it.
    pub view: View,
    /// How the loser differs.
    pub disruption: Disruption,
    /// How its reference shows it.
    pub reference_view: View,
    /// Colour of the plain ground of its reference.
    pub reference_ground: Colour,
}

/// A winner, its loser and its references, before they are pixels.
#[derive(Clone, Debug)]
pub struct Scene {
    /// One or two.
    pub subjects: Vec<Placed>,
    /// What they stand on.
    pub ground: Ground,
    /// Makes this ground differ from others of its kind.
    pub ground_key: u64,
}

impl Scene {
    /// The scene of this number; every third one has two subjects.
    pub fn draw(seed: u64, sample: u64) -> Self {
        let mut random = Random::new(&[seed, sample]);
        let side = SCENE_SIDE as f32;
        let ground = random.choice(&Ground::ALL);
        let ground_key = random.key();
        let places: Vec<(f32, f32, f32)> = if sample % 3 == 2 {
            let (left, right) = (random.between(36.0, 43.0), random.between(36.0, 43.0));
            let mut height = |scale: f32| random.between(scale + 12.0, side - scale - 12.0);
            let (first, second) = (height(left), height(right));
            let mut places = vec![(0.26 * side, first, left), (0.74 * side, second, right)];
            if random.below(2) == 1 {
                places.swap(0, 1);
            }
            places
        } else {
            let scale = random.between(48.0, 66.0);
            let mut place = || random.between(scale + 6.0, side - scale - 6.0);
            vec![(place(), place(), scale)]
        };
        let mut subjects: Vec<Placed> = Vec::new();
        for (x, y, scale) in places {
            let mut identity = Identity::draw(&mut random);
            while subjects.iter().any(|other| other.identity.shape == identity.shape) {
                identity = Identity::draw(&mut random);
            }
            let middle = REFERENCE_SIDE as f32 / 2.0;
            let centre = (middle + random.between(-4.0, 4.0), middle + random.between(-4.0, 4.0));
            let reference_scale = random.between(46.0, 56.0);
            let plain = random.between(0.0, 1.0);
            subjects.push(Placed {
                identity,
                view: View::draw(&mut random, (x, y), scale, 0.35),
                disruption: Disruption::draw(&mut random, &identity),
                reference_view: View::draw(&mut random, centre, reference_scale, 0.5),
                reference_ground: crate::surfaces::from_hue(
                    plain,
                    random.between(0.0, 0.15),
                    random.between(0.3, 0.97),
                ),
            });
        }
        Self { subjects, ground, ground_key }
    }

    /// What the scene shows, in words.
    pub fn prompt(&self) -> String {
        let names: Vec<String> = self
            .subjects
            .iter()
            .map(|s| format!("a {} {}", s.identity.texture.name(), s.identity.shape.name()))
            .collect();
        format!("a photo of {} on a {} ground", names.join(" and "), self.ground.name())
    }
}
