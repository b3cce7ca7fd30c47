//! The KL-regularised autoencoder of latent diffusion (Rombach et al. 2022), as FLUX and SDXL use it.
//!
//! Shape letters: `B` batch, `C` latent channels, `H` `W` latent grid, `P` side of a latent cell in pixels.
//!
//! The encoder gives the mean and the logarithm of the variance of the latents; a denoiser takes
//! `(z - shift) * scale`. Architecture and names are those of diffusers' `AutoencoderKL`; the original layout of names is
//! read as well.

mod config;
mod names;

use std::{path::Path, sync::Arc};

pub use config::KlConfig;

use super::{
    Autoencoder, Batch, Half, Posterior, check_finite, check_latents, files, grid_of, network::Network,
    steps::RenamedFiles,
};
use crate::{
    cost::PassCost,
    cpu::Cpu,
    device::Device,
    error::{Error, Result},
    files::TensorFiles,
    layers::stored,
    tensor::Tensor,
};

/// Name in messages.
const KIND: &str = "kl";
/// The logarithm of a variance is kept between these, as in the reference implementation.
const LOG_VARIANCE: (f32, f32) = (-30.0, 20.0);

/// A KL autoencoder on the processor.
pub type Kl = KlAutoencoder<Cpu>;

/// A KL autoencoder read from a file or a folder. Weights are read by the first run of each half, for its device; later runs
/// are to be on the same one.
#[derive(Debug)]
pub struct KlAutoencoder<D: Device> {
    config: KlConfig,
    encoder: Network<D>,
    decoder: Network<D>,
    parameters: usize,
    weight_bytes: usize,
}

/// What the encoder gives, before shift and scale.
#[derive(Clone, Debug)]
pub struct LatentMoments {
    /// Mean, `[B, C, H, W]`.
    pub mean: Batch,
    /// Logarithm of the variance, `[B, C, H, W]`.
    pub log_variance: Batch,
}

/// What the names of the autoencoder's tensors begin with in a whole checkpoint in one file.
const CHECKPOINT: &str = "first_stage_model.";

fn is_checkpoint(files: &TensorFiles) -> bool {
    files.names().any(|name| name.starts_with(CHECKPOINT))
}

/// The configuration of a published autoencoder in one file.
///
/// # Errors
/// If it may be one of several.
fn published(files: &TensorFiles) -> Result<KlConfig> {
    if is_checkpoint(files) && files.names().any(|name| name.starts_with("conditioner.embedders.1.")) {
        return Ok(KlConfig::sdxl());
    }
    let prefix = if is_checkpoint(files) { CHECKPOINT } else { "" };
    let last = files.info(&format!("{prefix}encoder.conv_out.weight"));
    let channels = last.and_then(|info| info.shape.first()).map(|moments| moments / 2);
    if channels != Some(4) {
        return Ok(KlConfig::flux());
    }
    Err(Error::file(
        files.path(),
        "has 4 channels and no config.json beside it: the autoencoders of SDXL (scaling_factor 0.13025) and of SD 1.5 (0.18215) \
         have the same tensors, so put the config.json of its folder `vae` beside the file",
    ))
}

impl<D: Device> KlAutoencoder<D> {
    /// Open a folder with `config.json` and `diffusion_pytorch_model.safetensors`, the folder above its `vae`, or one
    /// safetensors file in either layout of names; a whole checkpoint of SDXL is such a file, too. Where no `config.json` is
    /// beside a file it is taken as FLUX's if it has 16 channels, and as SDXL's in a checkpoint of SDXL. Only headers are read.
    ///
    /// # Errors
    /// If a file is missing or cut off, the configuration is of another model, or tensors are missing or of other
    /// shapes; if a file without a configuration may be that of several models.
    pub fn open(path: &Path) -> Result<Self> {
        let (config, files) = files::open(path)?;
        let (stated, config) = match config {
            Some(path) => (KlConfig::read(&path)?, path),
            None => (published(&files)?, path.to_owned()),
        };
        stated.bound(&config, &files)?;
        let config = stated;
        let prefix = if is_checkpoint(&files) { CHECKPOINT } else { "" };
        let original = files.info(&format!("{prefix}encoder.down.0.block.0.conv1.weight")).is_some();
        let levels = config.block_out_channels.len();
        let rename = if original { names::original } else { names::diffusers };
        let source = RenamedFiles { files: Arc::new(files), prefix, rename, levels };
        let expected: Vec<(String, Vec<usize>)> = config
            .tensors()
            .into_iter()
            .map(|(name, mut shape)| {
                if original && names::is_attention(&name) {
                    shape.extend([1, 1]);
                }
                (source.name(&name), shape)
            })
            .collect();
        source.files.expect(&expected)?;
        let (parameters, weight_bytes) = stored(&source.files, &expected);
        let source = Arc::new(source);
        let network = |steps| Network::new(steps, source.clone());
        let (encoder, decoder) = (network(config.encoder()), network(config.decoder()));
        Ok(Self { config, encoder, decoder, parameters, weight_bytes })
    }

    /// The sizes.
    pub fn config(&self) -> &KlConfig {
        &self.config
    }

    fn shift(&self) -> f32 {
        self.config.shift_factor.unwrap_or(0.0)
    }

    /// Mean and variance of the latents of pictures `[B, 3, P H, P W]` with values in [-1, 1], all tensors of `host`.
    ///
    /// # Errors
    /// As [`Autoencoder::encode`].
    pub fn moments(&self, device: &D, host: &Cpu, pictures: &Batch) -> Result<LatentMoments> {
        let (height, width) = grid_of(pictures, (KIND, self.config.cell()))?;
        let (batch, _, rows, columns) = pictures.shape();
        let channels = self.config.latent_channels;
        let values = channels * height * width;
        let shape = (batch, channels, height, width);
        let mut out =
            LatentMoments { mean: Tensor::zeros(host, shape), log_variance: Tensor::zeros(host, shape) };
        let mut planes = vec![0.0; 2 * values];
        let LatentMoments { mean, log_variance } = &mut out;
        let samples = mean.values_mut().chunks_exact_mut(values);
        let samples = samples.zip(log_variance.values_mut().chunks_exact_mut(values));
        for (picture, (mean, log_variance)) in pictures.values().chunks_exact(3 * rows * columns).zip(samples)
        {
            self.encoder.run(device, (picture, (3, rows, columns)), |v| v, &mut planes)?;
            check_finite(&planes, "latents", KIND)?;
            mean.copy_from_slice(&planes[..values]);
            log_variance.copy_from_slice(&planes[values..]);
            log_variance.iter_mut().for_each(|v| *v = v.clamp(LOG_VARIANCE.0, LOG_VARIANCE.1));
        }
        Ok(out)
    }
}

impl<D: Device> Autoencoder<D> for KlAutoencoder<D> {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn channels(&self) -> usize {
        self.config.latent_channels
    }

    fn cell(&self) -> usize {
        self.config.cell()
    }

    fn has_posterior(&self) -> bool {
        true
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
        let LatentMoments { mean: mut latents, log_variance } = self.moments(device, host, pictures)?;
        if let Posterior::Sample(normals) = posterior {
            if normals.len() != latents.values().len() {
                return Err(Error::shape(
                    "normal numbers for a sample of latents",
                    latents.values().len(),
                    normals.len(),
                ));
            }
            let deviations = log_variance.values().iter().map(|v| libm::expf(0.5 * v));
            for ((z, deviation), normal) in latents.values_mut().iter_mut().zip(deviations).zip(normals) {
                *z += deviation * normal;
            }
        }
        let (shift, scale) = (self.shift(), self.config.scaling_factor);
        latents.values_mut().iter_mut().for_each(|z| *z = (*z - shift) * scale);
        Ok(latents)
    }

    fn decode(&self, device: &D, host: &Cpu, latents: &Batch) -> Result<Batch> {
        check_latents(latents, (KIND, self.config.latent_channels))?;
        let (batch, channels, height, width) = latents.shape();
        let (rows, columns) = (height * self.config.cell(), width * self.config.cell());
        let mut pictures = Tensor::zeros(host, (batch, 3, rows, columns));
        let (shift, scale) = (self.shift(), self.config.scaling_factor);
        let samples = pictures.values_mut().chunks_exact_mut(3 * rows * columns);
        for (latents, picture) in latents.values().chunks_exact(channels * height * width).zip(samples) {
            let latents = (latents, (channels, height, width));
            self.decoder.run(device, latents, |z| z / scale + shift, picture)?;
            check_finite(picture, "pictures", KIND)?;
        }
        Ok(pictures)
    }

    fn encode_cost(&self, height: usize, width: usize) -> PassCost {
        self.encoder.cost((height, width))
    }

    fn decode_cost(&self, height: usize, width: usize) -> PassCost {
        self.decoder.cost((height / self.config.cell(), width / self.config.cell()))
    }
}
