//! A scene of the world as a value: its subjects, where they are and how they are seen. Pure functions of (split, seed, sample).

use crate::{
    random::Random,
    shapes::{Part, Shape},
    surfaces::{Colour, Texture, mix},
};

/// Pixels along each side of a winner or loser: 12x12 tokens of 8 pixels.
pub const SCENE_SIDE: usize = 96;
/// Pixels along each side of a reference: 8x8 tokens.
pub const REFERENCE_SIDE: usize = 64;

/// The kinds of subjects.
const SHAPES: [Shape; 8] = [
    Shape::Star,
    Shape::Heart,
    Shape::Fish,
    Shape::Cat,
    Shape::House,
    Shape::Mushroom,
    Shape::Flower,
    Shape::Car,
];
/// Their patterns.
const TEXTURES: [Texture; 5] =
    [Texture::Striped, Texture::Dotted, Texture::Checked, Texture::Ringed, Texture::Shaded];
/// The colours of a body; a pattern has one of the others, or one of `PALE_AND_DARK`.
const COLOURS: [(&str, Colour); 8] = [
    ("red", [0.88, 0.13, 0.13]),
    ("orange", [0.98, 0.54, 0.08]),
    ("yellow", [0.98, 0.88, 0.14]),
    ("green", [0.12, 0.60, 0.20]),
    ("cyan", [0.12, 0.80, 0.84]),
    ("blue", [0.13, 0.27, 0.88]),
    ("purple", [0.52, 0.17, 0.72]),
    ("pink", [0.98, 0.50, 0.76]),
];
const PALE_AND_DARK: [(&str, Colour); 2] = [("white", [0.97, 0.97, 0.97]), ("black", [0.08, 0.08, 0.09])];
/// What scenes stand on.
const GROUNDS: [(&str, Colour); 6] = [
    ("cream", [0.93, 0.89, 0.80]),
    ("grey", [0.62, 0.63, 0.64]),
    ("slate", [0.30, 0.34, 0.40]),
    ("sage", [0.62, 0.70, 0.58]),
    ("sky", [0.68, 0.80, 0.90]),
    ("brown", [0.45, 0.36, 0.28]),
];
/// Repeats of a pattern in a unit of length.
const PITCH: f32 = 1.9;
/// The most that a subject is turned, in radians.
const TURN: f32 = 0.2;

/// Which subjects scenes show; none is in two of them. Combinations of shape and texture are new or known, and so are pairs of colours.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Split {
    /// Those that everything is trained on: both are known.
    Training,
    /// Those to measure on: both are new. Nothing that is trained on shows either.
    HeldOut,
    /// Those to choose settings by: one of the two is new.
    Validation,
}

impl Split {
    /// Of a subject's combination and its pair of colours, how many are new.
    fn new_parts(self) -> usize {
        match self {
            Self::Training => 0,
            Self::HeldOut => 2,
            Self::Validation => 1,
        }
    }
}

/// What makes a subject itself, whatever the view.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Places in `SHAPES` and `TEXTURES`.
    kind: (usize, usize),
    /// Places in the list of the colours.
    colours: (usize, usize),
}

impl Identity {
    /// A subject of this split.
    fn draw(random: &mut Random, split: Split) -> Self {
        loop {
            let drawn = Self {
                kind: (random.below(SHAPES.len()), random.below(TEXTURES.len())),
                colours: (random.below(COLOURS.len()), random.below(COLOURS.len() + PALE_AND_DARK.len())),
            };
            let is_new = [
                (2 * drawn.kind.0 + drawn.kind.1) % 5 < 2,
                (drawn.colours.0 + 2 * drawn.colours.1).is_multiple_of(5),
            ];
            let new_parts = is_new.into_iter().filter(|&part| part).count();
            if drawn.colours.0 != drawn.colours.1 && new_parts == split.new_parts() {
                return drawn;
            }
        }
    }

    /// The same texture and colours in all other shapes.
    pub fn in_other_shapes(&self) -> impl Iterator<Item = Self> {
        let (shape, texture) = self.kind;
        let others = (0..SHAPES.len()).filter(move |&other| other != shape);
        others.map(move |other| Self { kind: (other, texture), ..*self })
    }

    /// Its kind.
    pub fn shape(&self) -> Shape {
        SHAPES[self.kind.0]
    }

    /// Its pattern.
    fn texture(&self) -> Texture {
        TEXTURES[self.kind.1]
    }

    /// What a person may call it, e.g. `a striped star, red and white`.
    pub fn name(&self) -> String {
        let [(first, _), (second, _)] = self.palette();
        format!("a {} {}, {first} and {second}", self.texture().name(), self.shape().name())
    }

    /// Shape, texture and the two colours as numbers.
    pub fn numbers(&self) -> [u8; 4] {
        [self.kind.0, self.kind.1, self.colours.0, self.colours.1].map(|place| place as u8)
    }

    fn palette(&self) -> [(&'static str, Colour); 2] {
        let of =
            |place: usize| *COLOURS.iter().chain(&PALE_AND_DARK).nth(place).expect("a place in the list");
        [of(self.colours.0), of(self.colours.1)]
    }

    /// Colour at a point of the subject, or nothing outside it.
    pub fn colour(&self, x: f32, y: f32) -> Option<Colour> {
        let [(_, first), (_, second)] = self.palette();
        Some(match self.shape().part(x, y)? {
            Part::Accent => second,
            Part::Dark => [0.07, 0.07, 0.09],
            Part::Body => mix(first, second, self.texture().share(x, y, PITCH, 0)),
        })
    }
}

/// From where, and in what light, a subject is seen.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// In pixels.
    pub centre: (f32, f32),
    /// Pixels in a unit of the subject.
    pub scale: f32,
    /// In radians.
    pub angle: f32,
    /// What colours are multiplied by.
    pub brightness: f32,
}

impl View {
    fn draw(random: &mut Random, centre: (f32, f32), scale: f32) -> Self {
        Self { centre, scale, angle: random.between(-TURN, TURN), brightness: random.between(0.92, 1.04) }
    }

    /// The subject's own coordinates of a pixel.
    pub fn subject_point(&self, x: f32, y: f32) -> (f32, f32) {
        let (x, y) = ((x - self.centre.0) / self.scale, (y - self.centre.1) / self.scale);
        let (sin, cos) = self.angle.sin_cos();
        (x * cos + y * sin, y * cos - x * sin)
    }

    /// A colour in this light.
    pub fn lit(&self, colour: Colour) -> Colour {
        colour.map(|c| c * self.brightness)
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
}

impl Disruption {
    fn draw(random: &mut Random, split: Split, subject: &Identity) -> Self {
        let mut other = Identity::draw(random, split);
        while other.kind.0 == subject.kind.0 || other.colours == subject.colours {
            other = Identity::draw(random, split);
        }
        match random.below(3) {
            0 => Self::Redressed(Identity { kind: (subject.kind.0, other.kind.1), ..other }),
            1 => Self::Replaced(other),
            _ => Self::Warped(random.between(0.22, 0.35), random.between(3.0, 6.0)),
        }
    }

    /// Colour at a point of the disrupted subject, or nothing where the ground shows.
    pub fn colour(&self, subject: &Identity, x: f32, y: f32) -> Option<Colour> {
        match *self {
            Self::Redressed(other) | Self::Replaced(other) => other.colour(x, y),
            Self::Warped(strength, waves) => {
                subject.colour(x + strength * (waves * y).sin(), y + strength * (waves * x).cos())
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
    /// Grey of the ground of its reference.
    pub reference_ground: f32,
}

/// A winner, its loser and its references, before they are pixels.
#[derive(Clone, Debug)]
pub struct Scene {
    /// One, or two from left to right.
    pub subjects: Vec<Placed>,
    /// Place in `GROUNDS`.
    ground: usize,
    /// Where the only subject stands, in words.
    place: &'static str,
}

impl Scene {
    /// The scene of this number; every third one has two subjects.
    pub fn draw(split: Split, seed: u64, sample: u64) -> Self {
        const PLACES: [[&str; 3]; 3] = [
            ["upper left", "upper middle", "upper right"],
            ["left", "middle", "right"],
            ["lower left", "lower middle", "lower right"],
        ];
        let mut random = Random::new(&[seed, sample, split as u64]);
        let ground = random.below(GROUNDS.len());
        let (row, column) = (random.below(3), random.below(3));
        let places: Vec<(f32, f32, f32)> = if sample % 3 == 2 {
            let mut of = |x: f32| {
                let x = x + random.between(-1.5, 1.5);
                (x, random.between(34.0, 62.0), random.between(20.0, 22.5))
            };
            vec![of(24.5), of(71.5)]
        } else {
            let mut along = |third: usize| 34.0 + 14.0 * third as f32 + random.between(-3.0, 3.0);
            vec![(along(column), along(row), random.between(24.0, 28.0))]
        };
        let mut subjects: Vec<Placed> = Vec::new();
        for (x, y, scale) in places {
            let mut identity = Identity::draw(&mut random, split);
            while subjects.iter().any(|other| other.identity.kind.0 == identity.kind.0) {
                identity = Identity::draw(&mut random, split);
            }
            let middle = REFERENCE_SIDE as f32 / 2.0;
            let centre = (middle + random.between(-2.0, 2.0), middle + random.between(-2.0, 2.0));
            let reference_scale = random.between(25.0, 28.0);
            subjects.push(Placed {
                identity,
                view: View::draw(&mut random, (x, y), scale),
                disruption: Disruption::draw(&mut random, split, &identity),
                reference_view: View::draw(&mut random, centre, reference_scale),
                reference_ground: random.between(0.78, 0.96),
            });
        }
        Self { subjects, ground, place: PLACES[row][column] }
    }

    /// What its ground is called.
    pub fn ground_name(&self) -> &'static str {
        GROUNDS[self.ground].0
    }

    /// What the ground of this colour is most likely called.
    pub fn nearest_ground(colour: Colour) -> &'static str {
        let distance = |ground: &Colour| ground.iter().zip(colour).map(|(a, b)| (a - b).abs()).sum::<f32>();
        let nearest = GROUNDS.iter().min_by(|a, b| distance(&a.1).total_cmp(&distance(&b.1)));
        nearest.expect("there are grounds").0
    }

    /// The colour of the ground at a height between 0 and 1.
    pub fn ground(&self, height: f32) -> Colour {
        GROUNDS[self.ground].1.map(|c| c + 0.06 * (height - 0.5))
    }

    /// What stands where on what. Who it is, only the references say.
    pub fn prompt(&self) -> String {
        let ground = GROUNDS[self.ground].0;
        match self.subjects.len() {
            1 => format!("a subject at the {} on {ground}", self.place),
            _ => format!("two subjects side by side on {ground}"),
        }
    }
}
