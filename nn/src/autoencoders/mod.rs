//! From pictures to latents.

pub mod dct;

pub use dct::Dct;
