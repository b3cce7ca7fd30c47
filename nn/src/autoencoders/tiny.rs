//! The small distilled autoencoders (TAESD and its kin) in the layout of diffusers' `AutoencoderTiny`: plain
//! convolutions and ReLU, latents without a distribution.
//!
//! Shape letters: `B` batch, `C` latent channels, `H` `W` latent grid, `P` side of a latent cell in pixels.

use std::{path::Path, sync::Arc};

use super::{
    Autoencoder, Batch, Half, MOST_LEVELS, Posterior, check_finite, check_latents, files, grid_of,
    network::Network,
    steps::{self, RenamedFiles, Step},
};
use crate::{
    cost::PassCost,
    cpu::Cpu,
    device::{ConvWindow, Device},
    error::{Error, Result},
    files::{TensorFiles, read_model_config},
    layers::stored,
    tensor::Tensor,
};

/// Name in messages.
const KIND: &str = "tiny";
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
        list.relu(width);
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

    fn relu(&mut self, channels: usize) {
        self.next += 1;
        self.steps.push(Step::Relu { channels });
    }

    fn plain(&mut self, blocks: usize, channels: usize) {
        for _ in 0..blocks {
            let name = self.name();
            self.steps.push(Step::Plain { name, channels });
        }
    }
}

/// A small autoencoder on the processor.
pub type Tiny = TinyAutoencoder<Cpu>;

/// A small autoencoder read from a file or a folder. Weights are read by the first run of each half, for its device; later
/// runs are to be on the same one.
#[derive(Debug)]
pub struct TinyAutoencoder<D: Device> {
    config: TinyConfig,
    encoder: Network<D>,
    decoder: Network<D>,
    parameters: usize,
    weight_bytes: usize,
}

impl<D: Device> TinyAutoencoder<D> {
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
        let source =
            RenamedFiles { files: Arc::new(files), prefix: "", rename: |name, _| name.into(), levels };
        let source = Arc::new(source);
        let (encoder, decoder) = (Network::new(encoder, source.clone()), Network::new(decoder, source));
        Ok(Self { config, encoder, decoder, parameters, weight_bytes })
    }

    fn side_of_cell(&self) -> usize {
        1 << (self.config.num_decoder_blocks.len() - 1)
    }
}

impl<D: Device> Autoencoder<D> for TinyAutoencoder<D> {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn channels(&self) -> usize {
        self.config.latent_channels
    }

    fn cell(&self) -> usize {
        self.side_of_cell()
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

    fn resident_bytes(&self, half: Half) -> usize {
        match half {
            Half::Encoder => self.encoder.resident_bytes(),
            Half::Decoder => self.decoder.resident_bytes(),
        }
    }

    fn encode(&self, device: &D, host: &Cpu, pictures: &Batch, posterior: Posterior<'_>) -> Result<Batch> {
        super::refuse_sample(posterior, KIND)?;
        let (height, width) = grid_of(pictures, (KIND, self.side_of_cell()))?;
        let (batch, _, rows, columns) = pictures.shape();
        let channels = self.config.latent_channels;
        let mut latents = Tensor::zeros(host, (batch, channels, height, width));
        let samples = latents.values_mut().chunks_exact_mut(channels * height * width);
        for (picture, latents) in pictures.values().chunks_exact(3 * rows * columns).zip(samples) {
            // These networks see pictures in [0, 1].
            self.encoder.run(device, (picture, (3, rows, columns)), |v| (v + 1.0) / 2.0, latents)?;
            check_finite(latents, "latents", KIND)?;
        }
        let (shift, scale) = (self.config.shift_factor, self.config.scaling_factor);
        latents.values_mut().iter_mut().for_each(|z| *z = (*z - shift) * scale);
        Ok(latents)
    }

    fn decode(&self, device: &D, host: &Cpu, latents: &Batch) -> Result<Batch> {
        check_latents(latents, (KIND, self.config.latent_channels))?;
        let (batch, channels, height, width) = latents.shape();
        let (rows, columns) = (height * self.side_of_cell(), width * self.side_of_cell());
        let mut pictures = Tensor::zeros(host, (batch, 3, rows, columns));
        let (shift, scale) = (self.config.shift_factor, self.config.scaling_factor);
        let samples = pictures.values_mut().chunks_exact_mut(3 * rows * columns);
        for (latents, picture) in latents.values().chunks_exact(channels * height * width).zip(samples) {
            let squashed = |z: f32| libm::tanhf((z / scale + shift) / LIMIT) * LIMIT;
            self.decoder.run(device, (latents, (channels, height, width)), squashed, picture)?;
            check_finite(picture, "pictures", KIND)?;
            picture.iter_mut().for_each(|v| *v = *v * 2.0 - 1.0);
        }
        Ok(pictures)
    }

    fn encode_cost(&self, height: usize, width: usize) -> PassCost {
        self.encoder.cost((height, width))
    }

    fn decode_cost(&self, height: usize, width: usize) -> PassCost {
        self.decoder.cost((height / self.side_of_cell(), width / self.side_of_cell()))
    }
}
