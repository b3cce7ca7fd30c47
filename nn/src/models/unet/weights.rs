//! The frozen weights, packed, in the order in which a pass uses them.
//!
//! Linears and convolutions that are used together are a unit: what is streamed comes unit by unit, and a backward begins with the
//! first unit that an adapter reaches.

use std::{collections::HashMap, ops::Range};

use super::{
    config::{TRANSFORMER_GROUP_EPS, TRANSFORMER_ROW_EPS, UNetConfig},
    files::UNetFiles,
    image_prompt::ImagePromptFiles,
    stages::{IMAGE_PROMPT, MLP_RATIO, Stage, is_of_image_prompt, steps},
};
use crate::{
    backbone::LinearLayout,
    device::{ConvWindow, Device, NormKind},
    error::{Error, Result},
    layers::{Context, Conv, Embedder, GroupNorm, Linear, Loading, Norm, Packing, approach},
    vision::{ImageResampler, resampler::ResamplerNetwork},
};

/// A residual block.
#[derive(Debug)]
pub(super) struct Resnet<D: Device> {
    pub norms: [GroupNorm<D>; 2],
    pub convs: [Conv<D>; 2],
    /// From the time's embedding.
    pub time: Linear<D>,
    /// Where the channels change.
    pub shortcut: Option<Conv<D>>,
}

/// An attention whose keys and values are of the same tokens or of others; with image tokens beside the text.
#[derive(Debug)]
pub(super) struct Attention<D: Device> {
    pub q: Linear<D>,
    pub k: Linear<D>,
    pub v: Linear<D>,
    pub out: Linear<D>,
    /// Keys and values of image tokens.
    pub image: Option<[Linear<D>; 2]>,
}

/// A block of a transformer.
#[derive(Debug)]
pub(super) struct Block<D: Device> {
    pub norms: [Norm<D>; 3],
    /// Of the pixels over themselves.
    pub own: Attention<D>,
    /// Over text and image tokens.
    pub cross: Attention<D>,
    pub up: Linear<D>,
    pub down: Linear<D>,
}

/// A transformer over the pixels.
#[derive(Debug)]
pub(super) struct Transformer<D: Device> {
    pub heads: usize,
    /// Number of its first cross-attention.
    pub crossing: usize,
    pub norm: GroupNorm<D>,
    pub proj_in: Linear<D>,
    pub blocks: Vec<Block<D>>,
    pub proj_out: Linear<D>,
}

#[derive(Debug)]
pub(super) enum StageWeights<D: Device> {
    Resnet(Box<Resnet<D>>),
    Transformer(Box<Transformer<D>>),
    Down(Conv<D>),
    Up(Conv<D>),
}

/// A stage as a pass runs it.
#[derive(Debug)]
pub(super) struct WeighedStep<D: Device> {
    pub stage: StageWeights<D>,
    pub pops: bool,
    pub pushes: bool,
    /// Its units.
    pub units: Range<usize>,
}

/// All weights of the model.
#[derive(Debug)]
pub(super) struct Weights<D: Device> {
    pub conv_in: Conv<D>,
    pub time: Embedder<D>,
    pub added: Embedder<D>,
    pub steps: Vec<WeighedStep<D>>,
    pub norm_out: GroupNorm<D>,
    pub conv_out: Conv<D>,
    /// What makes image tokens, where that is inside.
    pub resampler: Option<ResamplerNetwork<D>>,
    packing: Packing,
}

impl<D: Device> Attention<D> {
    fn linears(&self) -> impl Iterator<Item = &Linear<D>> {
        [&self.q, &self.k, &self.v, &self.out].into_iter().chain(self.image.iter().flatten())
    }
}

impl<D: Device> StageWeights<D> {
    /// How many units it has: a transformer one for each block, and one for each projection.
    fn units(&self) -> usize {
        match self {
            Self::Transformer(transformer) => transformer.blocks.len() + 2,
            _ => 1,
        }
    }

    /// The linears of one of its units; those that are a convolution's, too.
    fn linears(&self, unit: usize) -> Vec<&Linear<D>> {
        match self {
            Self::Resnet(resnet) => {
                let convs = resnet.convs.iter().chain(&resnet.shortcut).map(Conv::linear);
                std::iter::once(&resnet.time).chain(convs).collect()
            }
            Self::Transformer(transformer) => {
                let Transformer { blocks, proj_in, proj_out, .. } = &**transformer;
                let block = unit.checked_sub(1).map(|block| blocks.get(block));
                match block {
                    None => vec![proj_in],
                    Some(None) => vec![proj_out],
                    Some(Some(block)) => {
                        let mlp = [&block.up, &block.down];
                        block.own.linears().chain(block.cross.linears()).chain(mlp).collect()
                    }
                }
            }
            Self::Down(conv) | Self::Up(conv) => vec![conv.linear()],
        }
    }
}

impl<D: Device> Weights<D> {
    /// Number of units.
    pub fn units(&self) -> usize {
        self.steps.last().map_or(0, |step| step.units.end)
    }

    /// The linears of a unit; none beyond the last.
    pub fn unit(&self, number: usize) -> Vec<&Linear<D>> {
        let step = self.steps.partition_point(|step| step.units.end <= number);
        self.steps.get(step).map_or_else(Vec::new, |step| step.stage.linears(number - step.units.start))
    }

    /// Number of the first unit with an adapted linear, or with image tokens whose derivative is wanted: nothing below it needs a
    /// derivative.
    pub fn first_adapted(&self, ctx: Context<'_, D>) -> usize {
        if ctx.adapts(self.conv_in.linear()) {
            return 0;
        }
        let by_images = self.resampler.as_ref().is_some_and(|resampler| resampler.adapted(ctx));
        let reached = |unit: &usize| {
            self.unit(*unit).into_iter().any(|l| ctx.adapts(l)) || by_images && self.sees_images(*unit)
        };
        (0..self.units()).find(reached).unwrap_or(self.units())
    }

    /// Is a unit the block of a transformer, whose cross-attention sees image tokens?
    fn sees_images(&self, number: usize) -> bool {
        let step = self.steps.partition_point(|step| step.units.end <= number);
        self.steps.get(step).is_some_and(|step| {
            let blocks = step.units.start + 1..step.units.end - 1;
            matches!(step.stage, StageWeights::Transformer(_)) && blocks.contains(&number)
        })
    }

    /// The unit at `place` of this order of units runs next: see [`approach`]. Streamed values are searched before their first use.
    ///
    /// # Errors
    /// As there; if a value is not finite.
    pub fn approach(&self, queue: &D::Queue, order: &[usize], place: usize) -> Result<()> {
        approach(queue, self.packing, order, place, |unit| self.unit(unit))?;
        let linears = order.get(place).map_or_else(Vec::new, |unit| self.unit(*unit));
        linears.into_iter().try_for_each(Linear::check)
    }
}

struct Reader<'a, D: Device> {
    device: &'a D,
    files: &'a UNetFiles,
    image_prompt: Option<&'a ImagePromptFiles>,
    config: &'a UNetConfig,
    /// The linears that an adapter may have factors for, and their numbers.
    layouts: HashMap<String, (LinearLayout, usize)>,
    loading: Loading,
}

impl<D: Device> Reader<'_, D> {
    /// A linear that an adapter may have factors for.
    fn linear(&self, name: &str, bias: bool) -> Result<Linear<D>> {
        let (layout, index) = self
            .layouts
            .get(name)
            .ok_or_else(|| Error::Internal(format!("`{name}` is not among the model's linears")))?;
        let weight = match self.image_prompt.filter(|_| is_of_image_prompt(name)) {
            Some(files) => files.view(name)?,
            None => self.files.view(&format!("{name}.weight"))?,
        };
        let bias = bias.then(|| self.files.view(&format!("{name}.bias"))).transpose()?;
        Linear::new(self.device, (weight, bias), layout, Some(*index), None, None, self.loading)
    }

    /// A linear that no adapter has factors for.
    fn outer(&self, name: &str, inputs: usize, outputs: usize) -> Result<Linear<D>> {
        let layout = LinearLayout { name: name.into(), inputs, outputs, window: None };
        let view = |what: &str| self.files.view(&format!("{name}.{what}"));
        let tensors = (view("weight")?, Some(view("bias")?));
        Linear::new(self.device, tensors, &layout, None, None, None, self.loading)
    }

    fn embedder(&self, name: &str, inputs: usize) -> Result<Embedder<D>> {
        let width = self.config.time_width();
        Ok(Embedder {
            first: self.outer(&format!("{name}.linear_1"), inputs, width)?,
            second: self.outer(&format!("{name}.linear_2"), width, width)?,
        })
    }

    fn conv(&self, name: &str, channels: (usize, usize), window: ConvWindow) -> Result<Conv<D>> {
        let view = |what: &str| self.files.view(&format!("{name}.{what}"));
        let tensors = (view("weight")?, Some(view("bias")?));
        let conv = Conv::new(self.device, tensors, channels, window, self.loading)?;
        let (_, index) = self
            .layouts
            .get(name)
            .ok_or_else(|| Error::Internal(format!("`{name}` is not among the model's convolutions")))?;
        Ok(conv.numbered(*index))
    }

    fn group_norm(&self, name: &str, width: usize, eps: f64) -> Result<GroupNorm<D>> {
        let view = |what: &str| self.files.view(&format!("{name}.{what}"));
        let sizes = (width, self.config.norm_num_groups);
        GroupNorm::new(self.device, sizes, &view("weight")?, &view("bias")?, eps)
    }

    fn row_norm(&self, name: &str, width: usize) -> Result<Norm<D>> {
        let view = |what: &str| self.files.view(&format!("{name}.{what}"));
        let (weight, bias) = (view("weight")?, view("bias")?);
        Norm::new(self.device, NormKind::Layer, width, &weight, Some(&bias), TRANSFORMER_ROW_EPS)
    }

    fn resnet(&self, name: &str, inputs: usize, outputs: usize) -> Result<Resnet<D>> {
        let at = |what: &str| format!("{name}.{what}");
        let (eps, three) = (self.config.norm_eps, ConvWindow::Three);
        let shortcut = || self.conv(&at("conv_shortcut"), (inputs, outputs), ConvWindow::One);
        Ok(Resnet {
            norms: [
                self.group_norm(&at("norm1"), inputs, eps)?,
                self.group_norm(&at("norm2"), outputs, eps)?,
            ],
            convs: [
                self.conv(&at("conv1"), (inputs, outputs), three)?,
                self.conv(&at("conv2"), (outputs, outputs), three)?,
            ],
            time: self.outer(&at("time_emb_proj"), self.config.time_width(), outputs)?,
            shortcut: (inputs != outputs).then(shortcut).transpose()?,
        })
    }

    fn attention(&self, name: &str) -> Result<Attention<D>> {
        let linear = |what: &str, bias| self.linear(&format!("{name}.{what}"), bias);
        Ok(Attention {
            q: linear("to_q", false)?,
            k: linear("to_k", false)?,
            v: linear("to_v", false)?,
            out: linear("to_out.0", true)?,
            image: None,
        })
    }

    fn block(&self, name: &str, channels: usize) -> Result<Block<D>> {
        let at = |what: &str| format!("{name}.{what}");
        let norm = |n: usize| self.row_norm(&at(&format!("norm{n}")), channels);
        let image = || -> Result<[Linear<D>; 2]> {
            let [k, v] = IMAGE_PROMPT.map(|part| self.linear(&at(part), false));
            Ok([k?, v?])
        };
        Ok(Block {
            norms: [norm(1)?, norm(2)?, norm(3)?],
            own: self.attention(&at("attn1"))?,
            cross: Attention {
                image: self.image_prompt.map(|_| image()).transpose()?,
                ..self.attention(&at("attn2"))?
            },
            up: self.linear(&at("ff.net.0.proj"), true)?,
            down: self.linear(&at("ff.net.2"), true)?,
        })
    }

    fn stage(&self, stage: &Stage) -> Result<StageWeights<D>> {
        Ok(match stage {
            Stage::Resnet { name, inputs, skip, outputs } => {
                StageWeights::Resnet(Box::new(self.resnet(name, inputs + skip, *outputs)?))
            }
            Stage::Transformer { name, channels, heads, depth, crossing } => {
                let projection = |which: &str| {
                    let name = format!("{name}.{which}");
                    match self.config.use_linear_projection {
                        true => self.linear(&name, true),
                        // A 1x1 convolution is the same product.
                        false => self.outer(&name, *channels, *channels),
                    }
                };
                let block = |i: usize| self.block(&format!("{name}.transformer_blocks.{i}"), *channels);
                StageWeights::Transformer(Box::new(Transformer {
                    heads: *heads,
                    crossing: *crossing,
                    norm: self.group_norm(&format!("{name}.norm"), *channels, TRANSFORMER_GROUP_EPS)?,
                    proj_in: projection("proj_in")?,
                    blocks: (0..*depth).map(block).collect::<Result<_>>()?,
                    proj_out: projection("proj_out")?,
                }))
            }
            Stage::Down { name, channels } => StageWeights::Down(self.conv(
                name,
                (*channels, *channels),
                ConvWindow::ThreeHalvingCentred,
            )?),
            Stage::Up { name, channels } => {
                StageWeights::Up(self.conv(name, (*channels, *channels), ConvWindow::ThreeOfDoubled)?)
            }
        })
    }
}

impl<D: Device> Weights<D> {
    /// Read everything, and pack it where it is to be resident; streamed units are searched before their first use.
    ///
    /// # Errors
    /// If a tensor cannot be read or holds a value that is not finite.
    pub fn read(
        device: &D,
        files: &UNetFiles,
        (image_prompt, resampler): (Option<&ImagePromptFiles>, Option<&ImageResampler<D>>),
        config: &UNetConfig,
        loading: Loading,
    ) -> Result<Self> {
        let linears = config.linears(image_prompt.is_some()).into_iter().enumerate();
        let layouts: HashMap<_, _> = linears.map(|(i, l)| (l.name.clone(), (l, i))).collect();
        // Its linears follow those of the U-Net.
        let resampler = resampler.map(|r| r.part_of(device, loading, layouts.len())).transpose()?;
        let reader = Reader { device, files, image_prompt, config, layouts, loading };
        let mut all = Vec::new();
        let mut unit = 0;
        for step in steps(config) {
            let stage = reader.stage(&step.stage)?;
            let units = unit..unit + stage.units();
            unit = units.end;
            let pops = matches!(step.stage, Stage::Resnet { skip, .. } if skip > 0);
            all.push(WeighedStep { stage, pops, pushes: step.pushes, units });
        }
        let (first, added) = (config.sinusoid(), config.projection_class_embeddings_input_dim.unwrap_or(0));
        let weights = Self {
            conv_in: reader.conv("conv_in", (config.in_channels, first), ConvWindow::Three)?,
            time: reader.embedder("time_embedding", first)?,
            added: reader.embedder("add_embedding", added)?,
            steps: all,
            norm_out: reader.group_norm("conv_norm_out", first, config.norm_eps)?,
            conv_out: reader.conv("conv_out", (first, config.out_channels), ConvWindow::Three)?,
            resampler,
            packing: loading.packing,
        };
        let embedders = [&weights.time, &weights.added].into_iter().flat_map(|e| [&e.first, &e.second]);
        let outer = embedders.chain([weights.conv_in.linear(), weights.conv_out.linear()]);
        outer.into_iter().try_for_each(Linear::check)?;
        Ok(weights)
    }
}

impl<D: Device> Block<D> {
    /// Values of a row inside the MLP, gates not counted.
    pub fn mlp(&self) -> usize {
        debug_assert_eq!(self.up.outputs(), 2 * MLP_RATIO * self.up.inputs());
        self.down.inputs()
    }
}
