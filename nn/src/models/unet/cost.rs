//! The cost of a pass and the bytes of the weights, from sizes alone.
//!
//! `N` batch, `P` pixels of all samples, `C` channels, `F = 4 C`, `L` text tokens, `K` image tokens, `R` rank.
//!
//! Operations are those of the products (a product `[M, K] x [K, N]` has `2 M K N`); passes over values one by one are left out. What
//! a backward skips is not counted: weights' derivatives, and everything before the first adapted linear.

use std::collections::HashSet;

use super::{
    UNetOptions,
    config::UNetConfig,
    stages::{MLP_RATIO, Stage, Step, is_of_image_prompt, steps},
};
use crate::{
    backbone::{LinearLayout, PassCost, Pictures},
    cost::DeviceKind,
    cuda,
    device::ConvWindow,
    layers::{
        Packing,
        conv::{conv_flops, conv_scratch},
    },
    lora::AdapterLayout,
    models::{
        Checkpointing,
        footprint::{Held, Storage, factor_bytes, value},
    },
    size,
    vision::ResamplerSizes,
};

/// Image tokens of a reference, as published IP-Adapters have them.
pub const IMAGE_TOKENS: usize = 16;

/// A block's last linear.
const LAST: &str = "ff.net.2";

/// Sizes of a pass: samples, latent grid, references, text tokens.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub batch: usize,
    pub grid: (usize, usize),
    pub references: usize,
    pub text: usize,
}

/// A U-Net on a device of this kind.
pub(super) struct Costs<'a> {
    pub on: DeviceKind,
    pub config: &'a UNetConfig,
    pub options: &'a UNetOptions,
    pub image_prompt: bool,
    /// Of a resampler that is inside, and what it is given of a picture.
    pub resampler: Option<(&'a ResamplerSizes, Pictures)>,
}

/// What is counted of a pass.
struct Counter<'a> {
    sizes: Sizes,
    image_tokens: f64,
    rank: f64,
    /// Is the derivative by image tokens wanted?
    by_images: bool,
    /// Linears of which something is trained, and those that are trained whole.
    adapted: HashSet<&'a str>,
    whole: HashSet<&'a str>,
    cost: PassCost,
    /// Kept for the backward.
    kept: Held,
    /// The most that is held besides, while a step runs.
    running: Held,
    /// The most that a block keeps that the backward runs again.
    again: Held,
    /// Operations of what the backward runs again.
    repeated_flops: f64,
}

impl Costs<'_> {
    /// Bytes that weights hold on the device: convolutions and linears alike.
    pub fn resident(&self, adapter: Option<&AdapterLayout>) -> usize {
        if self.options.loading.packing == Packing::Streamed {
            return 0;
        }
        let matrices = size::product([self.parameters(), value(self.options.loading.precision)]);
        // The processor packs a matrix once for each direction.
        let directions = if self.on == DeviceKind::Cpu && adapter.is_some() { 2 } else { 1 };
        size::product([matrices, directions])
    }

    fn parameters(&self) -> usize {
        let of_resampler = self.resampler.map_or(0, |(sizes, _)| sizes.parameters());
        self.config.layout(self.image_prompt).parameters + of_resampler
    }

    /// Image tokens of a reference.
    fn tokens(&self) -> usize {
        self.resampler.map_or(IMAGE_TOKENS, |(sizes, _)| sizes.queries)
    }

    /// Bytes on the device for weights that are streamed, while a pass runs.
    fn streamed(&self) -> usize {
        if self.options.loading.packing == Packing::Resident {
            return 0;
        }
        let (all, value) = (steps(self.config), value(self.options.loading.precision));
        let linears = all.iter().flat_map(|step| step.stage.linears(self.config, self.image_prompt));
        let tensors = all.iter().flat_map(|step| step.stage.tensors(self.config));
        let largest = tensors.map(|(_, shape)| shape.iter().product::<usize>()).max().unwrap_or(0) * value;
        // Of a transformer's block: the widest has twelve linears at most.
        let linear = linears.map(|(l, _)| l.inputs * l.outputs).max().unwrap_or(0) * value;
        match self.on {
            DeviceKind::Cpu => largest,
            DeviceKind::Cuda => largest + cuda::GROUPS * 3 * linear,
        }
    }

    pub fn of_a_pass(&self, sizes: Sizes, adapter: Option<&AdapterLayout>) -> PassCost {
        let config = self.config;
        let all = steps(config);
        let image_tokens =
            if self.image_prompt { (sizes.references.max(1) * self.tokens()) as f64 } else { 0.0 };
        let mut c = Counter {
            sizes,
            image_tokens,
            rank: adapter.map_or(0, |a| a.rank) as f64,
            by_images: false,
            adapted: adapter
                .iter()
                .flat_map(|a| a.modules.iter().chain(&a.whole))
                .map(|m| &*m.name)
                .collect(),
            whole: adapter.iter().flat_map(|a| &a.whole).map(|m| m.name.as_str()).collect(),
            cost: PassCost::default(),
            kept: Held::default(),
            running: Held::default(),
            again: Held::default(),
            repeated_flops: 0.0,
        };
        let linears: Vec<_> = all.iter().map(|step| step.stage.linears(config, self.image_prompt)).collect();
        let named = |name: &str| c.adapted.contains(name);
        let adapted = |step: &Step, of: &[(LinearLayout, bool)]| {
            of.iter().any(|(l, _)| named(&l.name)) || step.stage.convs().iter().any(|l| named(&l.name))
        };
        // A derivative by image tokens goes through every cross-attention.
        let resampler = self.resampler.filter(|_| sizes.references > 0);
        let resampled =
            resampler.is_some_and(|(of, _)| of.linears().iter().any(|l| c.adapted.contains(l.name.as_str())));
        let reached = |(step, of): (&Step, &Vec<(LinearLayout, bool)>)| {
            adapted(step, of) || resampled && !of.is_empty()
        };
        let first = if named("conv_in") {
            0
        } else {
            all.iter().zip(&linears).position(reached).unwrap_or(all.len())
        };
        let ends = [named("conv_in"), named("conv_out")];
        c.by_images = resampled;
        let mut size = sizes.grid;
        let (io, first_channels) = (config.in_channels, config.sinusoid());
        let pixels = |(h, w): (usize, usize)| (sizes.batch * h * w) as f64;
        c.conv(ConvWindow::Three, (io, first_channels), pixels(size), false, ends[0]);
        for (number, (Step { stage, .. }, linears)) in all.iter().zip(&linears).enumerate() {
            let (reached, below) = (number >= first, number > first);
            let before = (c.kept, c.again, c.repeated_flops, c.cost.backward_flops);
            c.stage(stage, linears, &mut size, self.options.checkpointing, below);
            if !reached {
                (c.kept, c.again, c.repeated_flops, c.cost.backward_flops) = before;
            }
        }
        let reached = first < all.len() || ends[1];
        c.conv(ConvWindow::Three, (first_channels, io), pixels(size), reached, ends[1]);
        if reached {
            // What the last norm reads; of the steps that no derivative reaches, what lies on the way down; and the conditions.
            let tokens = sizes.text as f64 + image_tokens;
            let conditions = sizes.batch as f64
                * (tokens * config.cross_attention_dim as f64 + config.time_width() as f64);
            let ends = 2.0 * pixels(sizes.grid) * first_channels as f64;
            c.kept.activations += ends + skipped(&all[..first], sizes) + conditions;
        } else {
            c.kept = Held::default();
        }
        if let Some((of, pictures)) = resampler {
            c.resampler(of, sizes.batch * sizes.references, pictures.count, resampled);
        }
        let storage = Storage::new(self.on, self.options.loading.precision);
        let streamed = self.streamed();
        let bytes_read = match self.on {
            DeviceKind::Cpu => size_of::<f32>(),
            DeviceKind::Cuda => value(self.options.loading.precision),
        };
        // What lies on the way down is held for the way up.
        let skips = Held { activations: skipped(&all, sizes), exact: 0.0 };
        c.cost.precision = self.options.loading.precision;
        c.cost.weight_bytes = self.parameters() as f64 * bytes_read as f64;
        c.cost.saved_bytes = storage.bytes(c.kept);
        c.cost.scratch_bytes = size::sum([storage.bytes(c.running + skips), streamed]);
        let mut backward = c.running + c.running + skips;
        if self.options.checkpointing == Checkpointing::Blocks && reached {
            backward = backward + c.again;
            c.cost.backward_flops += c.repeated_flops;
        }
        c.cost.backward_scratch_bytes = size::sum([storage.bytes(backward), streamed]);
        let values = adapter.map_or(0, AdapterLayout::len);
        c.cost.factor_bytes = factor_bytes(self.on, self.options.loading.precision, values);
        c.cost.queue_bytes = self.on.queue_bytes();
        if self.options.loading.packing == Packing::Streamed {
            c.cost.host_bytes = self.on.pinned_bytes();
        }
        c.cost
    }
}

/// Values of all results that are kept for the way up.
fn skipped(all: &[Step], sizes: Sizes) -> f64 {
    let (mut size, mut values) = (sizes.grid, 0.0);
    for Step { stage, pushes } in all {
        let channels = match stage {
            Stage::Resnet { outputs, .. } => *outputs,
            Stage::Down { channels, .. } => {
                size = (size.0.div_ceil(2), size.1.div_ceil(2));
                *channels
            }
            Stage::Transformer { channels, .. } | Stage::Up { channels, .. } => *channels,
        };
        values += if *pushes { (sizes.batch * size.0 * size.1 * channels) as f64 } else { 0.0 };
    }
    values
}

impl Counter<'_> {
    /// A convolution of so many output pixels; `by_input`: is the derivative by its input wanted? `adapted`: has it factors? Returns the
    /// operations of its forward.
    fn conv(
        &mut self,
        window: ConvWindow,
        channels: (usize, usize),
        pixels: f64,
        by_input: bool,
        adapted: bool,
    ) -> f64 {
        let flops = conv_flops(window, channels, pixels);
        let mut forward = flops;
        if adapted {
            // Forward once, and once more in the backward, with as many products for the derivatives.
            let terms = (window.side().pow(2) * channels.0) as f64;
            let factors = 2.0 * pixels * self.rank * (terms + channels.1 as f64);
            forward += factors;
            self.cost.backward_flops += 3.0 * factors;
        }
        self.cost.forward_flops += forward;
        self.cost.backward_flops += if by_input { flops } else { 0.0 };
        let (inputs, outputs) = (channels.0 as f64, channels.1 as f64);
        // The input, its norm, the windows, the result, and what it is added to.
        let activations = conv_scratch(window, channels.0, pixels) + pixels * (2.0 * inputs + 2.0 * outputs);
        self.running = self.running.max(Held { activations, exact: 0.0 });
        forward
    }

    /// A linear over `rows` rows; `by_input`: is the derivative by its input wanted? Returns the operations of its forward.
    fn linear(&mut self, linear: &LinearLayout, rows: f64, by_input: bool) -> f64 {
        let (inputs, outputs) = (linear.inputs as f64, linear.outputs as f64);
        let mut forward = 2.0 * rows * inputs * outputs;
        self.cost.backward_flops += if by_input { 2.0 * rows * inputs * outputs } else { 0.0 };
        if self.whole.contains(linear.name.as_str()) {
            let product = 2.0 * rows * inputs * outputs;
            forward += product;
            self.cost.backward_flops += if by_input { 2.0 * product } else { product };
        } else if self.adapted.contains(linear.name.as_str()) {
            forward += 2.0 * rows * self.rank * (inputs + outputs);
            let products = if by_input { 2.0 * inputs } else { inputs } + 2.0 * outputs;
            self.cost.backward_flops += 2.0 * rows * self.rank * products;
            self.kept.activations += rows * self.rank;
        }
        self.cost.forward_flops += forward;
        forward
    }

    /// Operations of `x A^T` of a linear, if it has factors.
    fn inner(&self, linear: &LinearLayout, rows: f64) -> f64 {
        let name = linear.name.as_str();
        let has_factors = self.adapted.contains(name) && !self.whole.contains(name);
        if has_factors { 2.0 * rows * self.rank * linear.inputs as f64 } else { 0.0 }
    }

    /// The resampler, for so many pictures of `tokens` tokens; `trained`: is there a backward?
    fn resampler(&mut self, of: &ResamplerSizes, pictures: usize, tokens: usize, trained: bool) {
        let cost = of.cost(pictures, tokens, if trained { self.rank as usize } else { 0 });
        self.cost.forward_flops += cost.linears + cost.attention;
        self.running = self.running.max(Held { activations: cost.alive, exact: 0.0 });
        if trained {
            self.cost.backward_flops += cost.linears + 2.5 * cost.attention;
            let [activations, exact] = cost.kept;
            self.kept = self.kept + Held { activations, exact };
        }
    }

    /// Attention of `rows` queries over `keys` keys of their sample each, in a block that may run again.
    fn attention(&mut self, rows: f64, keys: f64, channels: f64) {
        let product = 2.0 * rows * keys * channels;
        self.cost.forward_flops += 2.0 * product;
        self.cost.backward_flops += 5.0 * product;
        self.repeated_flops += 2.0 * product;
    }

    fn stage(
        &mut self,
        stage: &Stage,
        linears: &[(LinearLayout, bool)],
        size: &mut (usize, usize),
        checkpointing: Checkpointing,
        below: bool,
    ) {
        let pixels = |(h, w): (usize, usize)| (self.sizes.batch * h * w) as f64;
        match stage {
            Stage::Resnet { inputs, skip, outputs, .. } => {
                let (p, i, o) = (pixels(*size), inputs + skip, *outputs);
                let convs = stage.convs();
                let mut forward = Vec::new();
                for (conv, channels) in convs.iter().zip([(i, o), (o, o), (i, o)]) {
                    let window = if conv.window == Some(1) { ConvWindow::One } else { ConvWindow::Three };
                    let adapted = self.adapted.contains(conv.name.as_str());
                    forward.push(self.conv(window, channels, p, below || adapted, adapted));
                }
                // A block that runs again ends with the first one's result.
                self.repeated_flops += forward[0];
                let middle = Held { activations: p * o as f64, exact: 0.0 };
                // Both inputs joined, and what the first convolution reads of them.
                let adapts = |conv: usize| usize::from(self.adapted.contains(&*convs[conv].name));
                let read = usize::from(*skip > 0) + adapts(0);
                let fresh = Held { activations: p * (read * i) as f64, exact: 0.0 };
                // What the second convolution reads.
                let read_last = Held { activations: p * (adapts(1) * o) as f64, exact: 0.0 };
                match checkpointing {
                    Checkpointing::None => self.kept = self.kept + middle + fresh + read_last,
                    Checkpointing::Selective => self.kept = self.kept + middle,
                    Checkpointing::Blocks => self.again = self.again.max(middle + fresh),
                }
                // The input, which is the result of the step before.
                self.kept.activations += p * *inputs as f64;
            }
            Stage::Transformer { channels, heads, depth, .. } => {
                let p = pixels(*size);
                self.transformer(linears, (p, *channels as f64, *heads as f64, *depth), checkpointing, below);
            }
            Stage::Down { channels, name } | Stage::Up { channels, name } => {
                let adapted = self.adapted.contains(name.as_str());
                let window = match stage {
                    Stage::Down { .. } => ConvWindow::ThreeHalvingCentred,
                    _ => ConvWindow::ThreeOfDoubled,
                };
                let after = (window.output(size.0), window.output(size.1));
                let p = pixels(after);
                if adapted {
                    self.kept.activations += pixels(*size) * *channels as f64;
                }
                *size = after;
                self.conv(window, (*channels, *channels), p, below, adapted);
            }
        }
    }

    fn transformer(
        &mut self,
        linears: &[(LinearLayout, bool)],
        (p, c, heads, depth): (f64, f64, f64, usize),
        checkpointing: Checkpointing,
        below: bool,
    ) {
        let n = self.sizes.batch as f64;
        let (text, image) = (n * self.sizes.text as f64, n * self.image_tokens);
        let before = self.kept;
        for (linear, _) in linears {
            let of_text = linear.name.ends_with("attn2.to_k") || linear.name.ends_with("attn2.to_v");
            let of_image = is_of_image_prompt(&linear.name);
            let (rows, by_input) = match (of_text, of_image) {
                (true, _) => (text, false),
                (_, true) => (image, self.by_images),
                _ => (p, below || !linear.name.ends_with("proj_in")),
            };
            let forward = self.linear(linear, rows, by_input);
            let is = |part: &str| linear.name.ends_with(part);
            // Projections are outside of the blocks, and of its last linear a block that runs again needs `x A^T` only.
            let outside = is("proj_in") || is("proj_out");
            let of_block = if is(LAST) { self.inner(linear, rows) } else { forward };
            self.repeated_flops += if outside { 0.0 } else { of_block };
        }
        let inner = self.kept - before;
        for _ in 0..depth {
            for keys in [p, text, image] {
                self.attention(p, keys / n, c);
            }
        }
        let (crossings, mlp) = (if image > 0.0 { 2.0 } else { 1.0 }, MLP_RATIO as f64);
        // The stream three times; queries, keys, values and result of the pixels' own; queries and results over others, with their keys
        // and values; what the MLP's gate reads.
        let activations = p * c * (3.0 + 4.0 + 1.0 + crossings + 2.0 * mlp) + 2.0 * c * (text + image);
        let block = Held { activations, exact: p * heads * (1.0 + crossings) };
        let stream = Held { activations: p * c, exact: 0.0 };
        let fresh = Held { activations: p * c * self.fresh(linears, image > 0.0), exact: 0.0 };
        match checkpointing {
            Checkpointing::None | Checkpointing::Selective => {
                let made = if checkpointing == Checkpointing::None { fresh } else { Held::default() };
                for _ in 0..depth {
                    self.kept = self.kept + block + made;
                }
            }
            Checkpointing::Blocks => {
                self.kept = self.kept - inner;
                for _ in 0..depth {
                    self.kept = self.kept + stream;
                }
                self.again = self.again.max(block + inner + fresh);
            }
        }
        // The input, and what the last projection reads.
        self.kept = self.kept + stream + stream;
        // What the first one reads.
        if checkpointing == Checkpointing::None && self.adapts_any(linears, &["proj_in"]) {
            self.kept = self.kept + stream;
        }
        // A block's MLP is its widest place: the stream, its norm, the gate's operands and result.
        let running = Held { activations: p * c * (6.0 + 3.0 * mlp), exact: 2.0 * p * heads };
        self.running = self.running.max(running);
    }

    /// Is one of these linears adapted whose names end so?
    fn adapts_any(&self, linears: &[(LinearLayout, bool)], ends: &[&str]) -> bool {
        let meant = |name: &str| ends.iter().any(|end| name.ends_with(end));
        linears.iter().any(|(l, _)| meant(&l.name) && self.adapted.contains(l.name.as_str()))
    }

    /// What a transformer's block keeps of what adapted linears read, where it keeps all that its backward reads: in widths of the stream.
    fn fresh(&self, linears: &[(LinearLayout, bool)], image: bool) -> f64 {
        let adapted = |parts: &[&str]| self.adapts_any(linears, parts);
        let normed = [&["attn1.to_q", "attn1.to_k", "attn1.to_v"][..], &["attn2.to_q"], &["ff.net.0.proj"]];
        let normed = normed.into_iter().filter(|parts| adapted(parts)).count();
        let joined = usize::from(image && adapted(&["attn2.to_out.0"]));
        let gated = if adapted(&[LAST]) { MLP_RATIO } else { 0 };
        (normed + joined + gated) as f64
    }
}
