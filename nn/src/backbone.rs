//! The interface of a frozen denoiser.
//!
//! Shape letters: `N` batch, `B` samples of text, `C` latent channels, `H` `W` latent grid, `L` text tokens, `E` text width,
//! `P` pooled width, `T` image tokens of the target and of every reference, `D` width of the stream, `K` image tokens of a prompt,
//! `R` references, `S` tokens that an image encoder makes of one, `I` their width.

use std::{any::Any, ops::Range};

use crate::{
    error::{Error, Result},
    lora::{Adapter, AdapterGrad},
    tensor::Tensor,
};

pub use crate::{
    cost::{DeviceKind, PassCost},
    linears::{LinearLayout, Linears},
};

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
    /// Rows and columns of the latents must be multiples of this: of a patch, and of what a U-Net halves on its way down.
    pub whole: usize,
    /// `E`.
    pub text_width: usize,
    /// `P`.
    pub pooled_width: usize,
    /// `D`.
    pub width: usize,
    /// Number of blocks that a probe can ask about.
    pub blocks: usize,
    /// Attention heads.
    pub heads: usize,
    /// The time that it takes.
    pub time: Time,
    /// Does it take a guidance value?
    pub guidance: bool,
    /// Does it take the sizes and crops of pictures?
    pub sizes: bool,
    /// Does it take image tokens, `E` wide, beside the text?
    pub image_tokens: bool,
    /// Image tokens that the resampler of its IP-Adapter makes of a picture, where its file has one.
    pub queries: Option<usize>,
    /// Latent cells along each side of a pixel in each block of a U-Net; empty where the tokens of all blocks are the same.
    pub block_cells: Vec<usize>,
    /// Where it makes them itself: the tokens of an image encoder that it takes in their place.
    pub pictures: Option<Pictures>,
    /// The linears an adapter may have factors for, and their names in files.
    pub linears: Linears,
    /// Number of frozen parameters.
    pub parameters: usize,
}

/// What a network takes of every reference that makes image tokens itself, by a resampler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pictures {
    /// `S`.
    pub count: usize,
    /// `I`.
    pub width: usize,
    /// Image tokens that the resampler makes of them.
    pub queries: usize,
}

impl BackboneLayout {
    /// Width of the image tokens that it is given: `E`, or `I` where it makes them itself.
    pub fn prompt_width(&self) -> usize {
        self.pictures.map_or(self.text_width, |pictures| pictures.width)
    }

    /// `K`, the image tokens that its attentions see where it is given so many; nothing if they are not those of whole references.
    pub fn prompt_tokens(&self, given: usize) -> Option<usize> {
        match self.pictures {
            None => Some(given),
            Some(Pictures { count, queries, .. }) => {
                given.is_multiple_of(count.max(1)).then(|| given / count.max(1) * queries)
            }
        }
    }

    /// Are its widths those of FLUX.1? Such a network was trained with FLUX's autoencoder, with T5-XXL and CLIP-L.
    pub fn has_the_widths_of_flux1(&self) -> bool {
        (self.width, self.text_width, self.pooled_width) == (3072, 4096, 768)
    }
}

/// The inputs of one pass. Every tensor has the same `N`, but text may have fewer samples, which are repeated: winner and loser share
/// theirs, and it is the largest of the inputs.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Noised latents, `[N, C, H, W]`.
    pub x_t: Latents,
    /// Time of each sample, `[N]`: see [`Time`].
    pub t: Vec<f32>,
    /// Text tokens, `[B, L, E]`, where `B` divides `N`: row `n` has those of sample `n % B`.
    pub text: Tensor<(usize, usize, usize)>,
    /// Pooled text, `[N, P]`.
    pub pooled: Tensor<(usize, usize)>,
    /// Clean latents of each reference, `[N, C, h, w]`, in order.
    pub references: Vec<Latents>,
    /// Guidance value where the model takes one.
    pub guidance: Option<f32>,
    /// What each sample's picture is said to be where the model takes sizes, else nothing: its height and width before it was
    /// scaled, rows and columns that were cropped above and left, and the height and width that are wanted.
    pub sizes: Vec<[f32; 6]>,
    /// Image tokens of all references, one reference after the other, `[N, K, E]`, where the model takes them; those of the image encoder,
    /// `[N, R S, I]`, where it [makes](BackboneLayout::pictures) image tokens itself.
    pub image_tokens: Option<Tensor<(usize, usize, usize)>>,
    /// What attention over image tokens is multiplied by in this pass; what the model was opened with where nothing is said. With 0
    /// the pass is that of the model without its IP-Adapter.
    pub image_scale: Option<f32>,
}

/// What is asked of the image tokens after blocks, while a pass runs. Tokens that nobody asks about are not computed where a
/// pass can leave them out.
#[derive(Clone, Debug, Default)]
pub struct Probe<'a> {
    /// How much each target token resembles each reference.
    pub scores: Option<Scoring<'a>>,
    /// The tokens themselves, after these blocks. They are copied to the host: for tests and for looking at a network.
    pub tokens: Range<usize>,
}

/// Which cosines are wanted between the mean of a reference's tokens and each target token.
///
/// In a U-Net, which has no references among its tokens, blocks are its cross-attentions, in the order of a pass: a reference is its
/// share of the image tokens, as keys, and a target token a latent cell, with the query of the pixel that covers it.
#[derive(Clone, Debug)]
pub struct Scoring<'a> {
    /// After which blocks; the answer is the mean over them.
    pub blocks: Range<usize>,
    /// Of these blocks only those whose pixels are so many latent cells wide, in a U-Net; all where nothing is said.
    pub cells: Option<usize>,
    /// Of how many samples, the first ones.
    pub samples: usize,
    /// For each reference the weights of its tokens in the mean, sample after sample.
    pub masks: &'a [Vec<f32>],
}

impl Probe<'_> {
    /// Asks nothing.
    pub const NOTHING: Probe<'static> = Probe { scores: None, tokens: 0..0 };

    /// Does it ask anything?
    pub fn asks(&self) -> bool {
        let scores = self.scores.as_ref().is_some_and(|s| !s.blocks.is_empty() && !s.masks.is_empty());
        scores || !self.tokens.is_empty()
    }
}

/// What a pass gives.
#[derive(Clone, Debug)]
pub struct Prediction {
    /// `[N, C, H, W]`.
    pub latents: Latents,
    /// For each reference `[samples, T]`, where the probe asked for scores.
    pub scores: Vec<Vec<f32>>,
    /// After each block that the probe named.
    pub tokens: Vec<BlockTokens>,
}

/// The image tokens after one block.
#[derive(Clone, Debug)]
pub struct BlockTokens {
    /// Number of the block, from zero, over all kinds of blocks.
    pub block: usize,
    /// The target's tokens of all samples, `[N, tokens, D]`; in a U-Net the queries of a cross-attention.
    pub targets: Vec<f32>,
    /// The references' tokens of all samples, `[N, tokens of all references, D]`; in a U-Net the keys of the image tokens.
    pub references: Vec<f32>,
}

/// What a pass keeps for its backward; only the backbone that made it knows what is inside.
pub struct Saved(pub Box<dyn Any + Send>);

impl Saved {
    /// What a pass kept.
    pub fn new(kept: impl Any + Send) -> Self {
        Self(Box::new(kept))
    }

    /// What is inside, for the backbone that made it.
    ///
    /// # Errors
    /// If another kind of backbone made it.
    pub fn take<T: Any>(self) -> Result<T> {
        match self.0.downcast() {
            Ok(kept) => Ok(*kept),
            Err(_) => Err(Error::Setting("what was kept comes from another kind of backbone".into())),
        }
    }
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

    /// The adapter where the network runs, so that passes need not bring it there one by one.
    ///
    /// # Errors
    /// If a device fails or has no room.
    fn place(&self, adapter: Adapter) -> Result<Adapter>;

    /// The prediction, with nothing kept.
    ///
    /// # Errors
    /// If a shape does not fit the model, or the weights cannot be read.
    fn predict(&self, inputs: &Inputs, adapter: Option<&Adapter>, probe: &Probe<'_>) -> Result<Prediction>;

    /// The same prediction, the same bits, and what [`backward`](Self::backward) needs.
    ///
    /// # Errors
    /// As [`predict`](Self::predict).
    fn predict_saving(
        &self,
        inputs: &Inputs,
        adapter: &Adapter,
        probe: &Probe<'_>,
    ) -> Result<(Prediction, Saved)>;

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

    /// Bytes that weights hold on a device of this kind once passes with such an adapter, or without one, have run forward, and
    /// with one backward too. Mapped files are not counted: the system gives their memory to others when it is needed.
    fn resident_bytes(&self, on: DeviceKind, adapter: Option<&crate::lora::AdapterLayout>) -> usize;

    /// The cost, on a device of this kind, of a pass over `batch` samples of `grid` latent cells with references of these grids
    /// and `text` tokens, with an adapter of this many modules at this rank.
    fn cost(
        &self,
        on: DeviceKind,
        batch: usize,
        grid: (usize, usize),
        references: &[(usize, usize)],
        text: usize,
        adapter: Option<&crate::lora::AdapterLayout>,
    ) -> PassCost;
}
