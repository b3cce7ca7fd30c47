//! Backbones made of layers.

mod adapter;
mod checkpointing;
pub mod flux;
mod footprint;
mod inputs;
mod queue;
pub mod unet;

pub use checkpointing::Checkpointing;
pub use flux::{FluxConfig, FluxFiles, FluxLayout, FluxOptions, FluxUno, FrozenUse};
pub use unet::{SdxlUNet, UNetConfig, UNetFiles, UNetOptions};
