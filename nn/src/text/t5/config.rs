//! The sizes of a T5 encoder, as `config.json` of a `T5EncoderModel` states them or its tensors show them.
//!
//! `E` width, `M` width of the MLPs, `H` heads.

use std::path::Path;

use crate::{
    encoders::{
        config::{EncoderConfig, read_config},
        measure,
    },
    error::{Error, Result},
    files::TensorFiles,
};

/// The bias that all blocks share stands in the first.
pub(super) const BIAS: &str = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
/// Names that the table of tokens is published under.
pub(super) const TABLES: [&str; 2] = ["shared.weight", "encoder.embed_tokens.weight"];

/// `config.json` of a `T5EncoderModel`.
#[derive(Clone, Debug, PartialEq, serde::Deserialize)]
pub struct T5Config {
    /// Kind of model.
    pub model_type: String,
    /// Number of tokens that have an embedding.
    pub vocab_size: usize,
    /// E.
    pub d_model: usize,
    /// Width of a head.
    pub d_kv: usize,
    /// M.
    pub d_ff: usize,
    /// Blocks.
    pub num_layers: usize,
    /// H.
    pub num_heads: usize,
    /// Classes of distances.
    #[serde(default = "published_buckets")]
    pub relative_attention_num_buckets: usize,
    /// From this distance on, all are of one class.
    #[serde(default = "published_distance")]
    pub relative_attention_max_distance: usize,
    /// Added to the mean square in norms.
    #[serde(default = "published_eps")]
    pub layer_norm_epsilon: f64,
    /// The MLP in one word, e.g. `gated-gelu`.
    #[serde(default)]
    pub feed_forward_proj: Option<String>,
    /// The MLP's activation; the same in another way.
    #[serde(default)]
    pub dense_act_fn: Option<String>,
    /// Has the MLP a gate?
    #[serde(default)]
    pub is_gated_act: Option<bool>,
}

fn published_buckets() -> usize {
    32
}
fn published_distance() -> usize {
    128
}
fn published_eps() -> f64 {
    1e-6
}

impl EncoderConfig for T5Config {
    const KIND: &'static str = "t5";
    const WHAT: &'static str = "a T5 encoder";

    fn check(&self) -> Result<(), String> {
        let buckets = self.relative_attention_num_buckets;
        let activation = self.dense_act_fn.as_deref();
        let feed_forward = self.feed_forward_proj.as_deref();
        let gated = self.is_gated_act == Some(true) || feed_forward.is_some_and(|f| f.starts_with("gated-"));
        // "gated-gelu" alone means the tanh form, as transformers reads it.
        let tanh = match activation {
            Some(name) => matches!(name, "gelu_new" | "gelu_pytorch_tanh"),
            None => matches!(feed_forward, Some("gated-gelu" | "gated-gelu_new")),
        };
        let fault = if !gated || !tanh {
            format!(
                "the MLP is feed_forward_proj {feed_forward:?}, dense_act_fn {activation:?}, is_gated_act {:?}: \
                 expected a gated one with gelu_new, as version 1.1 of T5 has it",
                self.is_gated_act
            )
        } else if buckets < 4 || !buckets.is_multiple_of(4) {
            format!("relative_attention_num_buckets is {buckets}: expected a positive multiple of 4")
        } else if self.relative_attention_max_distance <= buckets / 4 {
            format!(
                "relative_attention_max_distance is {}: expected more than a quarter of the buckets, {}",
                self.relative_attention_max_distance,
                buckets / 4
            )
        } else if [self.vocab_size, self.d_model, self.d_kv, self.d_ff, self.num_heads].contains(&0) {
            "vocab_size, d_model, d_kv, d_ff and num_heads must be positive".into()
        } else {
            return Ok(());
        };
        Err(fault)
    }
}

impl T5Config {
    /// Read and check `config.json`.
    ///
    /// # Errors
    /// If the file is missing, is no such configuration, or describes a model that this library does not run.
    pub fn read(path: &Path) -> Result<Self> {
        read_config(path)
    }

    /// The sizes of an encoder in one file, without a configuration. What tensors do not tell is as published.
    pub(super) fn measured(files: &TensorFiles, table: &str) -> Result<Self> {
        let fault = |message: String| Error::file(files.path(), message);
        let block = |name: &str| format!("encoder.block.0.layer.{name}.weight");
        let [vocab_size, d_model] = measure::matrix(files, table, Self::WHAT)?;
        let [relative_attention_num_buckets, num_heads] = measure::matrix(files, BIAS, Self::WHAT)?;
        let [inner, _] = measure::matrix(files, &block("0.SelfAttention.q"), Self::WHAT)?;
        if files.info(&block("1.DenseReluDense.wi")).is_some() {
            return Err(fault(
                "is a T5 of version 1.0, whose MLPs have no gate: expected version 1.1".into(),
            ));
        }
        let [d_ff, _] = measure::matrix(files, &block("1.DenseReluDense.wi_0"), Self::WHAT)?;
        if num_heads == 0 || !inner.is_multiple_of(num_heads) {
            return Err(fault(format!("has queries {inner} wide, which {num_heads} heads cannot share")));
        }
        let config = Self {
            model_type: Self::KIND.into(),
            vocab_size,
            d_model,
            d_kv: inner / num_heads,
            d_ff,
            num_layers: measure::blocks(files, |i| {
                format!("encoder.block.{i}.layer.0.SelfAttention.q.weight")
            }),
            num_heads,
            relative_attention_num_buckets,
            relative_attention_max_distance: published_distance(),
            layer_norm_epsilon: published_eps(),
            feed_forward_proj: Some("gated-gelu".into()),
            dense_act_fn: None,
            is_gated_act: None,
        };
        config.check().map_err(fault)?;
        Ok(config)
    }

    /// Refuse sizes that no model in these files can have; `path` states them.
    pub(super) fn bound(&self, path: &Path, files: &TensorFiles) -> Result<()> {
        files.bound(
            path,
            &[("num_layers", self.num_layers)],
            &[
                ("vocab_size", self.vocab_size as u128),
                ("d_model", self.d_model as u128),
                ("num_heads x d_kv", self.num_heads as u128 * self.d_kv as u128),
                ("d_ff", self.d_ff as u128),
                ("relative_attention_num_buckets", self.relative_attention_num_buckets as u128),
            ],
        )
    }

    /// Every tensor of the encoder but the table of tokens, with its shape.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (e, inner, m) = (self.d_model, self.num_heads * self.d_kv, self.d_ff);
        let mut all = vec![(BIAS.to_owned(), vec![self.relative_attention_num_buckets, self.num_heads])];
        for i in 0..self.num_layers {
            let (attention, mlp) =
                (format!("encoder.block.{i}.layer.0"), format!("encoder.block.{i}.layer.1"));
            all.extend(
                ["q", "k", "v"].map(|l| (format!("{attention}.SelfAttention.{l}.weight"), vec![inner, e])),
            );
            all.extend([
                (format!("{attention}.SelfAttention.o.weight"), vec![e, inner]),
                (format!("{attention}.layer_norm.weight"), vec![e]),
                (format!("{mlp}.DenseReluDense.wi_0.weight"), vec![m, e]),
                (format!("{mlp}.DenseReluDense.wi_1.weight"), vec![m, e]),
                (format!("{mlp}.DenseReluDense.wo.weight"), vec![e, m]),
                (format!("{mlp}.layer_norm.weight"), vec![e]),
            ]);
        }
        all.push(("encoder.final_layer_norm.weight".into(), vec![e]));
        all
    }
}
