//! The operator trait, and the operators of preference optimisation.
//!
//! # An operator of your own
//!
//! An operator is a function from ports to ports and its vector-Jacobian product. The types of `In` and `Out` are the
//! contract of its edges, [`settings!`] declares what a graph file may set, and `Saved` is what `forward` keeps for
//! `backward`:
//!
//! ```
//! use prefgraph_ops::{
//!     Ctx, OpError, Operator, Wanted,
//!     dfdx::tensor::TensorFromVec,
//!     operator::{InGrads, InShapes, OutGrads, OutShapes},
//!     tensor::host,
//!     ports::Latents,
//!     settings,
//!     testing::check_gradients,
//! };
//!
//! settings! {
//!     /// Settings of [`SoftClip`].
//!     pub struct SoftClipSettings {
//!         /// Bound of every value.
//!         pub limit: f32 = 3.0,
//!     }
//! }
//!
//! /// `limit * tanh(x / limit)`.
//! pub struct SoftClip(SoftClipSettings);
//!
//! impl Operator for SoftClip {
//!     const NAME: &'static str = "soft-clip"; // in a graph file: op: "soft-clip"
//!     const DOC: &'static str = "Bound latents smoothly.";
//!     const IN: [&'static str; 1] = ["latents"];
//!     const OUT: [&'static str; 1] = ["latents"];
//!     type Settings = SoftClipSettings;
//!     type In = (Latents,);
//!     type Out = (Latents,);
//!     type Saved = Latents;
//!     const DIFFERENTIABLE: bool = true;
//!
//!     fn new(settings: SoftClipSettings) -> Result<Self, OpError> {
//!         if settings.limit.is_nan() || settings.limit <= 0.0 {
//!             return Err(OpError::new(format!("limit {}: a positive number is needed", settings.limit)));
//!         }
//!         Ok(Self(settings))
//!     }
//!
//!     fn shapes(&self, (latents,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
//!         Ok((latents,))
//!     }
//!
//!     fn forward(&self, _: &Ctx<'_>, (latents,): Self::In) -> Result<(Self::Out, Latents), OpError> {
//!         let unit = (latents / self.0.limit).tanh();
//!         Ok(((unit.clone() * self.0.limit,), unit))
//!     }
//!
//!     fn backward(
//!         &self,
//!         _: &Ctx<'_>,
//!         wanted: Wanted<'_>,
//!         unit: Latents,
//!         (grad,): OutGrads<Self>, // `None` is zero, here and in what is returned
//!     ) -> Result<InGrads<Self>, OpError> {
//!         Ok((grad.filter(|_| wanted[0]).map(|grad| grad * (-unit.square() + 1.0)),))
//!     }
//! }
//!
//! // Is `backward` the derivative of `forward`? By finite differences:
//! let values: Vec<f32> = (0..24).map(|i| 0.5 * i as f32 - 6.0).collect();
//! let latents = host().tensor_from_vec(values, (1, 2, 3, 4));
//! check_gradients(&SoftClip::new(SoftClipSettings::default())?, (latents,))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`testing`] says what [`check_gradients`](testing::check_gradients) compares, and how closely. A loss or any other short
//! function of tensors needs no operator: `Graph::op` in `prefgraph` takes a closure, and dfdx's tape gives its gradient.
//! How an operator gets into the command `graph-run` is in the guide of `prefgraph`.
//!
//! # Ports and roles
//!
//! [`ports`] lists the kinds of value that the shipped operators exchange; [`operators`] lists the operators with their
//! ports. A prediction and its target have the same axes, so their types differ in a [`Role`]: an operator that takes
//! [`Latents`](ports::Latents) takes them in any role, one that takes a [`Target`](ports::Target) takes nothing else.
//! A result without a role, such as a closure's, fits every input of its axes.
//!
//! # Modules
//!
//! ```text
//!  shape, port      what travels along an edge: a type, its run-time image, its shape
//!  role             what a value is for, where its axes do not tell
//!  inputs, operator what a node is: a differentiable function from ports to ports
//!  closure, vjp     operators written as dfdx expressions; their gradient comes from dfdx's tape
//!  settings         what a user may set, with documentation and defaults in one place
//!  testing          whether a backward is the derivative of its forward
//!  identity, rows   what a cache on the disk has to know of operators and of ports
//!  resume           what an operator contributes to resuming a run
//!  part             what a node is to the nodes around it
//!  random           numbers as a pure function of (seed, node, step, purpose, element)
//!  words            counts, for people
//!  ports            the kinds of value that the shipped operators exchange
//!  operators        the shipped operators; catalogue lists them
//! ```
//!
//! **Architecture invariant:** nothing here knows a graph, a plan or the text of a graph file. An operator is a
//! pure function from ports to ports; what it wants written to disk it returns as a value.

#![warn(clippy::print_stderr)]

// `settings!` names this crate in a string, in which `$crate` has no meaning: inside it, too, it has its outer name.
extern crate self as prefgraph_ops;

pub mod batched;
pub mod catalogue;
pub mod closure;
pub mod error;
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
pub mod role;
mod row_major;
pub mod rows;
pub mod settings;
pub mod shape;
pub mod state;
pub mod tensor;
pub mod testing;
pub mod vjp;
pub mod words;

pub use batched::Batched;
pub use error::{Fault, OpError};
pub use identity::{Identity, ReadBatch, Sample};
pub use inputs::{Arity, Input, InputSpec, Inputs, OutputSpec, Outputs};
pub use operator::{Cost, Ctx, DynOperator, Operator, Residuals, Shared, Wanted};
pub use part::{Part, Sum, Toy};
pub use port::{Carried, Cotangent, Grad, NamedState, NamedTensor, NoGrad, Port, PortType, Scalar, T, Value};
pub use resume::{DataSample, External, Outside, Restart, Restated};
pub use role::{As, Role};
pub use rows::SampleRows;
pub use settings::{DataPath, Nothing, SettingDoc, Settings};
pub use shape::{Axes, ErasedShape, PortShape};

/// The tensors of ports, at the version that their types are of.
pub use dfdx;

/// What the macros of this crate expand to; no part of its interface.
#[doc(hidden)]
pub mod __private {
    pub use serde;
}
