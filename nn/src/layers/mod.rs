//! Layers: functions with an explicit backward, over the kernels of a device; those of encoders have a forward only.

mod approach;
mod attention;
mod branches;
mod context;
pub mod conv;
mod conv_trained;
mod embedder;
pub mod embedding;
mod factors;
pub mod frozen;
pub mod linear;
mod linear_trained;
mod map;
mod norm;
mod stored;
mod vector;

pub use approach::approach;
pub use attention::{Attention, attention_flops};
pub use branches::Branches;
pub use context::Context;
pub use conv::Conv;
pub use embedder::{Embedder, sinusoid};
pub use factors::FactorGroups;
pub use frozen::{Frozen, FrozenBranch, Loading, Packing};
pub use linear::{InputGrad, Linear, Output, inner, linears, linears_of_samples};
pub use linear_trained::{adapter_backward, input_backward, linears_backward};
pub use map::Map;
pub use norm::{GroupNorm, Norm};
pub use stored::stored;
pub use vector::vector;
