//! A preference-optimisation training step of a diffusion model as a typed dataflow graph.
//!
//! ```text
//!  graph   what a step computes: operators, wires, a loss, carried state
//!  plan    when and where: shapes, tasks, lanes, lifetimes, memory; a value that can be printed and compared
//!  run     the execution of a plan, step by step
//! ```
//!
//! **Architecture invariant:** description and execution are different types:
//! `Operator -> Graph -> Plan -> Runner`, and an arrow never runs back.

pub mod graph;
pub mod plan;
pub mod run;
pub mod wires;

pub use graph::{Endpoint, Graph, GraphError, NodeId, Tap, Wire};
pub use plan::{Plan, PlanError, PlanOptions, Task};
pub use run::{RunError, RunOptions, Runner, StepOutput};
