//! The cost of a pass, from sizes alone.
//!
//! `N` batch, `S` tokens of the joint sequence, `D` width, `R` rank, `M` rows.
//!
//! Operations are those of the products (a product `[M, K] x [K, N]` has `2 M K N`); passes over values one by one
//! are left out. What a backward skips is not counted: weights' derivatives, everything before the first adapted
//! linear, and in the last block every row but the targets'.

use std::collections::HashSet;

use super::{
    config::{FluxConfig, MLP_RATIO, PATCH, SINUSOID},
    footprint::{FrozenWeights, blocks},
};
use crate::{
    backbone::{LinearLayout, PassCost},
    cost::DeviceKind,
    lora::{AdapterLayout, FrozenAdapter},
    models::{
        Checkpointing,
        footprint::{Held, factor_bytes},
    },
    size,
};

/// Sizes of a pass: samples, latent grids, text tokens.
pub(super) struct Sizes<'a> {
    pub batch: usize,
    pub grid: (usize, usize),
    pub references: &'a [(usize, usize)],
    pub text: usize,
}

/// Rows of the pass.
struct PassRows {
    batch: f64,
    text: f64,
    target: f64,
    image: f64,
    joint: f64,
}

struct Counter<'a> {
    rows: PassRows,
    width: f64,
    heads: f64,
    rank: f64,
    /// An adapter of the frozen network that is a branch.
    frozen: Option<&'a FrozenAdapter>,
    adapted: HashSet<&'a str>,
    cost: PassCost,
    /// Of the forward, what a block that runs again for its backward leaves out: its own result.
    results: f64,
    /// Kept for the backward.
    kept: Held,
    /// Is that all that it reads? Else it makes again what products have not made.
    keeps_all: bool,
}

impl Counter<'_> {
    fn adapts(&self, linear: &LinearLayout) -> bool {
        self.adapted.contains(linear.name.as_str())
    }

    /// A linear over `forward` rows, and over `backward` rows in the backward; `by_input`: is the derivative by its
    /// input wanted?
    fn linear(&mut self, linear: &LinearLayout, forward: f64, backward: f64, by_input: bool) {
        let (inputs, outputs) = (linear.inputs as f64, linear.outputs as f64);
        self.cost.forward_flops += 2.0 * forward * inputs * outputs;
        if by_input {
            self.cost.backward_flops += 2.0 * backward * inputs * outputs;
        }
        if let Some(branch) = self.frozen.and_then(|f| f.get(&linear.name)) {
            let product = 2.0 * branch.rank() as f64 * (inputs + outputs);
            self.cost.forward_flops += forward * product;
            self.cost.backward_flops += if by_input { backward * product } else { 0.0 };
        }
        if self.adapts(linear) {
            self.cost.forward_flops += 2.0 * forward * self.rank * (inputs + outputs);
            let products = if by_input { 2.0 * inputs } else { inputs } + 2.0 * outputs;
            self.cost.backward_flops += 2.0 * backward * self.rank * products;
            self.kept.activations += forward * self.rank;
        }
    }

    /// What a backward could make again, of rows of the stream's width or of so many widths.
    fn keep_made(&mut self, rows: f64, widths: f64, wanted: bool) {
        if self.keeps_all && wanted {
            self.kept.activations += rows * widths * self.width;
        }
    }

    /// Is one of these linears adapted?
    fn adapts_any(&self, linears: &[LinearLayout]) -> bool {
        linears.iter().any(|linear| self.adapts(linear))
    }

    /// A linear that was counted makes a block's result; `wanted`: does the block's backward need it?
    fn result(&mut self, linear: &LinearLayout, rows: f64, wanted: bool) {
        if wanted {
            return;
        }
        let (inputs, outputs) = (linear.inputs as f64, linear.outputs as f64);
        let branch = self.frozen.and_then(|f| f.get(&linear.name)).map_or(0.0, |b| b.rank() as f64);
        let trained = if self.adapts(linear) { self.rank * outputs } else { 0.0 };
        self.results += 2.0 * rows * (inputs * outputs + branch * (inputs + outputs) + trained);
    }

    /// Attention of `forward` query rows; of the backward, which also repeats the scores, `backward` rows.
    fn attention(&mut self, forward: f64, backward: f64) {
        let product = 2.0 * self.rows.joint / self.rows.batch * self.width;
        self.cost.forward_flops += 2.0 * product * forward;
        self.cost.backward_flops += 5.0 * product * backward;
    }
}

pub(super) fn cost(
    weights: &FrozenWeights<'_>,
    Sizes { batch, grid, references, text }: Sizes<'_>,
    adapter: Option<&AdapterLayout>,
) -> PassCost {
    let FrozenWeights { config, options, .. } = *weights;
    let storage = weights.storage();
    let tokens = |(h, w): (usize, usize)| (h / PATCH * (w / PATCH)) as f64;
    let n = batch as f64;
    let target = n * tokens(grid);
    let image = target + n * references.iter().copied().map(tokens).sum::<f64>();
    let joint = image + n * text as f64;
    let width = config.width() as f64;
    let mut c = Counter {
        rows: PassRows { batch: n, text: n * text as f64, target, image, joint },
        width,
        heads: config.num_attention_heads as f64,
        rank: adapter.map_or(0.0, |a| a.rank as f64),
        frozen: weights.branches(),
        adapted: adapter.map_or(HashSet::new(), |a| a.modules.iter().map(|m| m.name.as_str()).collect()),
        cost: PassCost::default(),
        results: 0.0,
        kept: Held::default(),
        keeps_all: options.checkpointing == Checkpointing::None,
    };
    let (double, single) = blocks(config);
    let count = double.len() + single.len();
    let first = double.iter().chain(&single).position(|b| b.iter().any(|l| c.adapts(l))).unwrap_or(count);
    let mut largest = 0.0f64;
    // The processor lends the MLP the memory of what the last linear of another block has read, which is longer by a width.
    let longer = if weights.on == DeviceKind::Cpu { 1.0 } else { 0.0 };
    // Held while a block runs again and its backward runs, beyond the inputs of all blocks: the most.
    let mut again = Held::default();
    let input = Held { activations: joint * width, exact: 0.0 };
    let mut keep = |kept: &mut Held, before: Held, number: usize, beside: f64| {
        let own = *kept - before;
        *kept = match options.checkpointing {
            _ if number < first => before,
            Checkpointing::None | Checkpointing::Selective => return,
            Checkpointing::Blocks => before + input,
        };
        if number >= first {
            // What is kept of it has its input among it, and those of the blocks behind it are gone.
            let gone = (count - number) as f64;
            again = again.max(own + Held { activations: (beside - gone) * input.activations, exact: 0.0 });
        }
    };
    for (i, block) in double.iter().enumerate() {
        let before = c.kept;
        double_block(&mut c, block, i >= first, i > first);
        // Normed rows of both norms, the attention's result in the order of rows, queries and keys by heads, GELU's result; the
        // cotangents of the block's and the attention's result, and one of a stream.
        keep(&mut c.kept, before, i, 5.0 + MLP_RATIO as f64 + 3.0);
        // In the attention: the stream, queries, keys and values twice, the result. In the MLP, where it may be more: the stream
        // before and after the attention, the result, `up` and its GELU.
        let attention = 8.0 * joint * width;
        let mlp = 3.0 * joint * width + image * width * 2.0 * MLP_RATIO as f64;
        largest = largest.max(attention.max(mlp));
    }
    for (i, block) in single.iter().enumerate() {
        let number = double.len() + i;
        let last = i + 1 == single.len();
        let before = c.kept;
        single_block(&mut c, block, last, number >= first, number > first);
        // Normed rows, queries and keys by heads, and what the last linear reads or then its cotangent; the cotangents of the block's
        // result and of the last linear's.
        keep(&mut c.kept, before, number, 4.0 + MLP_RATIO as f64 + 2.0);
        // The stream, queries, keys and values twice, `up`.
        largest = largest.max((7.0 + longer + MLP_RATIO as f64) * joint * width);
    }
    outer(config, &mut c, adapter.is_some() && first < count);
    if first < count {
        // The targets' rows before the last norm.
        c.kept.activations += target * width;
        c.kept.exact += 2.0 * target;
    } else {
        c.kept = Held::default();
    }
    let running = Held { activations: largest, exact: 0.0 };
    // In the attention of a block with one stream: the cotangents of the block's result, of what the last linear reads and of the
    // attention's result; queries and keys by heads, unless they were kept. A block with two streams has no more.
    // On the processor what is kept may have been lent longer memory, as much as they take.
    let heads = if c.keeps_all && weights.on == DeviceKind::Cuda { 0.0 } else { 2.0 };
    let running_back =
        Held { activations: (3.0 + heads + longer + MLP_RATIO as f64) * input.activations, exact: 0.0 };
    // Of every query the logarithm of its sum, and in the backward the product of its result and its cotangent.
    let lse = Held { activations: 0.0, exact: c.rows.joint * c.heads };
    let streamed = weights.streamed();
    c.cost.precision = options.loading.precision;
    c.cost.weight_bytes = weights.read_by_a_forward();
    c.cost.saved_bytes =
        size::sum([storage.bytes(c.kept), if first < count { weights.kept_streamed() } else { 0 }]);
    let factor_bytes = |values| factor_bytes(weights.on, options.loading.precision, values);
    let (backward, block_factors) = match options.checkpointing {
        Checkpointing::None | Checkpointing::Selective => {
            c.cost.factor_bytes = factor_bytes(adapter.map_or(0, AdapterLayout::len));
            (running_back, 0)
        }
        Checkpointing::Blocks => {
            c.cost.backward_flops += if first < count { c.cost.forward_flops - c.results } else { 0.0 };
            // Factors are those of one block at a time.
            let values = |block: &Vec<LinearLayout>| {
                let adapted = block.iter().filter(|linear| c.adapts(linear));
                adapter.map_or(0, |adapter| adapted.map(|l| adapter.rank * (l.inputs + l.outputs)).sum())
            };
            (again, factor_bytes(double.iter().chain(&single).map(values).max().unwrap_or(0)))
        }
    };
    let scratch = |held| size::sum([storage.bytes(held), block_factors, streamed]);
    c.cost.scratch_bytes = scratch(running + lse);
    c.cost.backward_scratch_bytes = scratch(backward + lse + lse);
    (c.cost.queue_bytes, c.cost.host_bytes) = (weights.on.queue_bytes(), weights.pinned());
    c.cost
}

fn double_block(c: &mut Counter<'_>, block: &[LinearLayout], reached: bool, below: bool) {
    let [image_all, text_all] = [&block[..block.len() / 2], &block[block.len() / 2..]];
    let streams = [(image_all, c.rows.image), (text_all, c.rows.text)];
    let projections = |c: &Counter<'_>, s: &[LinearLayout]| c.adapts_any(&s[..4]);
    let operands = below || streams.iter().any(|(s, _)| projections(c, s));
    for (stream, rows) in streams {
        let norm = below || c.adapts(&stream[0]);
        let middle = operands || c.adapts(&stream[4]);
        let up = middle || c.adapts(&stream[5]);
        let by_input = [false, norm, norm, norm, operands, middle, up];
        for (i, (linear, by_input)) in stream.iter().zip(by_input).enumerate() {
            let rows = if i == 0 { c.rows.batch } else { rows };
            c.linear(linear, rows, rows, by_input && reached);
        }
        c.result(&stream[6], rows, c.adapts(&stream[0]));
        // Input, middle, queries, keys and `up`; results before the gates where those are adapted.
        let gated = if c.adapts(&stream[0]) { 2.0 } else { 0.0 };
        c.kept.activations += rows * c.width * (4.0 + gated + MLP_RATIO as f64);
        // Mean and deviation of two norms.
        c.kept.exact += 4.0 * rows;
        // Normed rows, the attention's result in their order, and the result of the GELU.
        for (linears, widths) in [
            (&stream[1..4], 1.0),
            (&stream[4..5], 1.0),
            (&stream[5..6], 1.0),
            (&stream[6..7], MLP_RATIO as f64),
        ] {
            c.keep_made(rows, widths, c.adapts_any(linears));
        }
    }
    let rows = c.rows.joint;
    c.attention(rows, if operands && reached { rows } else { 0.0 });
    // Values, and the attention's result with the logarithms of its sums; twelve chunks of modulations.
    c.kept.activations += (2.0 * c.rows.joint + 12.0 * c.rows.batch) * c.width;
    c.kept.exact += c.rows.joint * c.heads;
    // Queries and keys by heads.
    c.keep_made(c.rows.joint, 2.0, true);
}

fn single_block(c: &mut Counter<'_>, block: &[LinearLayout], last: bool, reached: bool, below: bool) {
    let norm = below || c.adapts(&block[0]);
    let inside = norm || c.adapts_any(&block[1..5]);
    let joint = c.rows.joint;
    // A visitor sees the image rows of the last block; its derivative is of the targets alone.
    let forward = if last { c.rows.image } else { joint };
    let backward = if last { c.rows.target } else { joint };
    let by_input = [false, norm, norm, norm, norm, inside];
    for (i, (linear, by_input)) in block.iter().zip(by_input).enumerate() {
        let (forward, backward) = match i {
            0 => (c.rows.batch, c.rows.batch),
            2 | 3 => (joint, joint),
            _ => (forward, backward),
        };
        c.linear(linear, forward, backward, by_input && reached);
    }
    c.result(&block[5], forward, c.adapts(&block[0]));
    c.attention(forward, if inside && reached { backward } else { 0.0 });
    // Input, keys, values and the attention's result of all rows; queries and `up` of those that were computed.
    let gated = if c.adapts(&block[0]) { 1.0 } else { 0.0 };
    c.kept.activations += c.width * (4.0 * joint + forward * (1.0 + gated + MLP_RATIO as f64));
    c.kept.activations += 3.0 * c.rows.batch * c.width;
    c.kept.exact += joint * (2.0 + c.heads);
    // Normed rows; queries and keys by heads; what the last linear reads.
    c.keep_made(joint, 1.0, c.adapts_any(&block[1..5]));
    c.keep_made(joint, 2.0, true);
    c.keep_made(forward, 1.0 + MLP_RATIO as f64, c.adapts(&block[5]));
}

/// What stands before the blocks and after them.
fn outer(config: &FluxConfig, c: &mut Counter<'_>, backward: bool) {
    let (n, width) = (c.rows.batch, c.width);
    let product = |m: f64, k: usize, n: f64| 2.0 * m * k as f64 * n;
    let token = config.in_channels as f64;
    let embedders = if config.guidance_embeds { 2.0 } else { 1.0 };
    c.cost.forward_flops += product(c.rows.image, config.in_channels, width)
        + product(c.rows.text, config.joint_attention_dim, width)
        + embedders * (product(n, SINUSOID, width) + product(n, config.width(), width))
        + product(n, config.pooled_projection_dim, width)
        + product(n, config.width(), width)
        + product(n, config.width(), 2.0 * width)
        + product(c.rows.target, config.width(), token);
    if backward {
        c.cost.backward_flops += product(c.rows.target, config.width(), token);
    }
}
