//! The sizes of a CLIP text encoder, as `config.json` of a `CLIPTextModel` states them or its tensors show them.
//!
//! `E` width, `M` width of the MLPs.

use std::path::Path;

use crate::{
    error::{Error, Result},
    files::TensorFiles,
    text::{
        config::{EncoderConfig, read_config},
        measure,
    },
};

/// Widths of the text encoders of OpenCLIP that other diffusion models have, ViT-H and ViT-bigG.
const OPEN_CLIP: [usize; 2] = [1024, 1280];
/// The id that means "the largest id of the prompt" in configurations which were written before transformers 4.31.
pub(super) const LEGACY_EOS: u32 = 2;

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

impl EncoderConfig for ClipConfig {
    const KIND: &'static str = "clip_text_model";
    const WHAT: &'static str = "a CLIP text encoder";

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
}

impl ClipConfig {
    /// Read and check `config.json`.
    ///
    /// # Errors
    /// If the file is missing, is no such configuration, or describes a model that this library does not run.
    pub fn read(path: &Path) -> Result<Self> {
        read_config(path)
    }

    /// The sizes of an encoder in one file, without a configuration: heads are 64 wide, as those of CLIP-L are.
    pub(super) fn measured(files: &TensorFiles, prefix: &str) -> Result<Self> {
        const HEAD: usize = 64;
        let fault = |message: String| Error::file(files.path(), message);
        let matrix = |name: &str| measure::matrix(files, &format!("{prefix}{name}"), Self::WHAT);
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
            model_type: Self::KIND.into(),
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

    /// Refuse sizes that no model in these files can have; `path` states them.
    pub(super) fn bound(&self, path: &Path, files: &TensorFiles) -> Result<()> {
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
