//! The command `graph-run`.
//!
//! ```text
//!  args       what can be typed                    prepare   a graph file as a graph and a plan
//!  run        a run from its folder to its end     resume    where a resumed run continues, and what has changed
//!  begin      the files before the first step
//!  steps      the loop over steps                  session   what a step writes into the run's folder
//!  trained    the adapters of a run                updates   the loss of an update that several steps make
//!  stop       why a run stops early                advice    what to do then
//!  say        messages on standard error
//!  progress   a bar, or a line every few steps     first     the check of the very first step
//!  health     warnings on the way, and a summary   recent    the last steps of a metric
//!  fill       the cache before the first step      interrupt   requests to stop
//!  system     memory, standard output
//!  sample     pictures from a prompt               threads   how many worker threads there will be
//!  sweep      variants of a graph side by side
//!  evaluate   scores of pictures by a benchmark
//!  calibrate  the speed of this machine            forecast  how long a run will take
//!  device     the GPUs that there are              tables    what was measured, for people
//!  fits       whether a graph fits into memory, and what would make it fit
//!  absent     what a plan takes in place of files that are not here
//!  plan, dot, ops, data, adapter, cache   the other commands
//! ```
//!
//! Standard output is for data, standard error for people.

mod absent;
mod adapter;
mod advice;
mod args;
mod begin;
mod cache;
mod calibrate;
mod data;
mod device;
mod diff;
mod dot;
mod evaluate;
mod fill;
mod first;
mod fits;
mod forecast;
mod health;
mod interrupt;
mod measured;
mod ops;
mod output;
mod plan;
mod prepare;
mod progress;
mod recent;
mod resume;
mod run;
mod sample;
mod say;
mod session;
mod steps;
mod stop;
mod sweep;
mod system;
mod tables;
mod threads;
mod trained;
mod updates;

use std::{io::IsTerminal, process::ExitCode};

use clap::Parser;
use miette::MietteHandlerOpts;

use crate::{registry::Registry, spec::SpecError};
use args::{Args, Command};
use say::say;

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

    /// With another line of advice.
    fn help(self, advice: &str) -> Self {
        match self {
            Self::Spec(e) => Self::Spec(e.also_help(advice)),
            Self::Message(message) => Self::Message(format!("{message}; {advice}")),
        }
    }

    /// What is wrong.
    fn message(&self) -> &str {
        match self {
            Self::Spec(e) => e.message(),
            Self::Message(message) => message,
        }
    }

    fn show(self) {
        match self {
            Self::Spec(e) => say!("{:?}", miette::Report::new_boxed(e)),
            Self::Message(message) => say!("error: {message}"),
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
    // A path that is broken into two lines cannot be copied, and a log can be searched for whole lines only.
    // A `main` may have set a hook of its own, which stays.
    let _ = miette::set_hook(Box::new(|_| {
        let wraps = std::io::stderr().is_terminal();
        Box::new(MietteHandlerOpts::new().wrap_lines(wraps).break_words(false).build())
    }));
    interrupt::outlast_file_limits();
    let typed: Vec<String> =
        std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    if let Some(meant) = args::meant(&typed) {
        say!("error: {meant}");
        return ExitCode::from(2);
    }
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(e) => {
            // Help and version are data, mistakes are for people: clap tells them apart.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    let done = match args.command {
        Some(Command::Plan(wanted)) => plan::plan(&wanted, &registry),
        Some(Command::Sweep(wanted)) => sweep::sweep(&wanted, &registry),
        Some(Command::Dot { graph, format }) => dot::dot(&graph, format, &registry),
        Some(Command::Diff { old, new }) => diff::diff(&old, &new, &registry),
        Some(Command::Sample(wanted)) => sample::sample(&wanted, &registry),
        Some(Command::Evaluate(wanted)) => evaluate::evaluate(&wanted, &registry),
        Some(Command::Devices) => device::list(),
        Some(Command::Ops { name }) => ops::ops(name.as_deref(), &registry),
        Some(Command::Data(args::Data::Check { path, sets, max_pixels, bad, json })) => {
            let wanted = data::Wanted { path: &path, sets: &sets, max_pixels, bad: bad.as_deref(), json };
            data::check(&wanted, &registry)
        }
        Some(Command::Adapter(command)) => adapter::adapter(&command),
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
