//! The operators that this library ships: one file or folder each.
//!
#![doc = include_str!("ports.md")]

pub mod as_target;
pub mod autoencoder;
pub mod backbone;
pub mod benchmark;
pub mod blank;
mod canvas;
pub mod cosine;
pub mod decode;
pub mod dropout;
mod due;
pub mod encode;
pub mod entropy;
pub mod export;
pub mod features;
pub mod forward;
pub mod fuse;
pub mod hook_attention;
pub mod image_prompt;
pub mod log;
pub mod lora;
pub mod lora_update;
pub mod mask_field;
pub mod masked_loss;
pub mod measure;
pub mod moments;
pub mod noise;
pub mod pairs;
mod pass;
pub mod patch_quality;
pub mod pick;
pub mod picture_embedding;
pub mod picture_features;
pub mod pictures;
pub mod preview;
pub mod prompt;
mod recorded;
pub mod reference;
pub mod refine;
pub mod replay;
pub mod sample;
pub mod scores;
pub mod sizes;
pub mod stored_embedding;
pub mod strip;
pub(crate) mod tensors;
pub mod text_embedding;
pub mod timestep;
pub mod weighted_loss;
mod weights;

#[cfg(test)]
mod golden;
#[cfg(test)]
pub(crate) mod testing;
