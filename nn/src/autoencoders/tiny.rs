//! The small distilled autoencoders (TAESD and its kin) in the layout of diffusers' `AutoencoderTiny`: plain
//! convolutions and ReLU, latents without a distribution.
//!
//! Shape letters: `B` batch, `C` latent channels, `H` `W` latent grid, `P` side of a latent cell in pixels.

use std::{path::Path, sync::Arc};

use super::{
    Autoencoder, Batch, MOST_LEVELS, NetworkCost, Posterior, check_finite, check_latents, files, grid_of,
    steps::{self, RenamedFiles, Step},
};
use crate::{
    cpu::Cpu,
    error::{Error, Result},
    files::{TensorFiles, read_model_config},
    layers::{
        conv::{ConvWindow, Map},
        stored,
    },
    tensor::Tensor,
};

/// What diffusers calls the model.
const CLASS: &str = "AutoencoderTiny";
/// Latents are squashed to plus and minus this before they are decoded.
const LIMIT: f32 = 3.0;

/// `config.json` of an `AutoencoderTiny`.
#[derive(Clone, Debug, PartialEq, serde::Deserialize)]
pub struct TinyConfig {
    /// Kind of model, if the file says so.
    #[serde(rename = "_class_name")]
    pub class_name: Option<String>,
    /// Channels of a picture.
    #[serde(default = "three")]
    pub in_channels: usize,
    /// Channels of a decoded picture.
    #[serde(default = "three")]
    pub out_channels: usize,
    /// Channels of a latent cell.
    #[serde(default = "four")]
    pub latent_channels: usize,
    /// Channels at every resolution of the encoder, from that of the picture down.
    pub encoder_block_out_channels: Vec<usize>,
    /// Channels at every resolution of the decoder, from that of the latents up.
    pub decoder_block_out_channels: Vec<usize>,
    /// Residual blocks at every resolution of the encoder.
    pub num_encoder_blocks: Vec<usize>,
    /// Residual blocks at every resolution of the decoder.
    pub num_decoder_blocks: Vec<usize>,
    /// Activation.
    #[serde(default = "relu")]
    pub act_fn: String,
    /// How pixels are repeated.
    #[serde(default = "nearest")]
    pub upsample_fn: String,
    /// How often, along each side.
    #[serde(default = "two")]
    pub upsampling_scaling_factor: usize,
    /// What shifted latents are multiplied by.
    #[serde(default = "unscaled")]
    pub scaling_factor: f32,
    /// What is taken off latents.
    #[serde(default)]
    pub shift_factor: f32,
}

fn two() -> usize {
    2
}
fn three() -> usize {
    3
}
fn four() -> usize {
    4
}
fn relu() -> String {
    "relu".into()
}
fn nearest() -> String {
    "nearest".into()
}
fn unscaled() -> f32 {
    1.0
}

impl TinyConfig {
    /// Read and check `config.json`.
    ///
    /// # Errors
    /// If the file is missing, is no such configuration, or describes a model that this library does not run.
    pub fn read(path: &Path) -> Result<Self> {
        let config: Self = read_model_config(path, CLASS, "an AutoencoderTiny")?;
        config.check().map_err(|message| Error::file(path, message))?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let (encoder, decoder) = (&self.encoder_block_out_channels, &self.decoder_block_out_channels);
        let uniform = |widths: &[usize]| widths.iter().all(|w| *w == widths[0] && *w > 0);
        let fault = if let Some(name) = self.class_name.as_deref().filter(|n| *n != CLASS) {
            format!("_class_name is {name:?}: expected {CLASS}")
        } else if self.act_fn != "relu" {
            format!("act_fn is {:?}: expected relu", self.act_fn)
        } else if (self.upsample_fn.as_str(), self.upsampling_scaling_factor) != ("nearest", 2) {
            format!(
                "upsampling is {:?} by {}: expected nearest by 2",
                self.upsample_fn, self.upsampling_scaling_factor
            )
        } else if (self.in_channels, self.out_channels) != (3, 3) {
            format!(
                "in_channels and out_channels are {} and {}: expected 3",
                self.in_channels, self.out_channels
            )
        } else if encoder.len() != self.num_encoder_blocks.len()
            || decoder.len() != self.num_decoder_blocks.len()
            || encoder.len() != decoder.len()
        {
            "the lists of channels and of blocks must have one length: that of the number of resolutions"
                .into()
        } else if encoder.len() > MOST_LEVELS {
            format!("there are {} resolutions: expected at most {MOST_LEVELS}", encoder.len())
        } else if encoder.is_empty() || self.latent_channels == 0 || !uniform(encoder) || !uniform(decoder) {
            format!("channels are {encoder:?} and {decoder:?}: expected one width for each half")
        } else if !(self.scaling_factor.is_finite() && self.scaling_factor > 0.0) {
            format!("scaling_factor is {}: expected a positive number", self.scaling_factor)
        } else {
            return Ok(());
        };
        Err(fault)
    }

    /// Refuse sizes that no model in these files can have; `path` states them.
    fn bound(&self, path: &Path, files: &TensorFiles) -> Result<()> {
        let all = |name, list: &[usize]| list.iter().map(|n| (name, *n)).collect::<Vec<_>>();
        let blocks = [
            all("num_encoder_blocks", &self.num_encoder_blocks),
            all("num_decoder_blocks", &self.num_decoder_blocks),
        ];
        let widths = [
            all("encoder_block_out_channels", &self.encoder_block_out_channels),
            all("decoder_block_out_channels", &self.decoder_block_out_channels),
            all("latent_channels", &[self.latent_channels]),
        ];
        let widths: Vec<_> = widths.concat().into_iter().map(|(name, n)| (name, n as u128)).collect();
        files.bound(path, &blocks.concat(), &widths)
    }

    fn encoder(&self) -> Vec<Step> {
        let width = self.encoder_block_out_channels[0];
        let mut list = Layers::new("encoder");
        for (level, blocks) in self.num_encoder_blocks.iter().enumerate() {
            if level == 0 {
                list.conv(true, self.in_channels, width, ConvWindow::Three);
            } else {
                list.conv(false, width, width, ConvWindow::ThreeHalvingCentred);
            }
            list.plain(*blocks, width);
        }
        list.conv(true, width, self.latent_channels, ConvWindow::Three);
        list.steps
    }

    fn decoder(&self) -> Vec<Step> {
        let width = self.decoder_block_out_channels[0];
        let mut list = Layers::new("decoder");
        list.conv(true, self.latent_channels, width, ConvWindow::Three);
        list.relu();
        let last = self.num_decoder_blocks.len() - 1;
        for (level, blocks) in self.num_decoder_blocks.iter().enumerate() {
            list.plain(*blocks, width);
            if level == last {
                list.conv(true, width, self.out_channels, ConvWindow::Three);
            } else {
                // Doubling is a layer of its own in the file's numbers.
                list.next += 1;
                list.conv(false, width, width, ConvWindow::ThreeOfDoubled);
            }
        }
        list.steps
    }
}

/// Steps that are numbered through.
struct Layers {
    half: &'static str,
    next: usize,
    steps: Vec<Step>,
}

impl Layers {
    fn new(half: &'static str) -> Self {
        Self { half, next: 0, steps: Vec::new() }
    }

    fn name(&mut self) -> String {
        self.next += 1;
        format!("{}.layers.{}", self.half, self.next - 1)
    }

    fn conv(&mut self, bias: bool, inputs: usize, outputs: usize, window: ConvWindow) {
        let name = self.name();
        self.steps.push(Step::Conv { name, bias, inputs, outputs, window });
    }

    fn relu(&mut self) {
        self.next += 1;
        self.steps.push(Step::Relu);
    }

    fn plain(&mut self, blocks: usize, channels: usize) {
        for _ in 0..blocks {
            let name = self.name();
            self.steps.push(Step::Plain { name, channels });
        }
    }
}

/// A small autoencoder whose weights stay in their file.
#[derive(Debug)]
pub struct Tiny {
    config: TinyConfig,
    source: RenamedFiles,
    encoder: Vec<Step>,
    decoder: Vec<Step>,
    parameters: usize,
    weight_bytes: usize,
}

impl Tiny {
    /// Open a folder with `config.json` and `diffusion_pytorch_model.safetensors`, the folder above its `vae`, or one
    /// safetensors file with `config.json` beside it. Only headers are read.
    ///
    /// # Errors
    /// If a file is missing or cut off, the configuration is of another model, or tensors are missing or of other
    /// shapes.
    pub fn open(path: &Path) -> Result<Self> {
        let (config, files) = files::open(path)?;
        let stated = config.ok_or_else(|| Error::file(path, "has no config.json beside it"))?;
        let config = TinyConfig::read(&stated)?;
        config.bound(&stated, &files)?;
        let (encoder, decoder) = (config.encoder(), config.decoder());
        let expected = steps::tensors([&encoder[..], &decoder[..]]);
        files.expect(&expected)?;
        let (parameters, weight_bytes) = stored(&files, &expected);
        let levels = config.num_decoder_blocks.len();
        let source = RenamedFiles { files: Arc::new(files), rename: |name, _| name.into(), levels };
        Ok(Self { config, source, encoder, decoder, parameters, weight_bytes })
    }
}

impl Autoencoder for Tiny {
    fn kind(&self) -> &'static str {
        "tiny"
    }

    fn channels(&self) -> usize {
        self.config.latent_channels
    }

    fn cell(&self) -> usize {
        1 << (self.config.num_decoder_blocks.len() - 1)
    }

    fn has_posterior(&self) -> bool {
        false
    }

    fn parameters(&self) -> usize {
        self.parameters
    }

    fn weight_bytes(&self) -> usize {
        self.weight_bytes
    }

    fn encode(&self, device: &Cpu, pictures: &Batch, posterior: Posterior<'_>) -> Result<Batch> {
        super::refuse_sample(posterior, self)?;
        let (height, width) = grid_of(pictures, self)?;
        let (batch, _, rows, columns) = pictures.shape();
        let channels = self.config.latent_channels;
        let mut latents = Tensor::zeros(device, (batch, channels, height, width));
        let samples = latents.values_mut().chunks_exact_mut(channels * height * width);
        for (picture, latents) in pictures.values().chunks_exact(3 * rows * columns).zip(samples) {
            let mut x = Map::from_planes(picture, (3, rows, columns));
            // These networks see pictures in [0, 1].
            x.values.iter_mut().for_each(|v| *v = (*v + 1.0) / 2.0);
            steps::run(&self.encoder, device, &self.source, x)?.write_planes(latents);
            check_finite(latents, "latents", self)?;
        }
        let (shift, scale) = (self.config.shift_factor, self.config.scaling_factor);
        latents.values_mut().iter_mut().for_each(|z| *z = (*z - shift) * scale);
        Ok(latents)
    }

    fn decode(&self, device: &Cpu, latents: &Batch) -> Result<Batch> {
        check_latents(latents, self)?;
        let (batch, channels, height, width) = latents.shape();
        let (rows, columns) = (height * self.cell(), width * self.cell());
        let mut pictures = Tensor::zeros(device, (batch, 3, rows, columns));
        let (shift, scale) = (self.config.shift_factor, self.config.scaling_factor);
        let samples = pictures.values_mut().chunks_exact_mut(3 * rows * columns);
        for (latents, picture) in latents.values().chunks_exact(channels * height * width).zip(samples) {
            let mut x = Map::from_planes(latents, (channels, height, width));
            for z in &mut x.values {
                *z = libm::tanhf((*z / scale + shift) / LIMIT) * LIMIT;
            }
            steps::run(&self.decoder, device, &self.source, x)?.write_planes(picture);
            check_finite(picture, "pictures", self)?;
            picture.iter_mut().for_each(|v| *v = *v * 2.0 - 1.0);
        }
        Ok(pictures)
    }

    fn encode_cost(&self, height: usize, width: usize) -> NetworkCost {
        steps::cost(&self.encoder, (height, width))
    }

    fn decode_cost(&self, height: usize, width: usize) -> NetworkCost {
        steps::cost(&self.decoder, (height / self.cell(), width / self.cell()))
    }
}
