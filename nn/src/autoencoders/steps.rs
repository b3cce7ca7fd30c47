//! The building blocks of autoencoders as a checkpoint has them. A network is a list of steps, which is compared with a file,
//! read from it and counted for planning, so that the three cannot disagree.
//!
//! ```text
//! H, W  rows and columns of pixels    C  channels
//! ```

use std::sync::Arc;

use crate::{
    cost::PassCost,
    device::ConvWindow,
    files::TensorFiles,
    layers::{
        attention_flops,
        conv::{conv_flops, conv_scratch},
    },
    size,
};

/// One step of a network; names are those of a diffusers checkpoint, without `.weight` and `.bias`.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// A convolution.
    Conv { name: String, bias: bool, inputs: usize, outputs: usize, window: ConvWindow },
    /// `x + conv2(silu(norm2(conv1(silu(norm1(x))))))`, with a 1x1 convolution of `x` where the channels differ.
    Residual { name: String, inputs: usize, outputs: usize, groups: usize },
    /// `x + to_out(attention(norm(x)))` with one head over all pixels.
    Attention { name: String, channels: usize, groups: usize },
    /// Group norm, then SiLU.
    NormSilu { name: String, channels: usize, groups: usize },
    /// `max(x, 0)`.
    Relu { channels: usize },
    /// `relu(x + conv(relu(conv(relu(conv(x))))))`.
    Plain { name: String, channels: usize },
}

/// A file, and how the tensors of a checkpoint are called in it.
#[derive(Clone, Debug)]
pub(super) struct RenamedFiles {
    pub files: Arc<TensorFiles>,
    /// What the names of all its tensors begin with in the file.
    pub prefix: &'static str,
    /// From a name of a diffusers checkpoint to the one in the file.
    pub rename: fn(&str, usize) -> String,
    /// Number of up blocks: the two layouts count them from different ends.
    pub levels: usize,
}

impl RenamedFiles {
    pub(super) fn name(&self, name: &str) -> String {
        format!("{}{}", self.prefix, (self.rename)(name, self.levels))
    }
}

impl Step {
    /// Every tensor that the step reads, with its shape in a diffusers checkpoint.
    pub(super) fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let both = |name: String, shape: Vec<usize>| {
            let bias = (format!("{name}.bias"), vec![shape[0]]);
            [(format!("{name}.weight"), shape), bias]
        };
        match self {
            Self::Conv { name, bias, inputs, outputs, window } => {
                let shape = vec![*outputs, *inputs, window.side(), window.side()];
                both(name.clone(), shape).into_iter().take(1 + usize::from(*bias)).collect()
            }
            Self::Residual { name, inputs, outputs, .. } => {
                let (i, o) = (*inputs, *outputs);
                let mut all = vec![
                    both(format!("{name}.norm1"), vec![i]),
                    both(format!("{name}.conv1"), vec![o, i, 3, 3]),
                    both(format!("{name}.norm2"), vec![o]),
                    both(format!("{name}.conv2"), vec![o, o, 3, 3]),
                ];
                if i != o {
                    all.push(both(format!("{name}.conv_shortcut"), vec![o, i, 1, 1]));
                }
                all.into_iter().flatten().collect()
            }
            Self::Attention { name, channels, .. } => {
                let c = *channels;
                let linears =
                    ["to_q", "to_k", "to_v", "to_out.0"].map(|l| both(format!("{name}.{l}"), vec![c, c]));
                both(format!("{name}.group_norm"), vec![c])
                    .into_iter()
                    .chain(linears.into_iter().flatten())
                    .collect()
            }
            Self::NormSilu { name, channels, .. } => both(name.clone(), vec![*channels]).into(),
            Self::Relu { .. } => Vec::new(),
            Self::Plain { name, channels } => [0, 2, 4]
                .into_iter()
                .flat_map(|i| both(format!("{name}.conv.{i}"), vec![*channels, *channels, 3, 3]))
                .collect(),
        }
    }

    /// The size of the picture after this step.
    pub(super) fn output(&self, (height, width): (usize, usize)) -> (usize, usize) {
        match self {
            Self::Conv { window, .. } => (window.output(height), window.output(width)),
            _ => (height, width),
        }
    }

    /// Operations, and the most values alive at once, the input and the output included. In floating point: pictures whose
    /// size somebody states may be too large for products of whole numbers.
    fn cost(&self, input: (usize, usize)) -> (f64, f64) {
        let (height, width) = self.output(input);
        let pixels = height as f64 * width as f64;
        let conv = |window: ConvWindow, i: usize, o: usize| {
            (conv_flops(window, (i, o), pixels), conv_scratch(window, i, pixels))
        };
        match self {
            Self::Conv { inputs, outputs, window, .. } => {
                let (flops, scratch) = conv(*window, *inputs, *outputs);
                let read = input.0 as f64 * input.1 as f64 * *inputs as f64;
                (flops, read + pixels * *outputs as f64 + scratch)
            }
            Self::Residual { inputs, outputs, .. } => {
                let (i, o) = (*inputs as f64, *outputs as f64);
                let (first, first_scratch) = conv(ConvWindow::Three, *inputs, *outputs);
                let (second, second_scratch) = conv(ConvWindow::Three, *outputs, *outputs);
                let shortcut = if inputs == outputs {
                    0.0
                } else {
                    conv_flops(ConvWindow::One, (*inputs, *outputs), pixels)
                };
                let alive =
                    ((2.0 * i + o) * pixels + first_scratch).max((i + 2.0 * o) * pixels + second_scratch);
                (first + second + shortcut, alive)
            }
            Self::Attention { channels, .. } => {
                let flops = attention_flops((*channels, *channels), 1.0, pixels);
                // The input, its norm, queries, keys and values. The packed keys and values of a task are counted once: tasks
                // are as many as threads.
                (flops, 7.0 * *channels as f64 * pixels)
            }
            Self::NormSilu { channels, .. } | Self::Relu { channels } => {
                (0.0, 2.0 * *channels as f64 * pixels)
            }
            Self::Plain { channels, .. } => {
                let (flops, scratch) = conv(ConvWindow::Three, *channels, *channels);
                (3.0 * flops, 3.0 * *channels as f64 * pixels + scratch)
            }
        }
    }
}

/// What a network takes for one picture of this size.
pub(super) fn cost(steps: &[Step], mut size: (usize, usize)) -> PassCost {
    let mut all = PassCost::default();
    for step in steps {
        let (flops, values) = step.cost(size);
        all.forward_flops += flops;
        all.scratch_bytes = all.scratch_bytes.max(size::bytes(4.0 * values));
        size = step.output(size);
    }
    all
}

/// Bytes that the weights of a network hold once it has run.
pub(super) fn resident(steps: &[Step]) -> usize {
    size_of::<f32>()
        * steps
            .iter()
            .flat_map(Step::tensors)
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum::<usize>()
}

/// Every tensor of some networks, with its shape in a diffusers checkpoint.
pub(super) fn tensors<'a>(networks: impl IntoIterator<Item = &'a [Step]>) -> Vec<(String, Vec<usize>)> {
    networks.into_iter().flatten().flat_map(Step::tensors).collect()
}
