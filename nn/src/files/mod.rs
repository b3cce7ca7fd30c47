//! Files of named tensors: safetensors, alone or in shards, mapped and not read until asked for.

mod read;
mod write;

pub(crate) use read::nearest;
pub use read::{TensorFiles, TensorInfo};
pub use safetensors::Dtype;
pub use write::{NamedTensor, write_atomically, write_safetensors};
