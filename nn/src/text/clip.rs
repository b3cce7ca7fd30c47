//! The text encoder of CLIP (Radford et al. 2021) of the size that FLUX and SDXL call CLIP-L: a transformer of which every
//! token sees itself and earlier ones.
//!
//! Shape letters: `B` prompts, `L` tokens of each, `E` width, `M` width of the MLPs.
//!
//! Architecture and names are those of transformers' `CLIPTextModel`; names may lack the prefix `text_model.`.

use std::{path::Path, sync::Arc};

use super::{
    TextCost,
    attention::{Sizes, attention},
    check_finite, measure,
    weights::PrefixedFiles,
};
use crate::{
    cpu::{self, Cpu},
    error::{Error, Result},
    files::TensorFiles,
    layers::norm::layer_norm,
    size,
    tensor::Tensor,
};

const KIND: &str = "clip_text_model";
/// Widths of the text encoders of OpenCLIP that other diffusion models have, ViT-H and ViT-bigG.
const OPEN_CLIP: [usize; 2] = [1024, 1280];
/// The id that means "the largest id of the prompt" in configurations which were written before transformers 4.31.
const LEGACY_EOS: u32 = 2;

/// `config.json` of a `CLIPTextModel`.
#[derive(Clone, Debug, PartialEq, serde::Deserialize)]
pub struct ClipConfig {
    /// Kind of model.
    pub model_type: String,
    /// Number of tokens that have an embedding.
    pub vocab_size: usize,
    /// E.
    pub hidden_size: usize,
    /// M.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Most tokens of a prompt.
    pub max_position_embeddings: usize,
    /// Activation of the MLPs.
    pub hidden_act: String,
    /// Added to the variance in norms.
    #[serde(default = "published_eps")]
    pub layer_norm_eps: f64,
    /// The id that ends a text; 2 stands for the largest id of the prompt.
    #[serde(default = "published_eos")]
    pub eos_token_id: u32,
}

fn published_eps() -> f64 {
    1e-5
}
fn published_eos() -> u32 {
    49407
}

impl ClipConfig {
    /// Read and check `config.json`.
    ///
    /// # Errors
    /// If the file is missing, is no such configuration, or describes a model that this library does not run.
    pub fn read(path: &Path) -> Result<Self> {
        let config: Self = super::read_config(path, KIND, "a CLIP text encoder")?;
        config.check().map_err(|message| Error::file(path, message))?;
        Ok(config)
    }

    fn beside(file: &Path) -> Result<Option<Self>> {
        let config: Option<Self> = measure::config_beside(file, KIND, "a CLIP text encoder")?;
        if let Some(config) = &config {
            config.check().map_err(|message| Error::file(file.with_file_name("config.json"), message))?;
        }
        Ok(config)
    }

    /// The sizes of an encoder in one file, without a configuration: heads are 64 wide, as those of CLIP-L are.
    fn measured(files: &TensorFiles, prefix: &str) -> Result<Self> {
        const WHAT: &str = "a CLIP text encoder";
        const HEAD: usize = 64;
        let fault = |message: String| Error::file(files.path(), message);
        let matrix = |name: &str| measure::matrix(files, &format!("{prefix}{name}"), WHAT);
        let [vocab_size, hidden_size] = matrix("embeddings.token_embedding.weight")?;
        let [max_position_embeddings, _] = matrix("embeddings.position_embedding.weight")?;
        let [intermediate_size, _] = matrix("encoder.layers.0.mlp.fc1.weight")?;
        if OPEN_CLIP.contains(&hidden_size) {
            return Err(fault(format!(
                "is an OpenCLIP text encoder by its width, {hidden_size}, with another activation: expected CLIP-L, 768 \
                 wide (`clip_l.safetensors`)"
            )));
        }
        if !hidden_size.is_multiple_of(HEAD) {
            return Err(fault(format!(
                "has no config.json beside it, and a width of {hidden_size} is no multiple of {HEAD}, the width of a head \
                 of CLIP-L: put the configuration beside the file"
            )));
        }
        let config = Self {
            model_type: KIND.into(),
            vocab_size,
            hidden_size,
            intermediate_size,
            num_hidden_layers: measure::blocks(files, |i| {
                format!("{prefix}encoder.layers.{i}.mlp.fc1.weight")
            }),
            num_attention_heads: hidden_size / HEAD,
            max_position_embeddings,
            hidden_act: "quick_gelu".into(),
            layer_norm_eps: published_eps(),
            eos_token_id: LEGACY_EOS,
        };
        config.check().map_err(fault)?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let heads = self.num_attention_heads;
        let fault = if self.hidden_act != "quick_gelu" {
            format!("hidden_act is {:?}: expected quick_gelu, as CLIP-L has it", self.hidden_act)
        } else if self.hidden_size == 0 || heads == 0 || !self.hidden_size.is_multiple_of(heads) {
            format!(
                "hidden_size is {}: expected a multiple of num_attention_heads, {heads}",
                self.hidden_size
            )
        } else if [self.vocab_size, self.intermediate_size, self.max_position_embeddings].contains(&0) {
            "vocab_size, intermediate_size and max_position_embeddings must be positive".into()
        } else {
            return Ok(());
        };
        Err(fault)
    }

    /// Refuse sizes that no model in these files can have; `path` states them.
    fn bound(&self, path: &Path, files: &TensorFiles) -> Result<()> {
        files.bound(
            path,
            &[("num_hidden_layers", self.num_hidden_layers)],
            &[
                ("vocab_size", self.vocab_size as u128),
                ("hidden_size", self.hidden_size as u128),
                ("intermediate_size", self.intermediate_size as u128),
                ("max_position_embeddings", self.max_position_embeddings as u128),
            ],
        )
    }

    /// Every tensor of the checkpoint, with its shape; names without the prefix `text_model.`.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (e, m) = (self.hidden_size, self.intermediate_size);
        let mut all = vec![
            ("embeddings.token_embedding.weight".to_owned(), vec![self.vocab_size, e]),
            ("embeddings.position_embedding.weight".to_owned(), vec![self.max_position_embeddings, e]),
        ];
        let mut both = |name: String, shape: Vec<usize>| {
            let outputs = shape[0];
            all.extend([(format!("{name}.weight"), shape), (format!("{name}.bias"), vec![outputs])]);
        };
        for i in 0..self.num_hidden_layers {
            for norm in ["layer_norm1", "layer_norm2"] {
                both(format!("encoder.layers.{i}.{norm}"), vec![e]);
            }
            for linear in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                both(format!("encoder.layers.{i}.self_attn.{linear}"), vec![e, e]);
            }
            both(format!("encoder.layers.{i}.mlp.fc1"), vec![m, e]);
            both(format!("encoder.layers.{i}.mlp.fc2"), vec![e, m]);
        }
        both("final_layer_norm".into(), vec![e]);
        all
    }
}

/// What [`Clip::encode`] gives.
#[derive(Clone, Debug)]
pub struct ClipText {
    /// Tokens after the last norm, `[B, L, E]`.
    pub tokens: Tensor<(usize, usize, usize)>,
    /// The token that ends each text, `[B, E]`.
    pub pooled: Tensor<(usize, usize)>,
}

/// A CLIP text encoder whose weights stay in their file.
#[derive(Debug)]
pub struct Clip {
    config: ClipConfig,
    source: PrefixedFiles,
}

impl Clip {
    /// Open a folder with `config.json` and `model.safetensors` or the index of its shards, or one file, as ComfyUI has it:
    /// of that the sizes come from a `config.json` of a CLIP text encoder beside it, or from its tensors. Only headers are
    /// read.
    ///
    /// # Errors
    /// If a file is missing or cut off, the configuration is of another model, or tensors are missing, of other shapes or
    /// in fp8.
    pub fn open(path: &Path) -> Result<Self> {
        super::must_be_model(path, "the CLIP text encoder", "text_encoder")?;
        let folder = path.is_dir();
        // Before the weights, so that a folder of another kind is known by its configuration.
        let stated = if folder { Some(ClipConfig::read(&path.join("config.json"))?) } else { None };
        let files = if folder { super::open_weights(path)? } else { TensorFiles::open(path)? };
        let with_prefix = files.names().any(|n| n.starts_with("text_model."));
        let prefix = if with_prefix { "text_model." } else { "" };
        measure::no_fp8(&files, prefix, "e.g. `clip_l.safetensors`")?;
        let (config, source) = match stated {
            Some(config) => (config, path.join("config.json")),
            None => match ClipConfig::beside(path)? {
                Some(config) => (config, path.with_file_name("config.json")),
                None => (ClipConfig::measured(&files, prefix)?, path.to_owned()),
            },
        };
        config.bound(&source, &files)?;
        let expected: Vec<_> =
            config.tensors().into_iter().map(|(n, shape)| (format!("{prefix}{n}"), shape)).collect();
        files.expect(&expected)?;
        let source = PrefixedFiles::new(Arc::new(files), prefix, &expected);
        Ok(Self { config, source })
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
    pub fn cost(&self, prompts: usize, length: usize) -> TextCost {
        // In floating point: a length that somebody states may be too large for products of whole numbers.
        let (e, m) = (self.config.hidden_size as f64, self.config.intermediate_size as f64);
        let (length, rows) = (length as f64, prompts as f64 * length as f64);
        let flops = (8.0 * e * e + 4.0 * e * m) * rows + 4.0 * e * length * rows;
        // The stream, its norm, queries, keys, values and their result; or the stream, its norm and the MLP twice.
        let alive = rows * (2.0 * e + (4.0 * e).max(2.0 * m)) + length * length + 2.0 * e * m;
        let layers = self.config.num_hidden_layers as f64;
        TextCost { flops: layers * flops, scratch_bytes: size::bytes(4.0 * alive) }
    }

    /// Tokens and pooled vectors of `prompts` prompts with equally many ids, one after the other in `ids`.
    ///
    /// # Errors
    /// If there are no or too many tokens, an id is not in the vocabulary, a prompt has no end, or weights cannot be
    /// read.
    pub fn encode(&self, device: &Cpu, prompts: usize, ids: &[u32]) -> Result<ClipText> {
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
            cpu::add_scaled(device, 1.0, &positions, sample);
        }
        for i in 0..self.config.num_hidden_layers {
            self.block(device, &format!("encoder.layers.{i}"), length, &mut x)?;
        }
        let mut tokens = vec![0.0; x.len()];
        self.norm(device, "final_layer_norm", &x, &mut tokens)?;
        check_finite(&tokens, "CLIP text encoder")?;
        let mut pooled = Vec::with_capacity(prompts * e);
        for (sample, ids) in tokens.chunks_exact(length * e).zip(ids.chunks_exact(length)) {
            pooled.extend_from_slice(&sample[self.end_of(ids)? * e..][..e]);
        }
        Ok(ClipText {
            tokens: Tensor::new(device, (prompts, length, e), tokens)?,
            pooled: Tensor::new(device, (prompts, e), pooled)?,
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

    fn norm(&self, device: &Cpu, name: &str, x: &[f32], out: &mut [f32]) -> Result<()> {
        let e = self.config.hidden_size;
        let weight = self.source.vector(&format!("{name}.weight"), e)?;
        let bias = self.source.vector(&format!("{name}.bias"), e)?;
        layer_norm(device, x, &weight, &bias, self.config.layer_norm_eps, out);
        Ok(())
    }

    fn block(&self, device: &Cpu, name: &str, length: usize, x: &mut [f32]) -> Result<()> {
        let (e, m, heads) =
            (self.config.hidden_size, self.config.intermediate_size, self.config.num_attention_heads);
        let linear = |linear: &str, x: &[f32], (i, o): (usize, usize)| {
            self.source.linear(device, &format!("{name}.{linear}"), true, x, (i, o))
        };
        let mut normed = vec![0.0; x.len()];
        self.norm(device, &format!("{name}.layer_norm1"), x, &mut normed)?;
        let [q, k, v] =
            ["q_proj", "k_proj", "v_proj"].map(|l| linear(&format!("self_attn.{l}"), &normed, (e, e)));
        let (q, k, v) = (q?, k?, v?);
        let sizes = Sizes { heads, tokens: length, dim: e / heads };
        let scale = 1.0 / (sizes.dim as f32).sqrt();
        let samples =
            q.chunks_exact(length * e).zip(k.chunks_exact(length * e)).zip(v.chunks_exact(length * e));
        for (((q, k), v), out) in samples.zip(normed.chunks_exact_mut(length * e)) {
            attention(device, sizes, scale, [q, k, v], |_, scores| hide_later(scores, length), out);
        }
        let out = linear("self_attn.out_proj", &normed, (e, e))?;
        cpu::add_scaled(device, 1.0, &out, x);

        self.norm(device, &format!("{name}.layer_norm2"), x, &mut normed)?;
        let mut inner = linear("mlp.fc1", &normed, (e, m))?;
        quick_gelu(device, &mut inner);
        let out = linear("mlp.fc2", &inner, (m, e))?;
        cpu::add_scaled(device, 1.0, &out, x);
        Ok(())
    }
}

/// A token does not see those that come after it.
fn hide_later(scores: &mut [f32], length: usize) {
    for (row, scores) in scores.chunks_exact_mut(length).enumerate() {
        scores[row + 1..].fill(f32::NEG_INFINITY);
    }
}

/// `x * sigmoid(1.702 x)`.
fn quick_gelu(device: &Cpu, x: &mut [f32]) {
    const SLOPE: f32 = 1.702;
    let steep: Vec<f32> = x.iter().map(|v| v * SLOPE).collect();
    cpu::silu(device, &steep, x);
    x.iter_mut().for_each(|v| *v /= SLOPE);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_gelu_is_the_sigmoid_form() {
        let mut x = [-3.0f32, -0.5, 0.0, 0.7, 4.0];
        let expected = x.map(|v| v / (1.0 + libm::expf(-1.702 * v)));
        quick_gelu(&Cpu::new(1).unwrap(), &mut x);
        assert!(x.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{x:?} {expected:?}");
    }
}
