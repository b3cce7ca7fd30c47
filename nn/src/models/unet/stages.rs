//! A U-Net as a list of steps: residual blocks, transformers, halvings and doublings, in the order of a pass.
//!
//! What lies on the way down is kept for the way up (Ronneberger et al. 2015): a step may push its result on a stack, and a residual
//! block may pop one, which it sees as further channels. The list is compared with files, read from them, run, and counted for
//! planning, so that these cannot disagree.
//!
//! `C` channels, `F = 4 C`, `E` width of a text token.

use super::config::UNetConfig;
use crate::backbone::LinearLayout;

/// Width of the MLPs, in channels.
pub(super) const MLP_RATIO: usize = 4;

/// One step; names are those of a diffusers checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// A residual block that sees the time; `skip` are the channels that it pops, or zero.
    Resnet { name: String, inputs: usize, skip: usize, outputs: usize },
    /// A transformer over the pixels; `crossing` is the number of its first cross-attention among those of the pass.
    Transformer { name: String, channels: usize, heads: usize, depth: usize, crossing: usize },
    /// Half as many rows and columns.
    Down { name: String, channels: usize },
    /// Twice as many rows and columns.
    Up { name: String, channels: usize },
}

/// A stage, and whether its result is kept for the way up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub stage: Stage,
    pub pushes: bool,
}

/// The way down, the middle, and the way up.
///
/// # Panics
/// If the lists of the configuration have other lengths than it has blocks: see [`UNetConfig::check`].
pub(super) fn steps(config: &UNetConfig) -> Vec<Step> {
    let mut list = List { config, steps: Vec::new(), skips: vec![config.sinusoid()], crossing: 0 };
    let levels = config.block_out_channels.len();
    let mut channels = config.sinusoid();
    for level in 0..levels {
        let name = format!("down_blocks.{level}");
        let outputs = config.block_out_channels[level];
        for layer in 0..of(&config.layers_per_block, level) {
            list.resnet(&name, layer, channels, 0, outputs);
            channels = outputs;
            if config.down_block_types[level].starts_with("CrossAttn") {
                list.transformer(&name, layer, channels, level);
            }
            list.push(channels);
        }
        if level + 1 < levels {
            list.add(Stage::Down { name: format!("{name}.downsamplers.0.conv"), channels });
            list.push(channels);
        }
    }
    list.resnet("mid_block", 0, channels, 0, channels);
    list.transformer("mid_block", 0, channels, levels - 1);
    list.resnet("mid_block", 1, channels, 0, channels);
    for (block, level) in (0..levels).rev().enumerate() {
        let name = format!("up_blocks.{block}");
        let outputs = config.block_out_channels[level];
        for layer in 0..=of(&config.layers_per_block, level) {
            let skip = list.skips.pop().unwrap_or(0);
            list.resnet(&name, layer, channels, skip, outputs);
            channels = outputs;
            if config.up_block_types[block].starts_with("CrossAttn") {
                list.transformer(&name, layer, channels, level);
            }
        }
        if level > 0 {
            list.add(Stage::Up { name: format!("{name}.upsamplers.0.conv"), channels });
        }
    }
    list.steps
}

fn of(list: &super::config::PerBlock, level: usize) -> usize {
    list.of(level).unwrap_or_else(|| unreachable!("a configuration that was checked has one for each block"))
}

struct List<'a> {
    config: &'a UNetConfig,
    steps: Vec<Step>,
    /// Channels of what was pushed and not yet popped.
    skips: Vec<usize>,
    crossing: usize,
}

impl List<'_> {
    fn add(&mut self, stage: Stage) {
        self.steps.push(Step { stage, pushes: false });
    }

    fn push(&mut self, channels: usize) {
        self.skips.push(channels);
        if let Some(step) = self.steps.last_mut() {
            step.pushes = true;
        }
    }

    fn resnet(&mut self, block: &str, layer: usize, inputs: usize, skip: usize, outputs: usize) {
        self.add(Stage::Resnet { name: format!("{block}.resnets.{layer}"), inputs, skip, outputs });
    }

    fn transformer(&mut self, block: &str, layer: usize, channels: usize, level: usize) {
        let (heads, depth) =
            (of(self.config.heads_per_block(), level), of(&self.config.transformer_layers_per_block, level));
        let name = format!("{block}.attentions.{layer}");
        self.add(Stage::Transformer { name, channels, heads, depth, crossing: self.crossing });
        self.crossing += depth;
    }
}

impl Stage {
    /// The linears of a transformer, in the order of use, each with whether it has a bias. With `image_prompt` those of an IP-Adapter
    /// are among them. Projections that are convolutions in the file are none of an adapter's business.
    pub fn linears(&self, config: &UNetConfig, image_prompt: bool) -> Vec<(LinearLayout, bool)> {
        let Self::Transformer { name, channels, depth, .. } = self else { return Vec::new() };
        let linear = |name: String, inputs, outputs, bias| {
            (LinearLayout { name, inputs, outputs, window: None }, bias)
        };
        let (c, f, e) = (*channels, MLP_RATIO * channels, config.cross_attention_dim);
        let projection = |which| {
            let there = config.use_linear_projection;
            there.then(|| linear(format!("{name}.{which}"), c, c, true))
        };
        let mut all = Vec::from_iter(projection("proj_in"));
        for block in 0..*depth {
            let at = |rest: &str| format!("{name}.transformer_blocks.{block}.{rest}");
            let attention = |which: &str, keys: usize| {
                [("to_q", c, false), ("to_k", keys, false), ("to_v", keys, false), ("to_out.0", c, true)]
                    .map(|(part, inputs, bias)| linear(at(&format!("{which}.{part}")), inputs, c, bias))
            };
            all.extend(attention("attn1", c));
            all.extend(attention("attn2", e));
            if image_prompt {
                all.extend(IMAGE_PROMPT.map(|part| linear(at(part), e, c, false)));
            }
            all.push(linear(at("ff.net.0.proj"), c, 2 * f, true));
            all.push(linear(at("ff.net.2"), f, c, true));
        }
        all.extend(projection("proj_out"));
        all
    }

    /// Its convolutions, in the order of use; projections that are convolutions in the file are none of an adapter's business.
    pub fn convs(&self) -> Vec<LinearLayout> {
        match self {
            Self::Resnet { name, inputs, skip, outputs } => {
                let (i, o) = (inputs + skip, *outputs);
                let mut all =
                    vec![conv(format!("{name}.conv1"), 3, i, o), conv(format!("{name}.conv2"), 3, o, o)];
                all.extend((i != o).then(|| conv(format!("{name}.conv_shortcut"), 1, i, o)));
                all
            }
            Self::Transformer { .. } => Vec::new(),
            Self::Down { name, channels } | Self::Up { name, channels } => {
                vec![conv(name.clone(), 3, *channels, *channels)]
            }
        }
    }

    /// Every tensor that the stage reads from the checkpoint, with its shape.
    pub fn tensors(&self, config: &UNetConfig) -> Vec<(String, Vec<usize>)> {
        let mut all = Vec::new();
        let mut both = |name: String, shape: Vec<usize>| {
            all.push((format!("{name}.bias"), vec![shape[0]]));
            all.push((format!("{name}.weight"), shape));
        };
        match self {
            Self::Resnet { name, inputs, skip, outputs } => {
                let (i, o) = (inputs + skip, *outputs);
                both(format!("{name}.norm1"), vec![i]);
                both(format!("{name}.conv1"), vec![o, i, 3, 3]);
                both(format!("{name}.time_emb_proj"), vec![o, config.time_width()]);
                both(format!("{name}.norm2"), vec![o]);
                both(format!("{name}.conv2"), vec![o, o, 3, 3]);
                if i != o {
                    both(format!("{name}.conv_shortcut"), vec![o, i, 1, 1]);
                }
            }
            Self::Transformer { name, channels, depth, .. } => {
                let c = *channels;
                both(format!("{name}.norm"), vec![c]);
                if !config.use_linear_projection {
                    both(format!("{name}.proj_in"), vec![c, c, 1, 1]);
                    both(format!("{name}.proj_out"), vec![c, c, 1, 1]);
                }
                for (block, norm) in (0..*depth).flat_map(|b| (1..4).map(move |n| (b, n))) {
                    both(format!("{name}.transformer_blocks.{block}.norm{norm}"), vec![c]);
                }
                for (LinearLayout { name, inputs, outputs, .. }, bias) in self.linears(config, false) {
                    all.push((format!("{name}.weight"), vec![outputs, inputs]));
                    all.extend(bias.then(|| (format!("{name}.bias"), vec![outputs])));
                }
            }
            Self::Down { name, channels } | Self::Up { name, channels } => {
                both(name.clone(), vec![*channels, *channels, 3, 3]);
            }
        }
        all
    }
}

/// A convolution as a linear over its windows.
pub(super) fn conv(name: String, side: usize, channels: usize, outputs: usize) -> LinearLayout {
    LinearLayout { name, inputs: side * side * channels, outputs, window: Some(side) }
}

/// The linears of an IP-Adapter within a block: the original implementation has them in the attention's processor.
pub(super) const IMAGE_PROMPT: [&str; 2] = ["attn2.to_k_ip", "attn2.to_v_ip"];

/// Is this one of the linears of an IP-Adapter?
pub(super) fn is_of_image_prompt(linear: &str) -> bool {
    IMAGE_PROMPT.iter().any(|part| linear.ends_with(part))
}

/// Names of all cross-attentions in the order in which IP-Adapter files number them: down, up, middle.
pub(super) fn numbered_crossings(config: &UNetConfig) -> Vec<String> {
    let steps = steps(config);
    let of = |part: &'static str| {
        steps.iter().filter_map(move |step| match &step.stage {
            Stage::Transformer { name, depth, .. } if name.starts_with(part) => Some((name, *depth)),
            _ => None,
        })
    };
    let blocks = |(name, depth): (&String, usize)| {
        let name = name.clone();
        (0..depth).map(move |block| format!("{name}.transformer_blocks.{block}"))
    };
    ["down_blocks", "up_blocks", "mid_block"].into_iter().flat_map(of).flat_map(blocks).collect()
}
