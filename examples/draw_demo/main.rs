//! Draws the demo: textured subjects on textured backgrounds, as preference pairs or as training data.
//!
//! ```text
//! cargo run --release --example draw_demo -- pairs data/demo [--count 32] [--seed 0]
//! cargo run --release --example draw_demo -- held-out data/demo [--after 32] [--singles 12] [--doubles 4] [--seed 0]
//! cargo run --release --example draw_demo -- training OUT [--count 12000] [--seed 1]
//! ```
//!
//! Everything is a pure function of the seed and the sample's number: the pairs of seed 0 and the training data of
//! seed 0 show the same scenes.

#![allow(clippy::disallowed_methods, reason = "a drawing: nobody compares its last bits")]

mod list;
mod pairs;
mod random;
mod render;
mod scene;
mod shapes;
mod surfaces;
mod training;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser};

/// Whatever stops the program; it is shown and nothing else is done with it.
type Failure = Box<dyn std::error::Error>;

/// Draw the demo's pictures.
#[derive(Parser)]
enum Command {
    /// Preference pairs: `pairs.jsonl`, pictures and masks.
    Pairs(Which<32, 0>),
    /// Preference pairs to measure on: `held_out.jsonl`, pictures and masks of subjects that the pairs do not show.
    HeldOut(HeldOut),
    /// Safetensors shards of latents, masks and text for training a backbone.
    Training(Which<12_000, 1>),
}

#[derive(Args)]
struct Which<const COUNT: u64, const SEED: u64> {
    /// Folder to write into.
    out: PathBuf,
    /// Number of samples; every third one has two subjects.
    #[arg(long, default_value_t = COUNT)]
    count: u64,
    /// Another seed draws other samples.
    #[arg(long, default_value_t = SEED)]
    seed: u64,
}

#[derive(Args)]
struct HeldOut {
    /// Folder to write into.
    out: PathBuf,
    /// Number of pairs that are trained on: samples after them are drawn, without any combination of shape and texture that they show.
    #[arg(long, default_value_t = 32)]
    after: u64,
    /// Samples with one subject.
    #[arg(long, default_value_t = 12)]
    singles: usize,
    /// Samples with two subjects.
    #[arg(long, default_value_t = 4)]
    doubles: usize,
    /// The seed of the pairs that are trained on.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Pairs(which) => pairs::write_pairs(&which.out, which.seed, which.count),
        Command::HeldOut(h) => pairs::write_held_out(&h.out, h.seed, h.after, [h.singles, h.doubles]),
        Command::Training(which) => training::write(&which.out, which.seed, which.count),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("draw_demo: {error}");
            ExitCode::FAILURE
        }
    }
}
