//! Vision encoders: from pictures to tokens and embeddings, and from their tokens to prompts.

mod bicubic;
pub mod preprocess;
pub mod resampler;
pub mod vit;

pub use preprocess::{Middle, Preprocess};
pub use resampler::{ImageResampler, Resampler, ResamplerSizes};
pub use vit::{Vit, VitEncoder};
