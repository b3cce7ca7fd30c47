//! The block that encoders of prompts and of pictures are made of: attention and an MLP, each over a norm of the stream and
//! added to it.
//!
//! ```text
//! B  samples    T  tokens    E  width    M  width of the MLP
//! ```

use super::weights::{LOADING, PrefixedFiles};
use crate::{
    cost::PassCost,
    device::{Activation, Device, Kind, NormKind, Queue, Scores, TokenRows, View, ViewMut},
    error::Result,
    layers::{Attention, Linear, Norm, attention_flops},
    size,
};

/// The sizes of a block, and what it is made of besides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockSizes {
    /// E.
    pub width: usize,
    /// M.
    pub mlp: usize,
    pub heads: usize,
    pub activation: Activation,
    /// Added to the variance in norms.
    pub eps: f64,
}

/// How a file calls the parts of one block, without `.weight` and `.bias`.
#[derive(Clone, Debug)]
pub(crate) struct BlockNames {
    /// That of the attention, that of the MLP.
    pub norms: [String; 2],
    /// Queries, keys, values, and the linear behind the attention.
    pub attention: [String; 4],
    /// Up and down.
    pub mlp: [String; 2],
    /// The whole names of what results are multiplied by, in encoders that have it.
    pub scales: Option<[String; 2]>,
}

impl BlockNames {
    /// A block of CLIP, of text or of pictures, as transformers calls it.
    pub fn clip(number: usize) -> Self {
        let at = |part: &str| format!("encoder.layers.{number}.{part}");
        Self {
            norms: [at("layer_norm1"), at("layer_norm2")],
            attention: ["q_proj", "k_proj", "v_proj", "out_proj"].map(|l| at(&format!("self_attn.{l}"))),
            mlp: [at("mlp.fc1"), at("mlp.fc2")],
            scales: None,
        }
    }

    /// Every tensor of the block, with its shape.
    pub fn tensors(&self, sizes: BlockSizes) -> Vec<(String, Vec<usize>)> {
        let (e, m) = (sizes.width, sizes.mlp);
        let norms = self.norms.iter().map(|name| (name, vec![e]));
        let linears = self.attention.iter().map(|name| (name, vec![e, e]));
        let mlp = self.mlp.iter().zip([vec![m, e], vec![e, m]]);
        let both = |(name, shape): (&String, Vec<usize>)| {
            let outputs = shape[0];
            [(format!("{name}.weight"), shape), (format!("{name}.bias"), vec![outputs])]
        };
        let scales = self.scales.iter().flatten().map(|name| (name.clone(), vec![e]));
        norms.chain(linears).chain(mlp).flat_map(both).chain(scales).collect()
    }
}

/// `x += s1 attention(norm(x))`, then `x += s2 down(f(up(norm(x))))`; most encoders have no scales.
#[derive(Debug)]
pub(crate) struct Block<D: Device> {
    pub attention_norm: Norm<D>,
    pub attention: Attention<D>,
    pub mlp_norm: Norm<D>,
    pub up: Linear<D>,
    pub activation: Activation,
    pub down: Linear<D>,
    /// What results are multiplied by before they are added, `[E]`: that of the attention, that of the MLP.
    pub scales: Option<[D::Buffer; 2]>,
}

impl<D: Device> Block<D> {
    /// Read norms, biases and scales; matrices stay in their file.
    pub fn read(device: &D, source: &PrefixedFiles, names: &BlockNames, sizes: BlockSizes) -> Result<Self> {
        let (e, m) = (sizes.width, sizes.mlp);
        let norm = |name: &str| source.norm(device, NormKind::Layer, name, e, sizes.eps);
        let scale = |name: &String| source.vector(device, name, e);
        let scales = match &names.scales {
            Some([attention, mlp]) => Some([scale(attention)?, scale(mlp)?]),
            None => None,
        };
        Ok(Self {
            attention_norm: norm(&names.norms[0])?,
            attention: source.attention(device, &names.attention, true, sizes.heads, (e, e))?,
            mlp_norm: norm(&names.norms[1])?,
            up: source.linear(device, &names.mlp[0], true, (e, m))?,
            activation: sizes.activation,
            down: source.linear(device, &names.mlp[1], true, (m, e))?,
            scales,
        })
    }

    /// Add attention and MLP to the stream `[B, T, E]`.
    pub fn run(
        &self,
        queue: &D::Queue,
        (samples, tokens): (usize, usize),
        scores: Scores<'_, D>,
        x: &mut D::Buffer,
    ) -> Result<()> {
        let (rows, e, m) = (samples * tokens, self.down.outputs(), self.up.outputs());
        let normed = self.attention_norm.run(queue, rows, View::new(x, e));
        let out = self.attention.run(queue, (samples, tokens), normed, scores)?;
        self.add(queue, rows, 0, out, x);

        let normed = self.mlp_norm.run(queue, rows, View::new(x, e));
        let inner = self.up.run(queue, rows, View::new(&normed, e))?;
        let mut active = queue.take(rows * m, Kind::Activation);
        let (from, to) = (View::new(&inner, m), ViewMut::new(&mut active, m));
        queue.activate(self.activation, (rows, m), from, to);
        drop((normed, inner));
        let out = self.down.run(queue, rows, View::new(&active, m))?;
        self.add(queue, rows, 1, out, x);
        Ok(())
    }

    /// Add a result to the stream, scaled where there are scales.
    fn add(&self, queue: &D::Queue, rows: usize, which: usize, mut out: D::Buffer, x: &mut D::Buffer) {
        let e = self.down.outputs();
        let (from, to) = (View::new(x, e), ViewMut::new(&mut out, e));
        match &self.scales {
            None => queue.add_scaled(1.0, from, to, rows * e),
            Some(scales) => {
                let all = TokenRows { batch: 1, tokens: rows, width: e };
                queue.gated_add(&[all], from, View::new(&scales[which], e), to);
            }
        }
        *x = out;
    }
}

/// What `count` such blocks take for `samples` times `tokens` tokens.
pub(crate) fn cost(sizes: BlockSizes, count: usize, samples: usize, tokens: usize) -> PassCost {
    let attention = attention_flops((sizes.width, sizes.width), samples as f64, tokens as f64);
    // In floating point: a number of tokens that somebody states may be too large for products of whole numbers.
    let (e, m, tokens) = (sizes.width as f64, sizes.mlp as f64, tokens as f64);
    let rows = samples as f64 * tokens;
    let flops = attention + 4.0 * e * m * rows;
    // The stream, its norm, queries, keys, values and their result; or the stream, its norm and the MLP twice. The scores
    // of one head. The largest weight as it is packed, and the memory of others that is kept for the next.
    let alive = rows * (2.0 * e + (4.0 * e).max(2.0 * m)) + tokens * tokens + 2.0 * e * m;
    PassCost {
        forward_flops: count as f64 * flops,
        scratch_bytes: size::bytes(4.0 * alive),
        precision: LOADING.precision,
        ..PassCost::default()
    }
}
