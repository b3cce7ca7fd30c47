//! The text encoders of CLIP (Radford et al. 2021): CLIP-L, which FLUX and SDXL have, and OpenCLIP ViT-bigG, which SDXL has beside
//! it. A transformer of which every token sees itself and earlier ones.
//!
//! Shape letters: `B` prompts, `L` tokens of each, `E` width, `P` width of the pooled vector: that of the projection where there
//! is one, else E.
//!
//! Architecture and names are those of transformers' `CLIPTextModel` and `CLIPTextModelWithProjection`; names may lack the prefix
//! `text_model.`. Whole checkpoints of SDXL in one file are read as well.

mod config;
mod model;
mod open_clip;
mod projection;
mod source;

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

pub use config::ClipConfig;
use config::LEGACY_EOS;
pub use model::ClipModel;
use projection::Projection;
use source::Source;

use super::length_of;
use crate::{
    cost::PassCost,
    cpu::{Cpu, map::check_lengths},
    device::{Device, Kind, NormKind, Queue, Scores, View},
    encoders::{
        block::{self, Block, BlockNames},
        check_finite,
        config::{configuration, open_stated},
        measure, must_be_model,
        weights::{LOADING, PrefixedFiles, placed},
    },
    error::{Error, Result},
    layers::Norm,
    once::get_or_try_init,
    tensor::Tensor,
};

/// What [`ClipEncoder::encode`] gives.
#[derive(Clone, Debug)]
pub struct ClipText {
    /// Tokens after the last norm, `[B, L, E]`.
    pub tokens: Tensor<(usize, usize, usize)>,
    /// Tokens before the last block, without a norm, `[B, L, E]`: what SDXL was trained with.
    pub penultimate: Tensor<(usize, usize, usize)>,
    /// The token that ends each text, after the last norm and the projection, if the model has one, `[B, P]`.
    pub pooled: Tensor<(usize, usize)>,
}

/// A CLIP text encoder on the processor.
pub type Clip = ClipEncoder<Cpu>;

/// A CLIP text encoder whose matrices stay in their file. Norms and biases are read by the first pass, for its device; later
/// passes are to run on the same one.
#[derive(Debug)]
pub struct ClipEncoder<D: Device> {
    config: ClipConfig,
    model: ClipModel,
    files: PrefixedFiles,
    source: Source,
    weights: OnceLock<Weights<D>>,
}

#[derive(Debug)]
struct Weights<D: Device> {
    blocks: Vec<Block<D>>,
    norm: Norm<D>,
    projection: Option<Projection<D>>,
}

impl<D: Device> ClipEncoder<D> {
    /// Open a folder with `config.json` and `model.safetensors` or the index of its shards, or one file, as ComfyUI has it or a
    /// whole checkpoint of SDXL: of that the sizes come from a `config.json` of a CLIP text encoder beside it, or from its
    /// tensors. Only headers are read.
    ///
    /// # Errors
    /// If a file is missing or cut off, it is of another model than the one that is wanted, or tensors are missing, surplus, of
    /// other shapes or in fp8.
    pub fn open(path: &Path, model: ClipModel) -> Result<Self> {
        must_be_model(path, model.what(), model.folder())?;
        let (stated, files) = open_stated(path)?;
        let source = Source::of(&files, model);
        measure::no_fp8(&files, source.prefix, &format!("e.g. `{}`", model.file()))?;
        let measured = || ClipConfig::measured(&files, &source, model);
        let (config, stated_in) = configuration(path, stated, measured)?;
        config.check_is(model, &stated_in)?;
        config.bound(&stated_in, &files)?;
        let mut expected = placed((source.prefix, source.layout), config.tensors());
        if model.is_projected() {
            let shape = source.projection_shape(config.hidden_size, config.projection_dim);
            expected.push((source.projection.into(), shape.into()));
        }
        files.expect_exactly_under(&source.blocks(), &expected)?;
        let files = PrefixedFiles::new(Arc::new(files), source.prefix, &expected).in_layout(source.layout);
        Ok(Self { config, model, files, source, weights: OnceLock::new() })
    }

    /// The sizes.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// Number of frozen values.
    pub fn parameters(&self) -> usize {
        self.files.parameters
    }

    /// Bytes of the mapped file that they are read from.
    pub fn weight_bytes(&self) -> usize {
        self.files.weight_bytes
    }

    /// P.
    pub fn pooled_width(&self) -> usize {
        if self.model.is_projected() { self.config.projection_dim } else { self.config.hidden_size }
    }

    /// What `prompts` prompts of `length` tokens take.
    pub fn cost(&self, prompts: usize, length: usize) -> PassCost {
        block::cost(self.config.block(), self.config.num_hidden_layers, prompts, length)
    }

    /// Tokens and pooled vectors of `prompts` prompts with equally many ids, one after the other in `ids`; tensors of the
    /// caller live on `host`.
    ///
    /// # Errors
    /// If there are no or too many tokens, an id is not in the vocabulary, a prompt has no end, or weights cannot be
    /// read.
    pub fn encode(&self, device: &D, host: &Cpu, prompts: usize, ids: &[u32]) -> Result<ClipText> {
        let length = length_of(prompts, ids)?;
        let (e, most) = (self.config.hidden_size, self.config.max_position_embeddings);
        if length > most {
            return Err(Error::Setting(format!(
                "{length} tokens a prompt: this encoder takes at most {most}"
            )));
        }
        let mut x =
            self.files.embed("embeddings.token_embedding.weight", (self.config.vocab_size, e), ids)?;
        let positions: Vec<u32> = (0..length as u32).collect();
        let positions = self.files.embed("embeddings.position_embedding.weight", (most, e), &positions)?;
        for sample in x.chunks_exact_mut(length * e) {
            sample.iter_mut().zip(&positions).for_each(|(x, position)| *x += position);
        }
        let weights = self.weights(device)?;
        let queue = device.queue(LOADING.precision)?;
        let mut stream = queue.upload(&x, Kind::Activation);
        // A token does not see those that come after it.
        let scores = Scores { causal: true, ..Scores::PLAIN };
        let mut penultimate = Vec::new();
        for (number, block) in weights.blocks.iter().enumerate() {
            check_lengths()?;
            if number + 1 == weights.blocks.len() {
                penultimate = queue.download(&stream, 0, x.len())?;
            }
            block.run(&queue, (prompts, length), scores, &mut stream)?;
        }
        let tokens = weights.norm.run(&queue, prompts * length, View::new(&stream, e));
        let tokens = queue.download(&tokens, 0, x.len())?;
        check_finite(&tokens, "CLIP text encoder")?;
        let mut pooled = Vec::with_capacity(prompts * e);
        for (sample, ids) in tokens.chunks_exact(length * e).zip(ids.chunks_exact(length)) {
            pooled.extend_from_slice(&sample[self.end_of(ids)? * e..][..e]);
        }
        if let Some(projection) = &weights.projection {
            let ends = queue.upload(&pooled, Kind::Activation);
            let projected = projection.run(&queue, prompts, View::new(&ends, e))?;
            pooled = queue.download(&projected, 0, prompts * self.pooled_width())?;
            check_finite(&pooled, "CLIP text encoder")?;
        }
        Ok(ClipText {
            tokens: Tensor::new(host, (prompts, length, e), tokens)?,
            penultimate: Tensor::new(host, (prompts, length, e), penultimate)?,
            pooled: Tensor::new(host, (prompts, self.pooled_width()), pooled)?,
        })
    }

    /// The place of the first token that ends the text.
    fn end_of(&self, ids: &[u32]) -> Result<usize> {
        let end = match self.config.eos_token_id {
            LEGACY_EOS => ids.iter().copied().max().unwrap_or(0),
            id => id,
        };
        ids.iter().position(|id| *id == end).ok_or_else(|| {
            Error::Setting(format!("a prompt without the token {end}, which ends a text: {ids:?}"))
        })
    }

    fn weights(&self, device: &D) -> Result<&Weights<D>> {
        get_or_try_init(&self.weights, || self.read(device))
    }

    fn read(&self, device: &D) -> Result<Weights<D>> {
        let (e, files) = (self.config.hidden_size, &self.files);
        let block = |number| Block::read(device, files, &BlockNames::clip(number), self.config.block());
        let projection = || {
            let matrix = files.unprefixed().view(self.source.projection)?;
            Projection::new(device, matrix, (e, self.config.projection_dim), self.source.transposed)
        };
        let eps = self.config.layer_norm_eps;
        Ok(Weights {
            blocks: (0..self.config.num_hidden_layers).map(block).collect::<Result<_>>()?,
            norm: files.norm(device, NormKind::Layer, "final_layer_norm", e, eps)?,
            projection: self.model.is_projected().then(projection).transpose()?,
        })
    }
}
