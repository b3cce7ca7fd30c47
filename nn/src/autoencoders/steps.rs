//! The building blocks of autoencoders. A network is a list of steps, which is run on a picture, compared
//! with a file and counted for planning, so that the three cannot disagree.
//!
//! ```text
//! H, W  rows and columns of pixels    C  channels
//! ```

use std::sync::Arc;

use crate::{
    cpu::{self, Attention, AttentionShape, Cpu, Precision},
    error::Result,
    files::TensorFiles,
    layers::{
        Weight,
        conv::{Conv, ConvWindow, Map, conv_flops, conv_scratch},
        dense,
        norm::{GroupNorm, group_norm},
    },
    size,
};

/// eps of every group norm of these networks.
const EPS: f64 = 1e-6;

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
    Relu,
    /// `relu(x + conv(relu(conv(relu(conv(x))))))`.
    Plain { name: String, channels: usize },
}

/// A file, and how the tensors of a checkpoint are called in it.
#[derive(Clone, Debug)]
pub(super) struct RenamedFiles {
    pub files: Arc<TensorFiles>,
    /// From a name of a diffusers checkpoint to the one in the file.
    pub rename: fn(&str, usize) -> String,
    /// Number of up blocks: the two layouts count them from different ends.
    pub levels: usize,
}

/// What a network takes for a picture.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct NetworkCost {
    /// Floating-point operations.
    pub flops: f64,
    /// Most bytes of values alive at once, besides the caller's picture and the result.
    pub scratch_bytes: usize,
}

impl RenamedFiles {
    pub(super) fn name(&self, name: &str) -> String {
        (self.rename)(name, self.levels)
    }

    fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>> {
        self.files.read_finite(&self.name(name), &[length])
    }

    fn conv(
        &self,
        device: &Cpu,
        x: &Map,
        (name, bias): (&str, bool),
        outputs: usize,
        window: ConvWindow,
    ) -> Result<Map> {
        let weight = self.name(&format!("{name}.weight"));
        let bias = bias.then(|| self.name(&format!("{name}.bias")));
        let inputs = x.channels;
        let conv =
            Conv { files: &self.files, weight: &weight, bias: bias.as_deref(), inputs, outputs, window };
        conv.run(device, x)
    }

    fn norm(&self, device: &Cpu, x: &mut Map, name: &str, groups: usize, silu: bool) -> Result<()> {
        let weight = self.vector(&format!("{name}.weight"), x.channels)?;
        let bias = self.vector(&format!("{name}.bias"), x.channels)?;
        let norm = GroupNorm { groups, weight: &weight, bias: &bias, eps: EPS, silu };
        group_norm(device, &mut x.values, norm);
        Ok(())
    }

    /// `x + to_out(attention(norm(x)))`.
    fn attention(&self, device: &Cpu, x: Map, name: &str, groups: usize) -> Result<Map> {
        let (tokens, dim) = (x.pixels(), x.channels);
        let mut normed = x.clone();
        self.norm(device, &mut normed, &format!("{name}.group_norm"), groups, false)?;
        let project = |linear: &str, from: &[f32]| -> Result<Vec<f32>> {
            let weight = self.name(&format!("{name}.{linear}.weight"));
            let weight = Weight::locate(&self.files, &weight, dim, dim)?;
            let bias = self.vector(&format!("{name}.{linear}.bias"), dim)?;
            let mut to = vec![0.0; tokens * dim];
            dense(device, tokens, (from, dim), &weight, Some(&bias), (&mut to, dim))?;
            Ok(to)
        };
        // One head: its order is that of the tokens.
        let [q, k, v] = ["to_q", "to_k", "to_v"].map(|l| project(l, &normed.values));
        let (q, k, v) = (q?, k?, v?);
        let mut lse = vec![0.0; tokens];
        let call = Attention {
            precision: Precision::F32,
            shape: AttentionShape { batch: 1, heads: 1, tokens, dim },
            query_rows: 0..tokens,
            q: &q,
            k: &k,
            v: &v,
            out: &mut normed.values,
            out_stride: dim,
            lse: &mut lse,
        };
        cpu::attention(device, call);
        drop((q, k, v));
        let out = project("to_out.0", &normed.values)?;
        Ok(sum(device, x, &out))
    }
}

/// `x + y`.
fn sum(device: &Cpu, mut x: Map, y: &[f32]) -> Map {
    cpu::add_scaled(device, 1.0, y, &mut x.values);
    x
}

fn relu(x: &mut Map) {
    x.values.iter_mut().for_each(|v| *v = v.max(0.0));
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
            Self::Relu => Vec::new(),
            Self::Plain { name, channels } => [0, 2, 4]
                .into_iter()
                .flat_map(|i| both(format!("{name}.conv.{i}"), vec![*channels, *channels, 3, 3]))
                .collect(),
        }
    }

    /// The picture after this step.
    pub(super) fn run(&self, device: &Cpu, source: &RenamedFiles, mut x: Map) -> Result<Map> {
        let three = ConvWindow::Three;
        match self {
            Self::Conv { name, bias, outputs, window, .. } => {
                source.conv(device, &x, (name, *bias), *outputs, *window)
            }
            Self::Residual { name, inputs, outputs, groups } => {
                let mut h = x.clone();
                source.norm(device, &mut h, &format!("{name}.norm1"), *groups, true)?;
                h = source.conv(device, &h, (&format!("{name}.conv1"), true), *outputs, three)?;
                source.norm(device, &mut h, &format!("{name}.norm2"), *groups, true)?;
                h = source.conv(device, &h, (&format!("{name}.conv2"), true), *outputs, three)?;
                if inputs != outputs {
                    let name = format!("{name}.conv_shortcut");
                    x = source.conv(device, &x, (&name, true), *outputs, ConvWindow::One)?;
                }
                Ok(sum(device, x, &h.values))
            }
            Self::Attention { name, groups, .. } => source.attention(device, x, name, *groups),
            Self::NormSilu { name, groups, .. } => {
                source.norm(device, &mut x, name, *groups, true)?;
                Ok(x)
            }
            Self::Relu => {
                relu(&mut x);
                Ok(x)
            }
            Self::Plain { name, channels } => {
                let mut h = source.conv(device, &x, (&format!("{name}.conv.0"), true), *channels, three)?;
                for i in [2, 4] {
                    relu(&mut h);
                    h = source.conv(device, &h, (&format!("{name}.conv.{i}"), true), *channels, three)?;
                }
                x = sum(device, x, &h.values);
                relu(&mut x);
                Ok(x)
            }
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
            (conv_flops(window, (i, o), pixels), conv_scratch(window, (i, o), pixels))
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
                let c = *channels as f64;
                let flops = (8.0 * c * c + 4.0 * c * pixels) * pixels;
                // The packed keys and values of a task are counted once: tasks are as many as threads.
                (flops, 7.0 * c * pixels + 3.0 * c * c)
            }
            Self::NormSilu { channels, .. } => (0.0, *channels as f64 * pixels),
            Self::Relu => (0.0, 0.0),
            Self::Plain { channels, .. } => {
                let (flops, scratch) = conv(ConvWindow::Three, *channels, *channels);
                (3.0 * flops, 3.0 * *channels as f64 * pixels + scratch)
            }
        }
    }
}

/// Run a network.
pub(super) fn run(steps: &[Step], device: &Cpu, source: &RenamedFiles, mut x: Map) -> Result<Map> {
    for step in steps {
        x = step.run(device, source, x)?;
    }
    Ok(x)
}

/// What a network takes for one picture of this size.
pub(super) fn cost(steps: &[Step], mut size: (usize, usize)) -> NetworkCost {
    let mut all = NetworkCost::default();
    for step in steps {
        let (flops, values) = step.cost(size);
        all.flops += flops;
        all.scratch_bytes = all.scratch_bytes.max(size::bytes(4.0 * values));
        size = step.output(size);
    }
    all
}

/// Every tensor of some networks, with its shape in a diffusers checkpoint.
pub(super) fn tensors<'a>(networks: impl IntoIterator<Item = &'a [Step]>) -> Vec<(String, Vec<usize>)> {
    networks.into_iter().flatten().flat_map(Step::tensors).collect()
}
