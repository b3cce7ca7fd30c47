//! Draws the world: textured subjects in vivid colours on plain grounds, as preference pairs or as training data.
//!
//! ```text
//! cargo run --release --example draw_world -- pairs OUT [--count 32] [--seed 0]
//! cargo run --release --example draw_world -- held-out OUT [--singles 20] [--doubles 10] [--seed 0] [--split held-out]
//! cargo run --release --example draw_world -- training OUT [--count 42000] [--seed 1] [--held-out]
//! cargo run --release --example draw_world -- rank OUT [--pictures RUN/preview] [--encoder data/world/identity] [--among 20]
//! cargo run --release --example draw_world -- score OUT --seed 0 [--split held-out] [--pictures RUN/preview] > scores.jsonl
//! cargo run --release --example draw_world -- strip OUT STRIP.png --pictures BASE/preview FOCUSDPO/preview
//! ```
//!
//! Everything is a pure function of the split, the seed and the sample's number. Shapes and textures are the demo's.

#![allow(clippy::disallowed_methods, reason = "a drawing: nobody compares its last bits")]

mod encoder;
mod fit;
mod held;
#[path = "../draw_demo/list.rs"]
mod list;
mod pairs;
#[expect(dead_code, reason = "the demo's, which draws more of it")]
#[path = "../draw_demo/random.rs"]
mod random;
mod rank;
mod render;
mod scene;
mod score;
#[expect(dead_code, reason = "the demo's, which draws more of it")]
#[path = "../draw_demo/shapes.rs"]
mod shapes;
mod strip;
#[expect(dead_code, reason = "the demo's, which draws more of it")]
#[path = "../draw_demo/surfaces.rs"]
mod surfaces;
mod training;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser};

use crate::scene::Split;

/// Whatever stops the program; it is shown and nothing else is done with it.
type Failure = Box<dyn std::error::Error>;

/// Draw the world's pictures.
#[derive(Parser)]
enum Command {
    /// Preference pairs of subjects that the backbone knows: `pairs.jsonl`, pictures and masks.
    Pairs(Pairs),
    /// Preference pairs of subjects that nothing was trained on, each subject once: `held_out.jsonl`, pictures and masks.
    HeldOut(HeldOut),
    /// Safetensors shards of pictures, masks and text for training.
    Training(Training),
    /// Rank the references of `held_out.jsonl` by how near they are to pictures, and say how often the right one is the nearest.
    Rank(Rank),
    /// Score pictures: one JSON object for each subject.
    Score(Score),
    /// Put references, winners and drawn pictures side by side.
    Strip(Strip),
}

#[derive(Args)]
struct Pairs {
    /// Folder to write into.
    out: PathBuf,
    /// Number of pairs; every third one has two subjects.
    #[arg(long, default_value_t = 32)]
    count: u64,
    /// Another seed draws other pairs. The backbone was trained on seed 1.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Args)]
struct HeldOut {
    /// Folder to write into.
    out: PathBuf,
    /// Pairs with one subject.
    #[arg(long, default_value_t = 20)]
    singles: usize,
    /// Pairs with two subjects.
    #[arg(long, default_value_t = 10)]
    doubles: usize,
    /// Another seed draws other pairs.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Whose subjects.
    #[arg(long, value_enum, default_value_t = Split::HeldOut)]
    split: Split,
}

#[derive(Args)]
struct Training {
    /// Folder to write into.
    out: PathBuf,
    /// Number of scenes; every third one has two subjects.
    #[arg(long, default_value_t = 42_000)]
    count: u64,
    /// Another seed draws other scenes.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Draw the subjects to measure on instead.
    #[arg(long)]
    held_out: bool,
}

#[derive(Args)]
struct Rank {
    /// Folder of `held_out.jsonl`.
    folder: PathBuf,
    /// Folder of drawn pictures, `reference-...-ID.png`; the winners where it is not given.
    #[arg(long)]
    pictures: Option<PathBuf>,
    /// The identity encoder.
    #[arg(long, default_value = "data/world/identity")]
    encoder: PathBuf,
    /// References that are ranked for each subject.
    #[arg(long, default_value_t = 20)]
    among: usize,
}

#[derive(Args)]
struct Score {
    /// Folder of `held_out.jsonl`.
    folder: PathBuf,
    /// The seed that it was drawn with.
    #[arg(long)]
    seed: u64,
    /// The split that it was drawn from.
    #[arg(long, value_enum, default_value_t = Split::HeldOut)]
    split: Split,
    /// Folder of drawn pictures, `NAME-...-ID.png`; the winners where it is not given.
    #[arg(long)]
    pictures: Option<PathBuf>,
    /// How the names of the pictures begin.
    #[arg(long, default_value = "policy")]
    name: String,
    /// The identity encoders.
    #[arg(long, num_args = 1.., default_values = ["data/world/identity", "data/world/identity_fine"])]
    encoders: Vec<PathBuf>,
    /// References that are ranked for each subject.
    #[arg(long, default_value_t = 20)]
    among: usize,
}

#[derive(Args)]
struct Strip {
    /// Folder of `held_out.jsonl`.
    folder: PathBuf,
    /// The picture to write.
    out: PathBuf,
    /// Folders of drawn pictures, `NAME-...-ID.png`: a row each.
    #[arg(long, num_args = 1..)]
    pictures: Vec<PathBuf>,
    /// How the names of the pictures begin.
    #[arg(long, default_value = "policy")]
    name: String,
    /// Pairs with one subject, and as many with two.
    #[arg(long, default_value_t = 10)]
    columns: usize,
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Pairs(p) => pairs::write_pairs(&p.out, p.seed, p.count),
        Command::HeldOut(h) => pairs::write_held_out(&h.out, h.split, h.seed, [h.singles, h.doubles]),
        Command::Training(t) => {
            let split = if t.held_out { Split::HeldOut } else { Split::Training };
            training::write(&t.out, split, t.seed, t.count)
        }
        Command::Rank(r) => rank::rank(&r.folder, r.pictures.as_deref(), &r.encoder, r.among),
        Command::Strip(s) => strip::write(&s.folder, &s.pictures, &s.name, s.columns, &s.out),
        Command::Score(s) => score::score(&score::Settings {
            folder: s.folder,
            split: (s.split, s.seed),
            pictures: s.pictures,
            name: s.name,
            encoders: s.encoders,
            among: s.among,
        }),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("draw_world: {error}");
            ExitCode::FAILURE
        }
    }
}
