//! Frozen denoisers with LoRA: a plain library of backbones, forward and backward.
//!
//! ```text
//!  files      safetensors folders, mapped; written beside and renamed
//!  cpu, cuda  devices: buffers and kernels (the only places with `unsafe`)
//!  layers     functions with an explicit backward, over a device's kernels
//!  naming     what linears are called in the layouts of files
//!  models     backbones made of layers; lora: what is trained; optim: how it moves
//!  sampling   schedules and solvers: from noise to latents
//! ```
//!
//! **Architecture invariant:** nothing here knows an operator, a graph or a preference loss.
//!
//! **Architecture invariant:** the LoRA branch is added after the base product, never as extra columns of it,
//! so that with B = 0 a pass with the adapter and a pass without it give the same bits.

#![warn(clippy::print_stderr)]

pub mod autoencoders;
pub mod backbone;
pub mod cpu;
pub mod device;
pub mod error;
pub mod files;
pub mod layers;
pub mod lora;
pub mod models;
pub mod naming;
pub mod optim;
pub mod sampling;
pub mod tensor;
pub mod text;

/// Version of the arithmetic of encoders and autoencoders: raised whenever the bits that they give change, so that what was
/// kept from before is not taken for what they give now.
pub const ARITHMETIC: u32 = 2;

pub use backbone::{Backbone, BackboneLayout, Inputs, LinearLayout, Visitor};
pub use cpu::Cpu;
pub use device::Device;
pub use error::{Error, Result};
pub use lora::{Adapter, AdapterGrad, AdapterLayout};
pub use tensor::Tensor;
