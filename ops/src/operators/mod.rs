//! The operators that this library ships: one file or folder each.

pub mod entropy;
pub mod fuse;
pub mod hook_attention;
pub mod mask_field;
pub mod masked_loss;
pub mod noise;
pub(crate) mod tensors;
pub mod timestep;

#[cfg(test)]
pub(crate) mod testing;
