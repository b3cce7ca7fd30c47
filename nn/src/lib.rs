//! Frozen denoisers with LoRA: a plain library of backbones, forward and backward.
//!
//! # A backbone and an adapter
//!
//! Opening a backbone reads headers only; weights are mapped and read by the first pass. An adapter is a layout, which
//! linears at which rank, and one flat run of values:
//!
//! ```
//! use std::{path::Path, sync::Arc};
//!
//! use prefgraph_nn::{
//!     Adapter, AdapterLayout, Backbone, Cpu,
//!     lora::{AdapterFormat, Init},
//!     models::FluxUno,
//! };
//!
//! let backbone = FluxUno::open(Cpu::new(1)?, Path::new("../data/demo/backbone"))?;
//! let (layout, named) = AdapterLayout::matching(&backbone.layout().linears, &["attn.to_q"], 4, 4.0)?;
//! assert_eq!(named[0].linears, layout.modules.len());
//!
//! // B is zero: with this adapter a pass gives the bits of the frozen network.
//! let adapter = Adapter::new(Arc::new(layout), Init::KaimingUniform, |_linear| || 0.25);
//! let folder = tempfile::tempdir()?;
//! let file = folder.path().join("adapter.safetensors");
//! adapter.write(&file, AdapterFormat::Diffusers, &[])?;
//! assert!(Adapter::read(&file, &backbone.layout().linears)?.values.equals(&adapter.values)?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Numbers for A come from outside, since nothing here draws any; `prefgraph_ops::random` is a source.
//! `prefgraph` and `prefgraph-ops` have guides to graphs and to operators.
//!
//! # Modules
//!
//! ```text
//!  files       safetensors, mapped; written under a temporary name and renamed
//!  cpu, cuda   devices: buffers and kernels (the only modules with `unsafe`)
//!  layers      functions with an explicit backward, over the kernels of a device
//!  linears     the linears of a model; naming: their names in the layouts of files
//!  models      backbones built from layers
//!  lora        what is trained; optim: how it is updated
//!  autoencoders, text, vision   pictures and prompts as the inputs of a backbone
//!  encoders    what encoders of text and of pictures share
//!  published   networks as they were published, by their sizes alone
//!  once        values that are made when they are first asked for
//!  size        sums and products of sizes that cannot overflow
//!  sampling    schedules and solvers: from noise to latents
//! ```
//!
//! **Architecture invariant:** nothing here knows an operator, a graph or a preference loss.
//!
//! **Architecture invariant:** the LoRA branch is added after the base product, never as extra columns of it,
//! so that with B = 0 a pass with the adapter and a pass without it give the same bits.

#![warn(clippy::print_stderr)]

pub mod autoencoders;
pub mod backbone;
mod cost;
pub mod cpu;
pub mod cuda;
pub mod device;
mod encoders;
pub mod error;
pub mod files;
mod fnv;
pub mod layers;
pub mod linears;
pub mod lora;
pub mod models;
pub mod naming;
pub mod once;
pub mod optim;
pub mod published;
pub mod sampling;
pub mod size;
pub mod tensor;
pub mod text;
pub mod vision;

/// Version of the arithmetic of encoders and autoencoders: raised whenever the bits that they give change, so that what was
/// kept from before is not taken for what they give now.
pub const ARITHMETIC: u32 = 3;

pub use backbone::{Backbone, BackboneLayout, Inputs, Prediction, Probe};
pub use cost::{DeviceKind, PassCost};
pub use cpu::Cpu;
pub use device::Device;
pub use error::{Error, Result};
pub use linears::{LinearLayout, Linears};
pub use lora::{Adapter, AdapterGrad, AdapterLayout};
pub use tensor::Tensor;
