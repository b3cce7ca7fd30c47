//! The command `graph-run`, over the operators that this library ships.

use std::process::ExitCode;

fn main() -> ExitCode {
    prefgraph::cli::main_with(prefgraph::Registry::standard())
}
