//! Backbones made of layers.

pub mod flux;

pub use flux::{FluxConfig, FluxFiles, FluxUno};
