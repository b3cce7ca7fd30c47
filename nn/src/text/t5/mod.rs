//! The encoder of T5 (Raffel et al. 2020) in its version 1.1: RMS norms, no biases, gated MLPs, and a bias on every
//! attention score that depends on how far two tokens are apart. No token is masked, padding included, since FLUX was
//! trained so.
//!
//! Shape letters: `B` prompts, `L` tokens of each, `E` width, `M` width of the MLPs, `H` heads.
//!
//! Architecture and names are those of transformers' `T5EncoderModel`. Matrices are read layer by layer: those of the
//! largest published encoder are 4.7 billion values.

mod config;

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

pub use config::T5Config;
use config::{BIAS, TABLES};

use super::length_of;
use crate::{
    cost::PassCost,
    cpu::{Cpu, map::check_lengths},
    device::{Activation, Device, Kind, NormKind, Queue, Scores, View, ViewMut},
    encoders::{
        check_finite,
        config::{configuration, open_stated},
        measure, must_be_model,
        weights::{LOADING, PrefixedFiles},
    },
    error::Result,
    layers::{Attention, Linear, Norm, attention_flops},
    once::get_or_try_init,
    size,
    tensor::Tensor,
};

/// A T5 encoder on the processor.
pub type T5 = T5Encoder<Cpu>;

/// A T5 encoder whose matrices stay in their file. Norms are read by the first pass, for its device; later passes are to run
/// on the same one.
#[derive(Debug)]
pub struct T5Encoder<D: Device> {
    config: T5Config,
    source: PrefixedFiles,
    table: &'static str,
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
    gate: Linear<D>,
    up: Linear<D>,
    down: Linear<D>,
}

impl<D: Device> T5Encoder<D> {
    /// Open a folder with `config.json` and `model.safetensors` or the index of its shards, or one file, as ComfyUI has it:
    /// of that the sizes come from a `config.json` of a T5 encoder beside it, or from its tensors. Only headers are read.
    ///
    /// # Errors
    /// If a file is missing or cut off, the configuration is of another model, or tensors are missing, of other shapes or
    /// in fp8.
    pub fn open(path: &Path) -> Result<Self> {
        must_be_model(path, "the T5 encoder", "text_encoder_2")?;
        let (stated, files) = open_stated(path)?;
        let table = TABLES.into_iter().find(|name| files.info(name).is_some()).unwrap_or(TABLES[0]);
        measure::no_fp8(&files, "encoder.", "e.g. `t5xxl_fp16.safetensors`")?;
        let (config, source) = configuration(path, stated, || T5Config::measured(&files, table))?;
        config.bound(&source, &files)?;
        let mut expected = config.tensors();
        expected.push((table.into(), vec![config.vocab_size, config.d_model]));
        files.expect(&expected)?;
        let source = PrefixedFiles::new(Arc::new(files), "", &expected);
        Ok(Self { config, source, table, weights: OnceLock::new() })
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
    pub fn cost(&self, prompts: usize, length: usize) -> PassCost {
        let c = &self.config;
        // In floating point: a length that somebody states may be too large for products of whole numbers.
        let (e, inner, m) = (c.d_model as f64, (c.num_heads * c.d_kv) as f64, c.d_ff as f64);
        let (prompts, length) = (prompts as f64, length as f64);
        let rows = prompts * length;
        let attention = attention_flops((c.d_model, c.num_heads * c.d_kv), prompts, length);
        let flops = attention + 6.0 * e * m * rows;
        // The stream, its norm, and queries, keys, values and their result, or the MLP three times; the bias, the
        // scores of one head; the largest weight as it is packed, and the memory of others that is kept for the next.
        let alive = rows * (2.0 * e + (4.0 * inner).max(3.0 * m))
            + (c.num_heads + 1) as f64 * length * length
            + 2.0 * e * m.max(inner);
        PassCost {
            forward_flops: c.num_layers as f64 * flops,
            scratch_bytes: size::bytes(4.0 * alive),
            precision: LOADING.precision,
            ..PassCost::default()
        }
    }

    /// Tokens `[B, L, E]` of `prompts` prompts with equally many ids, one after the other in `ids`; tensors of the caller live
    /// on `host`.
    ///
    /// # Errors
    /// If there are no tokens, an id is not in the vocabulary, or weights cannot be read.
    pub fn encode(
        &self,
        device: &D,
        host: &Cpu,
        prompts: usize,
        ids: &[u32],
    ) -> Result<Tensor<(usize, usize, usize)>> {
        let length = length_of(prompts, ids)?;
        let e = self.config.d_model;
        let x = self.source.embed(self.table, (self.config.vocab_size, e), ids)?;
        let weights = self.weights(device)?;
        let queue = device.queue(LOADING.precision)?;
        let mut stream = queue.upload(&x, Kind::Activation);
        let bias = queue.upload(&self.bias(length)?, Kind::Exact);
        for block in &weights.blocks {
            check_lengths()?;
            block.run(&queue, (prompts, length), &bias, &mut stream)?;
        }
        let tokens = weights.norm.run(&queue, prompts * length, View::new(&stream, e));
        let tokens = queue.download(&tokens, 0, x.len())?;
        check_finite(&tokens, "T5 encoder")?;
        Tensor::new(host, (prompts, length, e), tokens)
    }

    /// The bias on the scores of every head, `[H, L, L]`.
    fn bias(&self, length: usize) -> Result<Vec<f32>> {
        let (buckets, heads) = (self.config.relative_attention_num_buckets, self.config.num_heads);
        let table = self.source.values(BIAS, &[buckets, heads])?;
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

    fn weights(&self, device: &D) -> Result<&Weights<D>> {
        get_or_try_init(&self.weights, || self.read(device))
    }

    fn read(&self, device: &D) -> Result<Weights<D>> {
        let (c, source) = (&self.config, &self.source);
        let (e, inner, m) = (c.d_model, c.num_heads * c.d_kv, c.d_ff);
        let norm = |name: &str| source.norm(device, NormKind::Rms, name, e, c.layer_norm_epsilon);
        let block = |number: usize| {
            let at = |part: &str| format!("encoder.block.{number}.layer.{part}");
            let names = ["q", "k", "v", "o"].map(|l| at(&format!("0.SelfAttention.{l}")));
            let linear =
                |l: &str, io| source.linear(device, &at(&format!("1.DenseReluDense.{l}")), false, io);
            Ok(Block {
                attention_norm: norm(&at("0.layer_norm"))?,
                attention: source.attention(device, &names, false, c.num_heads, (e, inner))?,
                mlp_norm: norm(&at("1.layer_norm"))?,
                gate: linear("wi_0", (e, m))?,
                up: linear("wi_1", (e, m))?,
                down: linear("wo", (m, e))?,
            })
        };
        let blocks = (0..c.num_layers).map(block).collect::<Result<_>>()?;
        Ok(Weights { blocks, norm: norm("encoder.final_layer_norm")? })
    }
}

impl<D: Device> Block<D> {
    /// Add attention and MLP to the stream `[B, L, E]`; `bias` is `[H, L, L]`.
    fn run(
        &self,
        queue: &D::Queue,
        (prompts, length): (usize, usize),
        bias: &D::Buffer,
        x: &mut D::Buffer,
    ) -> Result<()> {
        let (rows, e, m) = (prompts * length, self.down.outputs(), self.up.outputs());
        let normed = self.attention_norm.run(queue, rows, View::new(x, e));
        // Scores are not scaled: the weights of the queries were made that much smaller.
        let scores = Scores { scale: Some(1.0), bias: Some(bias), causal: false };
        let out = self.attention.run(queue, (prompts, length), normed, scores)?;
        queue.add_scaled(1.0, View::new(&out, e), ViewMut::new(x, e), rows * e);
        drop(out);

        let normed = self.mlp_norm.run(queue, rows, View::new(x, e));
        let gate = self.gate.run(queue, rows, View::new(&normed, e))?;
        let mut active = queue.take(rows * m, Kind::Activation);
        let (from, to) = (View::new(&gate, m), ViewMut::new(&mut active, m));
        queue.activate(Activation::Gelu, (rows, m), from, to);
        drop(gate);
        let inner = self.up.run(queue, rows, View::new(&normed, e))?;
        queue.multiply((rows, m), View::new(&inner, m), ViewMut::new(&mut active, m));
        drop((normed, inner));
        let out = self.down.run(queue, rows, View::new(&active, m))?;
        queue.add_scaled(1.0, View::new(&out, e), ViewMut::new(x, e), rows * e);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
