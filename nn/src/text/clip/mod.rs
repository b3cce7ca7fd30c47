//! The text encoder of CLIP (Radford et al. 2021) of the size that FLUX and SDXL call CLIP-L: a transformer of which every
//! token sees itself and earlier ones.
//!
//! Shape letters: `B` prompts, `L` tokens of each, `E` width, `M` width of the MLPs.
//!
//! Architecture and names are those of transformers' `CLIPTextModel`; names may lack the prefix `text_model.`.

mod config;

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

pub use config::ClipConfig;
use config::LEGACY_EOS;

use super::{
    check_finite,
    config::{configuration, open_stated},
    measure,
    weights::{LOADING, PrefixedFiles},
};
use crate::{
    cost::PassCost,
    cpu::{Cpu, map::check_lengths},
    device::{Activation, Device, Kind, NormKind, Queue, Scores, View, ViewMut},
    error::{Error, Result},
    layers::{Attention, Linear, Norm, attention_flops},
    once::get_or_try_init,
    size,
    tensor::Tensor,
};

/// What [`ClipEncoder::encode`] gives.
#[derive(Clone, Debug)]
pub struct ClipText {
    /// Tokens after the last norm, `[B, L, E]`.
    pub tokens: Tensor<(usize, usize, usize)>,
    /// The token that ends each text, `[B, E]`.
    pub pooled: Tensor<(usize, usize)>,
}

/// A CLIP text encoder on the processor.
pub type Clip = ClipEncoder<Cpu>;

/// A CLIP text encoder whose matrices stay in their file. Norms and biases are read by the first pass, for its device; later
/// passes are to run on the same one.
#[derive(Debug)]
pub struct ClipEncoder<D: Device> {
    config: ClipConfig,
    source: PrefixedFiles,
    weights: OnceLock<Weights<D>>,
}

#[derive(Debug)]
struct Weights<D: Device> {
    blocks: Vec<Block<D>>,
    norm: Norm<D>,
}

#[derive(Debug)]
struct Block<D: Device> {
    attention_norm: Norm<D>,
    attention: Attention<D>,
    mlp_norm: Norm<D>,
    up: Linear<D>,
    down: Linear<D>,
}

impl<D: Device> ClipEncoder<D> {
    /// Open a folder with `config.json` and `model.safetensors` or the index of its shards, or one file, as ComfyUI has it:
    /// of that the sizes come from a `config.json` of a CLIP text encoder beside it, or from its tensors. Only headers are
    /// read.
    ///
    /// # Errors
    /// If a file is missing or cut off, the configuration is of another model, or tensors are missing, of other shapes or
    /// in fp8.
    pub fn open(path: &Path) -> Result<Self> {
        super::must_be_model(path, "the CLIP text encoder", "text_encoder")?;
        let (stated, files) = open_stated(path)?;
        let with_prefix = files.names().any(|n| n.starts_with("text_model."));
        let prefix = if with_prefix { "text_model." } else { "" };
        measure::no_fp8(&files, prefix, "e.g. `clip_l.safetensors`")?;
        let (config, source) = configuration(path, stated, || ClipConfig::measured(&files, prefix))?;
        config.bound(&source, &files)?;
        let expected: Vec<_> =
            config.tensors().into_iter().map(|(n, shape)| (format!("{prefix}{n}"), shape)).collect();
        files.expect(&expected)?;
        let source = PrefixedFiles::new(Arc::new(files), prefix, &expected);
        Ok(Self { config, source, weights: OnceLock::new() })
    }

    /// The sizes.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// Number of frozen values.
    pub fn parameters(&self) -> usize {
        self.source.parameters
    }

    /// Bytes of the mapped file that they are read from.
    pub fn weight_bytes(&self) -> usize {
        self.source.weight_bytes
    }

    /// What `prompts` prompts of `length` tokens take.
    pub fn cost(&self, prompts: usize, length: usize) -> PassCost {
        // In floating point: a length that somebody states may be too large for products of whole numbers.
        let (e, m) = (self.config.hidden_size as f64, self.config.intermediate_size as f64);
        let (prompts, length) = (prompts as f64, length as f64);
        let rows = prompts * length;
        let attention = attention_flops((self.config.hidden_size, self.config.hidden_size), prompts, length);
        let flops = attention + 4.0 * e * m * rows;
        // The stream, its norm, queries, keys, values and their result; or the stream, its norm and the MLP twice. The scores
        // of one head. The largest weight as it is packed, and the memory of others that is kept for the next.
        let alive = rows * (2.0 * e + (4.0 * e).max(2.0 * m)) + length * length + 2.0 * e * m;
        let layers = self.config.num_hidden_layers as f64;
        PassCost {
            forward_flops: layers * flops,
            scratch_bytes: size::bytes(4.0 * alive),
            precision: LOADING.precision,
            ..PassCost::default()
        }
    }

    /// Tokens and pooled vectors of `prompts` prompts with equally many ids, one after the other in `ids`; tensors of the
    /// caller live on `host`.
    ///
    /// # Errors
    /// If there are no or too many tokens, an id is not in the vocabulary, a prompt has no end, or weights cannot be
    /// read.
    pub fn encode(&self, device: &D, host: &Cpu, prompts: usize, ids: &[u32]) -> Result<ClipText> {
        let length = super::length_of(prompts, ids)?;
        let (e, most) = (self.config.hidden_size, self.config.max_position_embeddings);
        if length > most {
            return Err(Error::Setting(format!(
                "{length} tokens a prompt: this encoder takes at most {most}"
            )));
        }
        let mut x =
            self.source.embed("embeddings.token_embedding.weight", (self.config.vocab_size, e), ids)?;
        let positions: Vec<u32> = (0..length as u32).collect();
        let positions = self.source.embed("embeddings.position_embedding.weight", (most, e), &positions)?;
        for sample in x.chunks_exact_mut(length * e) {
            sample.iter_mut().zip(&positions).for_each(|(x, position)| *x += position);
        }
        let weights = self.weights(device)?;
        let queue = device.queue(LOADING.precision)?;
        let mut stream = queue.upload(&x, Kind::Activation);
        for block in &weights.blocks {
            check_lengths()?;
            block.run(&queue, (prompts, length), &mut stream)?;
        }
        let tokens = weights.norm.run(&queue, prompts * length, View::new(&stream, e));
        let tokens = queue.download(&tokens, 0, x.len())?;
        check_finite(&tokens, "CLIP text encoder")?;
        let mut pooled = Vec::with_capacity(prompts * e);
        for (sample, ids) in tokens.chunks_exact(length * e).zip(ids.chunks_exact(length)) {
            pooled.extend_from_slice(&sample[self.end_of(ids)? * e..][..e]);
        }
        Ok(ClipText {
            tokens: Tensor::new(host, (prompts, length, e), tokens)?,
            pooled: Tensor::new(host, (prompts, e), pooled)?,
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
        let norm = |name: &str| {
            let (width, eps) = (self.config.hidden_size, self.config.layer_norm_eps);
            self.source.norm(device, NormKind::Layer, name, width, eps)
        };
        let block = |number: usize| {
            let at = |part: &str| format!("encoder.layers.{number}.{part}");
            let (e, m) = (self.config.hidden_size, self.config.intermediate_size);
            let names = ["q_proj", "k_proj", "v_proj", "out_proj"].map(|l| at(&format!("self_attn.{l}")));
            let heads = self.config.num_attention_heads;
            Ok(Block {
                attention_norm: norm(&at("layer_norm1"))?,
                attention: self.source.attention(device, names, true, heads, (e, e))?,
                mlp_norm: norm(&at("layer_norm2"))?,
                up: self.source.linear(device, &at("mlp.fc1"), true, (e, m))?,
                down: self.source.linear(device, &at("mlp.fc2"), true, (m, e))?,
            })
        };
        let blocks = (0..self.config.num_hidden_layers).map(block).collect::<Result<_>>()?;
        Ok(Weights { blocks, norm: norm("final_layer_norm")? })
    }
}

impl<D: Device> Block<D> {
    /// Add attention and MLP to the stream `[B, L, E]`.
    fn run(&self, queue: &D::Queue, (prompts, length): (usize, usize), x: &mut D::Buffer) -> Result<()> {
        let (rows, e, m) = (prompts * length, self.down.outputs(), self.up.outputs());
        let normed = self.attention_norm.run(queue, rows, View::new(x, e));
        // A token does not see those that come after it.
        let scores = Scores { causal: true, ..Scores::PLAIN };
        let out = self.attention.run(queue, (prompts, length), normed, scores)?;
        queue.add_scaled(1.0, View::new(&out, e), ViewMut::new(x, e), rows * e);
        drop(out);

        let normed = self.mlp_norm.run(queue, rows, View::new(x, e));
        let inner = self.up.run(queue, rows, View::new(&normed, e))?;
        let mut active = queue.take(rows * m, Kind::Activation);
        let (from, to) = (View::new(&inner, m), ViewMut::new(&mut active, m));
        queue.activate(Activation::QuickGelu, (rows, m), from, to);
        drop((normed, inner));
        let out = self.down.run(queue, rows, View::new(&active, m))?;
        queue.add_scaled(1.0, View::new(&out, e), ViewMut::new(x, e), rows * e);
        Ok(())
    }
}
