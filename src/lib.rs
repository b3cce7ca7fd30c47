//! A preference-optimisation training step of a diffusion model as a typed dataflow graph.
//!
//! # A graph from nothing
//!
//! A node is an operator or a closure, and a wire carries the type of its port: what does not fit does not compile. Here a
//! closure is the loss, two operators are the weights and the rule that moves them, and `carry` makes the weights a cell:
//!
//! ```
//! use std::sync::Arc;
//!
//! use prefgraph::{Cpu, Graph, Plan, PlanOptions, RunOptions, Runner};
//! use prefgraph_ops::{
//!     Ctx, Grad, OpError, Operator, T,
//!     dfdx::{shapes::Const, tensor::TensorFrom, tensor_ops::SumTo},
//!     operator::{InShapes, OutShapes},
//!     settings::Nothing,
//! };
//!
//! type Three = T<(Const<3>,)>;
//!
//! /// Three numbers.
//! struct Numbers([f32; 3]);
//!
//! impl Operator for Numbers {
//!     const NAME: &'static str = "numbers";
//!     const DOC: &'static str = "Three numbers.";
//!     const IN: [&'static str; 0] = [];
//!     const OUT: [&'static str; 1] = ["numbers"];
//!     type Settings = Nothing;
//!     type In = ();
//!     type Out = (Three,);
//!     type Saved = ();
//!     const DIFFERENTIABLE: bool = false;
//!
//!     fn new(_: Nothing) -> Result<Self, OpError> {
//!         Ok(Self([0.0; 3]))
//!     }
//!     fn shapes(&self, (): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
//!         Ok(((Const,),))
//!     }
//!     fn forward(&self, ctx: &Ctx<'_>, (): ()) -> Result<(Self::Out, ()), OpError> {
//!         Ok(((ctx.host.tensor(self.0),), ()))
//!     }
//! }
//!
//! /// Gradient descent. It reads a gradient as an input, so it runs after the backward pass.
//! struct Descend;
//!
//! impl Operator for Descend {
//!     const NAME: &'static str = "descend";
//!     const DOC: &'static str = "Gradient descent at rate 0.1.";
//!     const IN: [&'static str; 2] = ["numbers", "grad"];
//!     const OUT: [&'static str; 1] = ["numbers"];
//!     type Settings = Nothing;
//!     type In = (Three, Grad<Three>);
//!     type Out = (Three,);
//!     type Saved = ();
//!     const DIFFERENTIABLE: bool = false;
//!
//!     fn new(_: Nothing) -> Result<Self, OpError> {
//!         Ok(Self)
//!     }
//!     fn shapes(&self, (numbers, _): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
//!         Ok((numbers,))
//!     }
//!     fn forward(&self, _: &Ctx<'_>, (numbers, grad): Self::In) -> Result<(Self::Out, ()), OpError> {
//!         // `None` is a gradient of zero.
//!         Ok(((match grad.0 { Some(grad) => numbers - grad * 0.1, None => numbers },), ()))
//!     }
//! }
//!
//! let mut graph = Graph::new("nothing");
//! let (weights,) = graph.add("weights", Numbers([0.0; 3]), ());
//! let (aim,) = graph.add("aim", Numbers([1.0, 2.0, 3.0]), ());
//! let loss = graph.op("loss", (weights, aim), |weights, aim| (weights - aim).square().sum());
//! let (next,) = graph.add("descend", Descend, (weights, weights.cotangent()));
//! graph.set_loss(loss);
//! graph.carry(weights, next);
//!
//! let plan = Plan::new(&graph, &PlanOptions::default())?; // shapes, gradients, lanes, memory
//! let mut runner = Runner::new(Arc::new(graph), plan, RunOptions::new(0, Cpu::new(1)?))?;
//! let losses: Vec<_> = (0..20).map(|_| runner.step().map(|step| step.loss)).collect::<Result<_, _>>()?;
//! assert_eq!(losses[0], Some(14.0));
//! assert!(losses[19] < Some(0.01));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! More often one starts from a recipe: [`spec::load`] reads a graph file, [`Graph::wire`] finds its ports by name, with
//! their types, and from there the graph is extended as above. `examples/custom_loss.rs` replaces the loss of a recipe,
//! `examples/channel_weights.rs` fixes the number of channels, for the compiler to check.
//!
//! # Operators of your own in graph files
//!
//! The guide of [`prefgraph_ops`] writes an operator with settings and a backward of its own, and checks one against the
//! other with [`check_gradients`](prefgraph_ops::testing::check_gradients). Registered, it is an operator like any other,
//! in `graph-run ops` and in graph files:
//!
//! ```no_run
//! # use prefgraph_ops::operators::pick::Pick as SoftClip;
//! fn main() -> std::process::ExitCode {
//!     let mut registry = prefgraph::Registry::standard();
//!     registry.register::<SoftClip>();
//!     prefgraph::cli::main_with(registry)
//! }
//! ```
//!
//! # The manifest of a crate that depends on this one
//!
//! ```toml
//! [dependencies]
//! prefgraph = { path = "../prefgraph" }
//! prefgraph-ops = { path = "../prefgraph/ops" }
//!
//! # Cargo takes profiles from the workspace that is built, so these lines do not come with the dependency. Without
//! # them kernels are not optimised in `cargo run` and `cargo test`, and a hundred times slower.
//! [profile.dev.package."*"]
//! opt-level = 3
//! ```
//!
//! dfdx comes as [`prefgraph_ops::dfdx`], at the version that the ports are made of; [`settings!`](prefgraph_ops::settings!)
//! needs no `serde`.
//!
//! # Modules
//!
//! ```text
//!  graph        what a step computes: operators, wires, a loss, carried state
//!  plan         when and where: shapes, tasks, lanes, lifetimes, memory; a value that can be printed and compared
//!  run          the execution of a plan, step by step
//!  sweep        several variants of a graph as one
//!  registry     operators by name
//!  spec         graphs from RON files
//!  cache        what frozen encoders compute, kept on the disk
//!  fingerprint  whether a file is the same file
//!  sources      the data and weights that a graph reads, and whether they have changed
//!  checkpoint   the state of a run between two steps, on the disk
//!  evaluate     scores of pictures, from their embeddings
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
pub mod evaluate;
mod fingerprint;
pub mod folder;
pub mod graph;
pub mod plan;
pub mod registry;
pub mod run;
pub mod sources;
pub mod spec;
pub mod sweep;

/// The processor: its kernels and worker threads.
pub use prefgraph_nn::Cpu;

pub use graph::{Endpoint, Graph, GraphError, NodeId, Tap, Wire};
pub use plan::{Plan, PlanError, PlanOptions, Task};
pub use registry::Registry;
pub use run::{RunError, RunOptions, Runner, StepOutput};

/// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
