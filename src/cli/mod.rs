//! The command `graph-run`.
//!
//! ```text
//!  args       what can be typed                    prepare   a graph file as a graph, a plan and a memory check
//!  run        the loop over steps                  session   what a step leaves in the run's folder
//!  progress   a bar, or a line every few steps     first     the check of the very first step
//!  health     warnings on the way, and a summary   window    the last steps of a metric
//!  fill       the cache before the first step      system    memory, signals, standard output
//!  plan, dot, ops, data, adapter, cache   the other commands
//! ```
//!
//! Standard output is for data, standard error for people.

mod adapter;
mod args;
mod cache;
mod data;
mod dot;
mod fill;
mod first;
mod health;
mod ops;
mod plan;
mod prepare;
mod progress;
mod run;
mod session;
mod system;
mod window;

use std::process::ExitCode;

use clap::Parser;

use crate::{registry::Registry, spec::SpecError};
use args::{Args, Command};

/// Why a command failed.
enum Failure {
    /// Shown with the place in the graph file.
    Spec(Box<SpecError>),
    /// Shown as it is.
    Message(String),
}

impl From<Box<SpecError>> for Failure {
    fn from(e: Box<SpecError>) -> Self {
        Self::Spec(e)
    }
}

impl Failure {
    fn new(message: impl std::fmt::Display) -> Self {
        Self::Message(message.to_string())
    }

    fn show(self) {
        match self {
            Self::Spec(e) => eprintln!("{:?}", miette::Report::new_boxed(e)),
            Self::Message(message) => eprintln!("error: {message}"),
        }
    }
}

/// Exit code of a run that was interrupted and has written its checkpoint.
const INTERRUPTED: u8 = 130;

/// The whole command, over these operators: what a `main` with operators of its own calls.
///
/// ```no_run
/// fn main() -> std::process::ExitCode {
///     let registry = prefgraph::Registry::standard();
///     // registry.register::<MyOperator>();
///     prefgraph::cli::main_with(registry)
/// }
/// ```
pub fn main_with(registry: Registry) -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(e) => {
            // Help and version are data, mistakes are for people: clap tells them apart.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    let done = match args.command {
        Some(Command::Plan { graph, json }) => plan::plan(&graph, json, &registry),
        Some(Command::Dot { graph, format }) => dot::dot(&graph, format, &registry),
        Some(Command::Ops { name }) => ops::ops(name.as_deref(), &registry),
        Some(Command::Data(args::Data::Check { path, bad, json })) => {
            data::check(&path, bad.as_deref(), json)
        }
        Some(Command::Adapter(args::Adapter::Show { path })) => adapter::show(&path),
        Some(Command::Adapter(args::Adapter::Convert { input, output, to, weights })) => {
            adapter::convert(&input, &output, to, weights.as_deref())
        }
        Some(Command::Cache(command)) => cache::cache(&command, &registry),
        None => match args.run.graph.graph.is_some() {
            true => run::run(&args.run, &registry),
            false => Err(Failure::new("no graph was named; `graph-run --help` shows what can be done")),
        },
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            failure.show();
            ExitCode::FAILURE
        }
    }
}
