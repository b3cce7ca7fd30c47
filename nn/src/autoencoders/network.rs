//! Half of an autoencoder on a device: its steps with their weights, which are kept from the first run on.

use std::sync::{Arc, OnceLock};

use super::steps::{self, RenamedFiles, Step};
use crate::{
    cost::PassCost,
    device::{Activation, ConvWindow, Device, Kind, Precision, Queue, Scores, View, ViewMut},
    error::Result,
    files::TensorView,
    layers::{Attention, Conv, Frozen, GroupNorm, Linear, Loading, Map, Packing},
    once::get_or_try_init,
};

/// eps of every group norm of these networks.
const EPS: f64 = 1e-6;
/// Weights are few beside pictures, and so are kept packed.
const LOADING: Loading = Loading { precision: Precision::F32, packing: Packing::Resident };

/// A list of steps, and their weights once it has run.
#[derive(Debug)]
pub(super) struct Network<D: Device> {
    steps: Vec<Step>,
    source: Arc<RenamedFiles>,
    stages: OnceLock<Vec<Stage<D>>>,
}

impl<D: Device> Network<D> {
    pub fn new(steps: Vec<Step>, source: Arc<RenamedFiles>) -> Self {
        Self { steps, source, stages: OnceLock::new() }
    }

    /// What a picture of this size takes.
    pub fn cost(&self, size: (usize, usize)) -> PassCost {
        steps::cost(&self.steps, size)
    }

    /// Bytes that weights hold once it has run.
    pub fn resident_bytes(&self) -> usize {
        steps::resident(&self.steps)
    }

    /// Planes `[channels, H, W]`, every value as `change` makes it, through all steps into other planes.
    ///
    /// # Errors
    /// If weights cannot be read or hold a value that is not finite; if the device fails.
    pub fn run(
        &self,
        device: &D,
        (planes, shape): (&[f32], (usize, usize, usize)),
        change: impl Fn(f32) -> f32,
        out: &mut [f32],
    ) -> Result<()> {
        let stages = self.stages(device)?;
        let queue = device.queue(LOADING.precision)?;
        let mut x = Map::from_planes(&queue, planes, shape, change);
        for stage in stages {
            x = stage.run(&queue, x)?;
        }
        x.write_planes(&queue, out)
    }

    fn stages(&self, device: &D) -> Result<&[Stage<D>]> {
        let read = || self.steps.iter().map(|step| Stage::read(device, &self.source, step)).collect();
        get_or_try_init(&self.stages, read).map(Vec::as_slice)
    }
}

/// A [`Step`] with its weights.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a network has a few dozen stages")]
enum Stage<D: Device> {
    Conv(Conv<D>),
    Residual { norms: [GroupNorm<D>; 2], convs: [Conv<D>; 2], shortcut: Option<Conv<D>> },
    Attention { norm: GroupNorm<D>, attention: Attention<D> },
    NormSilu(GroupNorm<D>),
    Relu,
    Plain([Conv<D>; 3]),
}

impl<D: Device> Stage<D> {
    fn read(device: &D, source: &RenamedFiles, step: &Step) -> Result<Self> {
        let view = |name: &str, what: &str| {
            TensorView::whole(&source.files, &source.name(&format!("{name}.{what}")))
        };
        let conv = |name: &str, bias: bool, channels: (usize, usize), window: ConvWindow| {
            let bias = bias.then(|| view(name, "bias")).transpose()?;
            Conv::new(device, (view(name, "weight")?, bias), channels, window, LOADING)
        };
        let norm = |name: &str, width: usize, groups: usize| {
            GroupNorm::new(device, (width, groups), &view(name, "weight")?, &view(name, "bias")?, EPS)
        };
        let three = ConvWindow::Three;
        Ok(match step {
            Step::Conv { name, bias, inputs, outputs, window } => {
                Self::Conv(conv(name, *bias, (*inputs, *outputs), *window)?)
            }
            Step::Residual { name, inputs, outputs, groups } => {
                let (i, o) = (*inputs, *outputs);
                let norm = |n, width| norm(&format!("{name}.norm{n}"), width, *groups);
                let shortcut = || conv(&format!("{name}.conv_shortcut"), true, (i, o), ConvWindow::One);
                let conv = |n, channels| conv(&format!("{name}.conv{n}"), true, channels, three);
                Self::Residual {
                    norms: [norm(1, i)?, norm(2, o)?],
                    convs: [conv(1, (i, o))?, conv(2, (o, o))?],
                    shortcut: (i != o).then(shortcut).transpose()?,
                }
            }
            Step::Attention { name, channels, groups } => {
                let linear = |linear: &str| {
                    let name = format!("{name}.{linear}");
                    let weight =
                        Frozen::new(device, view(&name, "weight")?, (*channels, *channels), LOADING, None)?;
                    Linear::plain(device, weight, Some(view(&name, "bias")?))
                };
                let attention = Attention {
                    heads: 1,
                    q: linear("to_q")?,
                    k: linear("to_k")?,
                    v: linear("to_v")?,
                    out: linear("to_out.0")?,
                };
                Self::Attention { norm: norm(&format!("{name}.group_norm"), *channels, *groups)?, attention }
            }
            Step::NormSilu { name, channels, groups } => Self::NormSilu(norm(name, *channels, *groups)?),
            Step::Relu { .. } => Self::Relu,
            Step::Plain { name, channels } => {
                let conv = |i| conv(&format!("{name}.conv.{i}"), true, (*channels, *channels), three);
                Self::Plain([conv(0)?, conv(2)?, conv(4)?])
            }
        })
    }

    /// The picture after this step.
    fn run(&self, queue: &D::Queue, x: Map<D>) -> Result<Map<D>> {
        match self {
            Self::Conv(conv) => conv.run(queue, &x),
            Self::Residual { norms: [first_norm, second_norm], convs: [first, second], shortcut } => {
                let mut h = first_norm.run(queue, &x, true);
                h = first.run(queue, &h)?;
                h = second_norm.run(queue, &h, true);
                h = second.run(queue, &h)?;
                let x = match shortcut {
                    Some(shortcut) => shortcut.run(queue, &x)?,
                    None => x,
                };
                Ok(sum(queue, x, &h.values))
            }
            Self::Attention { norm, attention } => {
                let normed = norm.run(queue, &x, false).values;
                // One head over all pixels.
                let out = attention.run(queue, (1, x.pixels()), normed, Scores::PLAIN)?;
                Ok(sum(queue, x, &out))
            }
            Self::NormSilu(norm) => Ok(norm.run(queue, &x, true)),
            Self::Relu => Ok(relu(queue, x)),
            Self::Plain([first, second, third]) => {
                let mut h = first.run(queue, &x)?;
                for conv in [second, third] {
                    h = relu(queue, h);
                    h = conv.run(queue, &h)?;
                }
                let x = sum(queue, x, &h.values);
                drop(h);
                Ok(relu(queue, x))
            }
        }
    }
}

/// `x + y`.
fn sum<D: Device>(queue: &D::Queue, mut x: Map<D>, y: &D::Buffer) -> Map<D> {
    let (width, len) = (x.channels, x.len());
    queue.add_scaled(1.0, View::new(y, width), ViewMut::new(&mut x.values, width), len);
    x
}

fn relu<D: Device>(queue: &D::Queue, x: Map<D>) -> Map<D> {
    let mut y = queue.take(x.len(), Kind::Activation);
    let to = ViewMut::new(&mut y, x.channels);
    queue.activate(Activation::Relu, (x.pixels(), x.channels), x.view(), to);
    x.with(x.channels, y)
}
