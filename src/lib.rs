//! A preference-optimisation training step of a diffusion model as a typed dataflow graph.
//!
//! ```text
//!  graph        what a step computes: operators, wires, a loss, carried state
//!  plan         when and where: shapes, tasks, lanes, lifetimes, memory; a value that can be printed and compared
//!  run          the execution of a plan, step by step
//!  registry     operators by name
//!  spec         graphs from RON files
//!  cache        what frozen encoders compute, kept on the disk
//!  fingerprint  whether a file is the same file
//!  sources      the data and weights that a graph reads, and whether they have changed
//!  checkpoint   the state of a run between two steps, on the disk
//!  folder       what a run leaves on the disk
//!  cli          the command `graph-run`
//! ```
//!
//! **Architecture invariant:** description and execution are different types:
//! `Operator -> Graph -> Plan -> Runner`, and an arrow never runs back.

// `eprintln!` panics if standard error is closed: see `cli::say`.
#![warn(clippy::print_stderr)]

pub mod cache;
pub mod checkpoint;
pub mod cli;
mod fingerprint;
pub mod folder;
pub mod graph;
pub mod plan;
pub mod registry;
pub mod run;
pub mod sources;
pub mod spec;
pub mod wires;

pub use graph::{Endpoint, Graph, GraphError, NodeId, Tap, Wire};
pub use plan::{Plan, PlanError, PlanOptions, Task};
pub use registry::Registry;
pub use run::{RunError, RunOptions, Runner, StepOutput};

/// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
