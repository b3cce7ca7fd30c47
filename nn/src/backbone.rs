//! The interface of a frozen denoiser.
//!
//! Shape letters: `N` batch, `C` latent channels, `H` `W` latent grid, `L` text tokens, `E` text width,
//! `P` pooled width, `T` image tokens of the target and of every reference, `D` width of the stream.

use std::any::Any;

use crate::{
    cpu::Precision,
    error::Result,
    lora::{Adapter, AdapterGrad},
    tensor::Tensor,
};

pub use crate::linears::LinearLayout;

/// Latents, `[N, C, H, W]`.
pub type Latents = Tensor<(usize, usize, usize, usize)>;

/// The time that a backbone takes, and with it the noise that it was trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// Sigma in [0, 1] of a rectified flow; the prediction is the velocity.
    Sigma,
    /// A whole timestep of DDPM, 0..1000; the prediction is eps or v.
    Step,
}

/// What can be known of a backbone from its configuration alone, before a weight is read.
#[derive(Clone, Debug, PartialEq)]
pub struct BackboneLayout {
    /// Kind of model, e.g. `flux-uno`.
    pub kind: String,
    /// `C`.
    pub channels: usize,
    /// Latent cells along each side of a token: 2 where a token is a 2x2 patch.
    pub patch: usize,
    /// `E`.
    pub text_width: usize,
    /// `P`.
    pub pooled_width: usize,
    /// `D`.
    pub width: usize,
    /// Number of blocks that call a visitor.
    pub blocks: usize,
    /// Attention heads.
    pub heads: usize,
    /// The time that it takes.
    pub time: Time,
    /// Does it take a guidance value?
    pub guidance: bool,
    /// The linears an adapter may have factors for, in the order of the model.
    pub linears: Vec<LinearLayout>,
    /// Number of frozen parameters.
    pub parameters: usize,
}

impl BackboneLayout {
    /// Are its widths those of FLUX.1? Such a network was trained with FLUX's autoencoder, with T5-XXL and CLIP-L.
    pub fn has_the_widths_of_flux1(&self) -> bool {
        (self.width, self.text_width, self.pooled_width) == (3072, 4096, 768)
    }
}

/// The inputs of one pass. Every tensor has the same `N`.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Noised latents, `[N, C, H, W]`.
    pub x_t: Latents,
    /// Time of each sample, `[N]`: see [`Time`].
    pub t: Vec<f32>,
    /// Text tokens, `[N, L, E]`.
    pub text: Tensor<(usize, usize, usize)>,
    /// Pooled text, `[N, P]`.
    pub pooled: Tensor<(usize, usize)>,
    /// Clean latents of each reference, `[N, C, h, w]`, in order.
    pub references: Vec<Latents>,
    /// Guidance value where the model takes one.
    pub guidance: Option<f32>,
}

/// The image tokens after one block, as a [`Visitor`] sees them: the target's, and apart from them those of all
/// references, sample after sample.
#[derive(Clone, Debug)]
pub struct BlockTokens<'a> {
    /// Number of the block, from zero, over all kinds of blocks.
    pub block: usize,
    /// `N`.
    pub batch: usize,
    /// `D`.
    pub width: usize,
    /// The target's tokens of all samples, `[N, tokens, D]`.
    pub targets: &'a [f32],
    /// The references' tokens of all samples, `[N, tokens of all references, D]`.
    pub references: &'a [f32],
    /// Number of tokens of each reference, in order.
    pub reference_tokens: &'a [usize],
}

impl<'a> BlockTokens<'a> {
    /// The target's tokens of one sample, `[tokens, D]`.
    ///
    /// # Panics
    /// If there is no such sample.
    pub fn target(&self, sample: usize) -> &'a [f32] {
        let len = self.targets.len() / self.batch;
        &self.targets[sample * len..(sample + 1) * len]
    }

    /// The tokens of one reference of one sample, `[tokens, D]`.
    ///
    /// # Panics
    /// If there is no such sample or reference.
    pub fn reference(&self, sample: usize, reference: usize) -> &'a [f32] {
        let all: usize = self.reference_tokens.iter().sum();
        let before: usize = self.reference_tokens[..reference].iter().sum();
        let start = (sample * all + before) * self.width;
        &self.references[start..start + self.reference_tokens[reference] * self.width]
    }
}

/// Is called with the image tokens after every block, as the pass runs; what it wants to keep it must reduce.
pub trait Visitor: Send {
    /// One block has run.
    fn block(&mut self, tokens: &BlockTokens<'_>);

    /// Does it look at the tokens at all? Where it does not, [`block`](Self::block) is not called, and a pass
    /// leaves out rows that only a visitor would see.
    fn looks(&self) -> bool {
        true
    }
}

/// The visitor that looks at nothing.
impl Visitor for () {
    fn block(&mut self, _: &BlockTokens<'_>) {}
    fn looks(&self) -> bool {
        false
    }
}

/// What a pass keeps for its backward; only the backbone that made it knows what is inside.
pub struct Saved(pub Box<dyn Any + Send>);

/// Floating-point operations and bytes of one pass, for planning.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PassCost {
    /// Of the forward.
    pub forward_flops: f64,
    /// Of the backward into the adapter.
    pub backward_flops: f64,
    /// Held from forward to backward.
    pub saved_bytes: usize,
    /// Held while a pass runs.
    pub scratch_bytes: usize,
    /// Held while a backward runs.
    pub backward_scratch_bytes: usize,
    /// What the operands of products are rounded to: most operations are those of products.
    pub precision: Precision,
}

/// A frozen denoiser with room for a LoRA.
pub trait Backbone: Send + Sync {
    /// What is known of it without its weights.
    fn layout(&self) -> &BackboneLayout;

    /// Read the weights now, if they were not read yet. Passes do this by themselves.
    ///
    /// # Errors
    /// If a file is gone, torn or holds a value that is not finite.
    fn load(&self) -> Result<()>;

    /// The prediction `[N, C, H, W]`, with nothing kept.
    ///
    /// # Errors
    /// If a shape does not fit the model, or the weights cannot be read.
    fn predict(
        &self,
        inputs: &Inputs,
        adapter: Option<&Adapter>,
        visitor: &mut dyn Visitor,
    ) -> Result<Latents>;

    /// The same prediction, the same bits, and what [`backward`](Self::backward) needs.
    ///
    /// # Errors
    /// As [`predict`](Self::predict).
    fn predict_saving(
        &self,
        inputs: &Inputs,
        adapter: &Adapter,
        visitor: &mut dyn Visitor,
    ) -> Result<(Latents, Saved)>;

    /// The derivative by the adapter, given the derivative by the prediction.
    ///
    /// # Errors
    /// If the cotangent has another shape than the prediction.
    fn backward(&self, saved: Saved, adapter: &Adapter, cotangent: &Latents) -> Result<AdapterGrad>;

    /// Image tokens of the last double block for a batch of clean latents, `[N, T, D]` of the target: a stand-in
    /// for a vision encoder.
    ///
    /// # Errors
    /// As [`predict`](Self::predict).
    fn features(&self, inputs: &Inputs) -> Result<Tensor<(usize, usize, usize)>>;

    /// Bytes that packed weights hold once passes with such an adapter, or without one, have run forward, and with one
    /// backward too. Mapped files are not counted: the system gives their memory to others when it is needed.
    fn resident_bytes(&self, adapter: Option<&crate::lora::AdapterLayout>) -> usize;

    /// The cost of a pass over `batch` samples of `grid` latent cells with references of these grids and `text`
    /// tokens, with an adapter of this many modules at this rank.
    fn cost(
        &self,
        batch: usize,
        grid: (usize, usize),
        references: &[(usize, usize)],
        text: usize,
        adapter: Option<&crate::lora::AdapterLayout>,
    ) -> PassCost;
}
