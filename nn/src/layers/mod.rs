//! Layers: functions with an explicit backward, over the kernels of a device; those of encoders have a forward only.

mod branches;
mod context;
pub mod conv;
pub mod dense;
pub mod embedding;
pub mod frozen;
pub mod linear;
pub mod norm;
mod stored;

pub use branches::Branches;
pub use context::Context;
pub use dense::{Weight, dense, product_plain, product_transposed};
pub use frozen::{Frozen, FrozenBranch, Loading, Packing};
pub use linear::{InputGrad, Linear, Output, linears, linears_backward};
pub use stored::stored;
