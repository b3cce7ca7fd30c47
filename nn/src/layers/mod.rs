//! Layers: functions with an explicit backward, over the kernels of a device; those of encoders have a forward only.

pub mod buffers;
pub mod conv;
pub mod dense;
pub mod embedding;
pub mod linear;
pub mod norm;
mod rows;
mod stored;

pub use buffers::{Buffer, Buffers};
pub use dense::{Weight, dense, product_plain, product_transposed};
pub use linear::{Branches, Context, Input, InputGrad, Linear, Output, linears, linears_backward};
pub use rows::copy_rows;
pub use stored::stored;
