//! Files of named tensors: safetensors, single or sharded, mapped and read on demand.

mod bounds;
mod kind;
mod open;
mod read;
mod recognise;
mod unfinished;
mod values;
mod view;
mod write;

pub(crate) use kind::{config_beside, model_config, no_model, read_json, read_model_config, stated_kind};
pub use open::{open_regular, read_regular};
pub(crate) use read::nearest;
pub use read::{TensorFiles, TensorInfo};
pub use safetensors::Dtype;
pub use unfinished::{UNFINISHED, Unfinished, is_at, is_unfinished, remove_abandoned, remove_if_abandoned};
pub use values::Values;
pub use view::{Piece, TensorView};
pub(crate) use write::write_hollow;
pub use write::{NamedTensor, write_atomically, write_safetensors, write_safetensors_checked};
