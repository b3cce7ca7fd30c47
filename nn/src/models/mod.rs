//! Backbones made of layers.

pub mod flux;

pub use flux::{Checkpointing, FluxConfig, FluxFiles, FluxLayout, FluxOptions, FluxUno, FrozenUse};
