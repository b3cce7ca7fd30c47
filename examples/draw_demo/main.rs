//! Draws the demo: textured subjects on textured grounds, as preference pairs or as training data.
//!
//! ```text
//! cargo run --release --example draw_demo -- pairs data/demo [--count 32] [--seed 0]
//! cargo run --release --example draw_demo -- training OUT [--count 12000] [--seed 1]
//! ```
//!
//! Everything is a pure function of the seed and the sample's number: the pairs of seed 0 and the training data of
//! seed 0 show the same scenes.

#![allow(clippy::disallowed_methods, reason = "a drawing: nobody compares its last bits")]

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

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Pairs(which) => pairs::write(&which.out, which.seed, which.count),
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
