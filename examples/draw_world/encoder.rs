//! An identity encoder: what tells subjects apart, whatever the view.
//!
//! Shape letters: `E` width of an embedding, `S` side of what the encoder takes, in pixels.

use std::path::Path;

use image::RgbImage;
use prefgraph_nn::{
    Cpu, Tensor,
    vision::{Preprocess, Vit},
};

use crate::Failure;

/// An encoder with what it needs to run.
pub struct Encoder {
    device: Cpu,
    vit: Vit,
}

impl Encoder {
    /// The encoder of a folder in the layout of transformers.
    pub fn open(folder: &Path) -> Result<Self, Failure> {
        Ok(Self { device: Cpu::new(1)?, vit: Vit::open(folder)? })
    }

    /// The class token of a picture: `[E]`, of unit length.
    pub fn embed(&self, picture: &RgbImage) -> Result<Vec<f32>, Failure> {
        let side = self.vit.config().picture;
        let size = (picture.height() as usize, picture.width() as usize);
        let planes = Preprocess::imagenet(side, side).planes(picture, size);
        let pictures = Tensor::new(&self.device, (1, 3, side, side), planes)?;
        let tokens = self.vit.tokens(&self.device, &self.device, &pictures)?;
        // The class token stands first.
        let class = &tokens.values()[..self.vit.config().width];
        let length = class.iter().map(|x| x * x).sum::<f32>().sqrt();
        Ok(class.iter().map(|x| x / length).collect())
    }
}

/// The cosine of two embeddings of unit length.
pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
