//! What an operator is, and the operators of preference optimisation.
//!
//! ```text
//!  shape, port      what travels along an edge: a type, its run-time image, its shape
//!  inputs, operator what a node is: a differentiable function from ports to ports
//!  closure, vjp     operators written as dfdx expressions; their gradient comes from dfdx's tape
//!  settings         what a user may set, with documentation and defaults in one place
//!  identity, rows   what a cache on the disk has to know of operators and of ports
//!  resume           what an operator contributes to resuming a run
//!  part             what a node is to the nodes around it
//!  random           numbers as a pure function of (seed, node, step, purpose, element)
//!  ports            the kinds of value that the shipped operators exchange
//!  operators        the shipped operators; catalogue lists them
//! ```
//!
//! **Architecture invariant:** nothing here knows a graph, a plan or the text of a graph file. An operator is a
//! pure function from ports to ports; what it wants written to disk it returns as a value.

#![warn(clippy::print_stderr)]

pub mod catalogue;
pub mod closure;
pub mod guard;
pub mod identity;
pub mod inputs;
pub mod operator;
pub mod operators;
pub mod part;
pub mod port;
pub mod ports;
pub mod random;
pub mod resume;
pub mod rows;
pub mod settings;
pub mod shape;
pub mod vjp;

pub use identity::{Identity, ReadBatch, Sample};
pub use inputs::{Arity, Input, InputSpec, Inputs, OutputSpec, Outputs};
pub use operator::{Cost, Ctx, DynOperator, OpError, Operator, Residuals, Shared, Wanted};
pub use part::{Part, Toy};
pub use port::{Carried, Cotangent, Grad, NamedState, NamedTensor, NoGrad, Port, PortType, Scalar, T, Value};
pub use resume::{DataSample, External, Outside, Restart, Restated};
pub use rows::{Batched, Rows};
pub use settings::{DataPath, Nothing, SettingDoc, Settings};
pub use shape::{Axes, ErasedShape, PortShape};
