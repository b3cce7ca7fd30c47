//! The sizes of a CLIP text encoder, as its `config.json` states them or its tensors show them.
//!
//! `E` width, `M` width of the MLPs, `P` width of the projection.

use std::path::Path;

use serde_json::Value;

use super::{model::ClipModel, source::Source};
use crate::{
    device::Activation,
    encoders::{
        block::{BlockNames, BlockSizes},
        config::{EncoderConfig, activation, read_config},
        measure,
    },
    error::{Error, Result},
    files::TensorFiles,
};

/// The id that means "the largest id of the prompt" in configurations which were written before transformers 4.31.
pub(super) const LEGACY_EOS: u32 = 2;

/// `config.json` of a `CLIPTextModel` or a `CLIPTextModelWithProjection`.
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
    #[serde(deserialize_with = "activation")]
    pub hidden_act: Activation,
    /// Added to the variance in norms.
    #[serde(default = "published_eps")]
    pub layer_norm_eps: f64,
    /// The id that ends a text; 2 stands for the largest id of the prompt.
    #[serde(default = "published_eos")]
    pub eos_token_id: u32,
    /// P. Configurations of models without a projection state it, too.
    #[serde(default = "published_projection")]
    pub projection_dim: usize,
}

fn published_eps() -> f64 {
    1e-5
}
fn published_eos() -> u32 {
    49407
}
// What transformers takes where a configuration does not state it.
fn published_projection() -> usize {
    512
}

impl EncoderConfig for ClipConfig {
    const KIND: &'static str = "clip_text_model";
    const WHAT: &'static str = "a CLIP text encoder";

    fn part_of(mut whole: Value) -> Value {
        if whole.get("model_type").and_then(Value::as_str) != Some("clip") {
            return whole;
        }
        // The width of the projection is that of both halves of a `CLIPModel`.
        let projection = whole["projection_dim"].take();
        let mut text = whole["text_config"].take();
        if let Value::Object(fields) = &mut text {
            fields.insert("model_type".into(), Self::KIND.into());
            if !projection.is_null() {
                fields.insert("projection_dim".into(), projection);
            }
        }
        text
    }

    fn check(&self) -> Result<(), String> {
        let heads = self.num_attention_heads;
        let fault = if self.hidden_size == 0 || heads == 0 || !self.hidden_size.is_multiple_of(heads) {
            format!(
                "hidden_size is {}: expected a multiple of num_attention_heads, {heads}",
                self.hidden_size
            )
        } else if self.num_hidden_layers == 0 {
            "num_hidden_layers is 0: expected at least 1".into()
        } else if [self.vocab_size, self.intermediate_size, self.max_position_embeddings, self.projection_dim]
            .contains(&0)
        {
            "vocab_size, intermediate_size, max_position_embeddings and projection_dim must be positive"
                .into()
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

    /// Refuse a configuration of another published encoder.
    ///
    /// # Errors
    /// As `config.json` states it, `path` being the file.
    pub(super) fn check_is(&self, model: ClipModel, path: &Path) -> Result<()> {
        model.check_activation(self.hidden_act).map_err(|message| Error::file(path, message))
    }

    /// The sizes of an encoder in one file, without a configuration: heads are 64 wide, as those of all these encoders are.
    pub(super) fn measured(files: &TensorFiles, source: &Source, model: ClipModel) -> Result<Self> {
        const HEAD: usize = 64;
        let fault = |message: String| Error::file(files.path(), message);
        let matrix = |name: &str| measure::matrix(files, &source.name(name), model.what());
        let [vocab_size, hidden_size] = matrix("embeddings.token_embedding.weight")?;
        let [max_position_embeddings, _] = matrix("embeddings.position_embedding.weight")?;
        let [intermediate_size, _] = matrix("encoder.layers.0.mlp.fc1.weight")?;
        model.check_width(hidden_size).map_err(fault)?;
        let hidden_act = model.activation().ok_or_else(|| {
            fault("has no config.json beside it, and tensors do not tell the activation: put it there".into())
        })?;
        let projection_dim = match model.is_projected() {
            true => measure::matrix(files, source.projection, model.what())?[usize::from(source.transposed)],
            false => published_projection(),
        };
        if !hidden_size.is_multiple_of(HEAD) {
            return Err(fault(format!(
                "has no config.json beside it, and a width of {hidden_size} is no multiple of {HEAD}, the width of a head: \
                 put the configuration beside the file"
            )));
        }
        let config = Self {
            model_type: Self::KIND.into(),
            vocab_size,
            hidden_size,
            intermediate_size,
            num_hidden_layers: measure::blocks(files, |i| {
                source.name(&format!("encoder.layers.{i}.mlp.fc1.weight"))
            }),
            num_attention_heads: hidden_size / HEAD,
            max_position_embeddings,
            hidden_act,
            layer_norm_eps: published_eps(),
            eos_token_id: LEGACY_EOS,
            projection_dim,
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
                ("projection_dim", self.projection_dim as u128),
            ],
        )
    }

    /// The sizes of a block.
    pub(super) fn block(&self) -> BlockSizes {
        BlockSizes {
            width: self.hidden_size,
            mlp: self.intermediate_size,
            heads: self.num_attention_heads,
            activation: self.hidden_act,
            eps: self.layer_norm_eps,
        }
    }

    /// Every tensor of the checkpoint but the projection, with its shape; names without the prefix `text_model.`.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let e = self.hidden_size;
        let mut all = vec![
            ("embeddings.token_embedding.weight".to_owned(), vec![self.vocab_size, e]),
            ("embeddings.position_embedding.weight".to_owned(), vec![self.max_position_embeddings, e]),
        ];
        let blocks = (0..self.num_hidden_layers).map(BlockNames::clip);
        all.extend(blocks.flat_map(|names| names.tensors(self.block())));
        all.extend(["weight", "bias"].map(|part| (format!("final_layer_norm.{part}"), vec![e])));
        all
    }
}
