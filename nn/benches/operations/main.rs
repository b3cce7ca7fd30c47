//! Times every operation of a device's queue against what the same device can do at most, measured in the same run.
//!
//! ```text
//! cargo bench -p prefgraph-nn --bench operations -- [cpu | cuda:N] [--f32] [--small] [--only=GROUP] [--threads=N]
//! ```
//! Or run the program itself, which needs nothing of cargo: `target/release/deps/operations-* cuda:0`.
//!
//! Shapes are those of FLUX.1-dev at 512 pixels; with `--small`, those of the tests, which show that everything runs and say nothing of
//! speed. Products are in bf16 unless `--f32` is asked for. GROUP is one of products, attention, norms, pointwise, pictures, memory.
//!
//! The roof of an operation is the time that its bytes take at the rate of a large copy, or its multiplications and additions at the
//! rate of a large product, whichever is longer. Bytes are those that have to be read and written once, so that operands that stay
//! in a cache can be faster than the roof.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints its table")]

mod attention;
#[path = "../../tests/cases/mod.rs"]
mod cases;
mod memory;
mod norms;
mod pictures;
mod place;
mod pointwise;
mod products;
mod table;

use std::process::ExitCode;

use prefgraph_nn::{Cpu, cuda::Cuda, device::Precision, error::Result};

use self::{
    cases::{FLUX_DEV, SMALL, Shapes},
    place::Place,
    table::Table,
};

/// What is asked for.
struct Options {
    device: String,
    threads: usize,
    precision: Precision,
    small: bool,
    only: String,
}

impl Options {
    /// From the arguments, or the first one that is not understood.
    fn from(arguments: impl Iterator<Item = String>) -> std::result::Result<Self, String> {
        let mut options = Self {
            device: "cpu".into(),
            threads: 0,
            precision: Precision::Bf16,
            small: false,
            only: String::new(),
        };
        for argument in arguments {
            match argument.split_once('=').unwrap_or((&argument, "")) {
                // Cargo adds it.
                ("--bench", "") => {}
                ("--small", "") => options.small = true,
                ("--f32", "") => options.precision = Precision::F32,
                ("--only", group) if GROUPS.contains(&group) => options.only = group.to_owned(),
                ("--threads", count) => options.threads = count.parse().map_err(|_| argument.clone())?,
                (device, "") if device == "cpu" || device.starts_with("cuda:") => {
                    device.clone_into(&mut options.device)
                }
                _ => return Err(argument),
            }
        }
        Ok(options)
    }
}

const GROUPS: [&str; 6] = ["memory", "products", "attention", "norms", "pointwise", "pictures"];

fn main() -> ExitCode {
    let options = match Options::from(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(argument) => {
            eprintln!(
                "`{argument}` is not understood: [cpu | cuda:N] [--f32] [--small] [--only={}] [--threads=N]",
                GROUPS.join("|")
            );
            return ExitCode::from(2);
        }
    };
    let done = match options.device.strip_prefix("cuda:").map(str::parse) {
        None => Cpu::new(options.threads).and_then(|cpu| run(&cpu, &options)),
        Some(Ok(ordinal)) => Cuda::open(ordinal).and_then(|cuda| run(&cuda, &options)),
        Some(Err(_)) => {
            eprintln!("`{}` names no GPU: give its number, as in `cuda:0`", options.device);
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Times a group of operations.
type Group<D> = fn(&Table<D>, &Shapes) -> Result<()>;

fn run<D: Place>(device: &D, options: &Options) -> Result<()> {
    let shapes: Shapes = if options.small { SMALL } else { FLUX_DEV };
    let table = Table::begin(device, options.precision, options.small)?;
    let groups: [Group<D>; 6] =
        [memory::run, products::run, attention::run, norms::run, pointwise::run, pictures::run];
    for (name, group) in GROUPS.into_iter().zip(groups) {
        if options.only.is_empty() || options.only == name {
            println!("\n{name}");
            group(&table, &shapes)?;
        }
    }
    Ok(())
}
