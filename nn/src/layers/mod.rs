//! Layers: functions with an explicit backward, over the kernels of a device; those of encoders have a forward only.

mod branches;
pub mod buffers;
mod context;
pub mod conv;
pub mod dense;
pub mod embedding;
pub mod frozen;
pub mod linear;
pub mod norm;
mod rows;
mod stored;

pub use branches::Branches;
pub use buffers::{Buffer, Buffers};
pub use context::Context;
pub use dense::{Weight, dense, product_plain, product_transposed};
pub use frozen::{Frozen, FrozenBranch, Loading, Packing};
pub use linear::{Input, InputGrad, Linear, Output, linears, linears_backward};
pub use rows::copy_rows;
pub use stored::stored;
