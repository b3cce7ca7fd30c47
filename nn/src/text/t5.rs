//! The encoder of T5 (Raffel et al. 2020) in its version 1.1: RMS norms, no biases, gated MLPs, and a bias on every
//! attention score that depends on how far two tokens are apart. No token is masked, padding included, since FLUX was
//! trained so.
//!
//! Shape letters: `B` prompts, `L` tokens of each, `E` width, `M` width of the MLPs, `H` heads.
//!
//! Architecture and names are those of transformers' `T5EncoderModel`. Weights are read layer by layer: those of the
//! largest published encoder are 4.8 billion values.

use std::{path::Path, sync::Arc};

use super::{
    TextCost,
    attention::{Sizes, attention},
    check_finite, measure,
    weights::PrefixedFiles,
};
use crate::{
    cpu::{self, Cpu, SubMatrix},
    error::{Error, Result},
    files::TensorFiles,
    layers::norm::rms_norm,
    size,
    tensor::Tensor,
};

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

impl T5Config {
    /// Read and check `config.json`.
    ///
    /// # Errors
    /// If the file is missing, is no such configuration, or describes a model that this library does not run.
    pub fn read(path: &Path) -> Result<Self> {
        let config: Self = super::read_config(path, KIND, "a T5 encoder")?;
        config.check().map_err(|message| Error::file(path, message))?;
        Ok(config)
    }

    fn beside(file: &Path) -> Result<Option<Self>> {
        let config: Option<Self> = measure::config_beside(file, KIND, "a T5 encoder")?;
        if let Some(config) = &config {
            config.check().map_err(|message| Error::file(file.with_file_name("config.json"), message))?;
        }
        Ok(config)
    }

    /// The sizes of an encoder in one file, without a configuration. What tensors do not tell is as published.
    fn measured(files: &TensorFiles, table: &str) -> Result<Self> {
        const WHAT: &str = "a T5 encoder";
        let fault = |message: String| Error::file(files.path(), message);
        let block = |name: &str| format!("encoder.block.0.layer.{name}.weight");
        let [vocab_size, d_model] = measure::matrix(files, table, WHAT)?;
        let [relative_attention_num_buckets, num_heads] = measure::matrix(files, BIAS, WHAT)?;
        let [inner, _] = measure::matrix(files, &block("0.SelfAttention.q"), WHAT)?;
        if files.info(&block("1.DenseReluDense.wi")).is_some() {
            return Err(fault(
                "is a T5 of version 1.0, whose MLPs have no gate: expected version 1.1".into(),
            ));
        }
        let [d_ff, _] = measure::matrix(files, &block("1.DenseReluDense.wi_0"), WHAT)?;
        if num_heads == 0 || !inner.is_multiple_of(num_heads) {
            return Err(fault(format!("has queries {inner} wide, which {num_heads} heads cannot share")));
        }
        let config = Self {
            model_type: KIND.into(),
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

    /// Refuse sizes that no model in these files can have; `path` states them.
    fn bound(&self, path: &Path, files: &TensorFiles) -> Result<()> {
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

const KIND: &str = "t5";
/// The bias that all blocks share stands in the first.
const BIAS: &str = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
/// Names that the table of tokens is published under.
const TABLES: [&str; 2] = ["shared.weight", "encoder.embed_tokens.weight"];

/// A T5 encoder whose weights stay in their file.
#[derive(Debug)]
pub struct T5 {
    config: T5Config,
    source: PrefixedFiles,
    table: &'static str,
}

impl T5 {
    /// Open a folder with `config.json` and `model.safetensors` or the index of its shards, or one file, as ComfyUI has it:
    /// of that the sizes come from a `config.json` of a T5 encoder beside it, or from its tensors. Only headers are read.
    ///
    /// # Errors
    /// If a file is missing or cut off, the configuration is of another model, or tensors are missing, of other shapes or
    /// in fp8.
    pub fn open(path: &Path) -> Result<Self> {
        super::must_be_model(path, "the T5 encoder", "text_encoder_2")?;
        let folder = path.is_dir();
        // Before the weights, so that a folder of another kind is known by its configuration.
        let stated = if folder { Some(T5Config::read(&path.join("config.json"))?) } else { None };
        let files = if folder { super::open_weights(path)? } else { TensorFiles::open(path)? };
        let table = TABLES.into_iter().find(|name| files.info(name).is_some()).unwrap_or(TABLES[0]);
        measure::no_fp8(&files, "encoder.", "e.g. `t5xxl_fp16.safetensors`")?;
        let (config, source) = match stated {
            Some(config) => (config, path.join("config.json")),
            None => match T5Config::beside(path)? {
                Some(config) => (config, path.with_file_name("config.json")),
                None => (T5Config::measured(&files, table)?, path.to_owned()),
            },
        };
        config.bound(&source, &files)?;
        let mut expected = config.tensors();
        expected.push((table.into(), vec![config.vocab_size, config.d_model]));
        files.expect(&expected)?;
        let source = PrefixedFiles::new(Arc::new(files), "", &expected);
        Ok(Self { config, source, table })
    }

    /// The sizes.
    pub fn config(&self) -> &T5Config {
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
        let c = &self.config;
        // In floating point: a length that somebody states may be too large for products of whole numbers.
        let (e, inner, m) = (c.d_model as f64, (c.num_heads * c.d_kv) as f64, c.d_ff as f64);
        let (length, rows) = (length as f64, prompts as f64 * length as f64);
        let flops = (8.0 * e * inner + 6.0 * e * m) * rows + 4.0 * inner * length * rows;
        // The stream, its norm, and queries, keys, values and their result, or the MLP three times; the bias, the
        // scores of one head; the largest weight as it is read and as it is packed.
        let alive = rows * (2.0 * e + (4.0 * inner).max(3.0 * m))
            + (c.num_heads + 1) as f64 * length * length
            + 2.0 * e * m.max(inner);
        TextCost { flops: c.num_layers as f64 * flops, scratch_bytes: size::bytes(4.0 * alive) }
    }

    /// Tokens `[B, L, E]` of `prompts` prompts with equally many ids, one after the other in `ids`.
    ///
    /// # Errors
    /// If there are no tokens, an id is not in the vocabulary, or weights cannot be read.
    pub fn encode(&self, device: &Cpu, prompts: usize, ids: &[u32]) -> Result<Tensor<(usize, usize, usize)>> {
        let length = super::length_of(prompts, ids)?;
        let e = self.config.d_model;
        let mut x = self.source.embed(self.table, (self.config.vocab_size, e), ids)?;
        let bias = self.bias(length)?;
        for i in 0..self.config.num_layers {
            self.attend(device, &format!("encoder.block.{i}.layer.0"), length, &bias, &mut x)?;
            self.mlp(device, &format!("encoder.block.{i}.layer.1"), &mut x)?;
        }
        let mut tokens = vec![0.0; x.len()];
        self.norm(device, "encoder.final_layer_norm", &x, &mut tokens)?;
        check_finite(&tokens, "T5 encoder")?;
        Tensor::new(device, (prompts, length, e), tokens)
    }

    fn norm(&self, device: &Cpu, name: &str, x: &[f32], out: &mut [f32]) -> Result<()> {
        let weight = self.source.vector(&format!("{name}.weight"), self.config.d_model)?;
        rms_norm(device, x, &weight, self.config.layer_norm_epsilon, out);
        Ok(())
    }

    /// The bias on the scores of every head, `[H, L, L]`.
    fn bias(&self, length: usize) -> Result<Vec<f32>> {
        let (buckets, heads) = (self.config.relative_attention_num_buckets, self.config.num_heads);
        let table = self.source.matrix(BIAS, [buckets, heads])?;
        let mut bias = Vec::with_capacity(heads * length * length);
        for head in 0..heads {
            for query in 0..length {
                let distance = |key: usize| key as isize - query as isize;
                bias.extend((0..length).map(|key| table[self.bucket(distance(key)) * heads + head]));
            }
        }
        Ok(bias)
    }

    /// The class of a distance from a query to a key: half of them for keys that come later; in each half, one for
    /// each of the smallest distances, then wider and wider ones up to the largest.
    fn bucket(&self, distance: isize) -> usize {
        let half = self.config.relative_attention_num_buckets / 2;
        let first = if distance > 0 { half } else { 0 };
        let (far, exact) = (distance.unsigned_abs(), half / 2);
        if far < exact {
            return first + far;
        }
        // A class begins where the share of the logarithm is a whole number. The bit that is added keeps a share that
        // is whole from being rounded below itself.
        let most = self.config.relative_attention_max_distance;
        let share = libm::log(far as f64 / exact as f64) / libm::log(most as f64 / exact as f64);
        let class = exact + (share * (half - exact) as f64 + 1e-9) as usize;
        first + class.min(half - 1)
    }

    fn attend(&self, device: &Cpu, name: &str, length: usize, bias: &[f32], x: &mut [f32]) -> Result<()> {
        let (e, heads, dim) = (self.config.d_model, self.config.num_heads, self.config.d_kv);
        let inner = heads * dim;
        let mut normed = vec![0.0; x.len()];
        self.norm(device, &format!("{name}.layer_norm"), x, &mut normed)?;
        let linear = |l: &str, x: &[f32], io: (usize, usize)| {
            self.source.linear(device, &format!("{name}.SelfAttention.{l}"), false, x, io)
        };
        let [q, k, v] = ["q", "k", "v"].map(|l| linear(l, &normed, (e, inner)));
        let (q, k, v) = (q?, k?, v?);
        drop(normed);
        let mut out = vec![0.0; q.len()];
        let sizes = Sizes { heads, tokens: length, dim };
        let each = length * inner;
        let samples = q.chunks_exact(each).zip(k.chunks_exact(each)).zip(v.chunks_exact(each));
        for (((q, k), v), out) in samples.zip(out.chunks_exact_mut(each)) {
            let add_bias = |head: usize, scores: &mut [f32]| {
                let bias = &bias[head * length * length..][..length * length];
                scores.iter_mut().zip(bias).for_each(|(s, b)| *s += b);
            };
            // Scores are not scaled: the weights of the queries were made that much smaller.
            attention(device, sizes, 1.0, [q, k, v], add_bias, out);
        }
        drop((q, k, v));
        let out = linear("o", &out, (inner, e))?;
        cpu::add_scaled(device, 1.0, &out, x);
        Ok(())
    }

    fn mlp(&self, device: &Cpu, name: &str, x: &mut [f32]) -> Result<()> {
        let (e, m) = (self.config.d_model, self.config.d_ff);
        let mut normed = vec![0.0; x.len()];
        self.norm(device, &format!("{name}.layer_norm"), x, &mut normed)?;
        let linear = |l: &str, x: &[f32], io: (usize, usize)| {
            self.source.linear(device, &format!("{name}.DenseReluDense.{l}"), false, x, io)
        };
        let gate = linear("wi_0", &normed, (e, m))?;
        let mut active = vec![0.0; gate.len()];
        cpu::gelu(device, SubMatrix { rows: gate.len() / m, width: m }, &gate, m, &mut active, m);
        drop(gate);
        let inner = linear("wi_1", &normed, (e, m))?;
        active.iter_mut().zip(&inner).for_each(|(a, b)| *a *= b);
        drop(inner);
        let out = linear("wo", &active, (m, e))?;
        cpu::add_scaled(device, 1.0, &out, x);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
