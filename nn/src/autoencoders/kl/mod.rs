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
    Autoencoder, Batch, NetworkCost, Posterior, check_finite, check_latents, files, grid_of,
    steps::{self, RenamedFiles, Step},
};
use crate::{
    cpu::Cpu,
    error::{Error, Result},
    layers::{conv::Map, stored},
    tensor::Tensor,
};

/// The logarithm of a variance is kept between these, as in the reference implementation.
const LOG_VARIANCE: (f32, f32) = (-30.0, 20.0);

/// A KL autoencoder whose weights stay in their file.
#[derive(Debug)]
pub struct Kl {
    config: KlConfig,
    source: RenamedFiles,
    encoder: Vec<Step>,
    decoder: Vec<Step>,
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

impl Kl {
    /// Open a folder with `config.json` and `diffusion_pytorch_model.safetensors`, the folder above its `vae`, or one
    /// safetensors file in either layout of names, which is taken as FLUX's where no `config.json` is beside it. Only
    /// headers are read.
    ///
    /// # Errors
    /// If a file is missing or cut off, the configuration is of another model, or tensors are missing or of other
    /// shapes.
    pub fn open(path: &Path) -> Result<Self> {
        let (config, files) = files::open(path)?;
        let (stated, config) = match config {
            Some(path) => (KlConfig::read(&path)?, path),
            None => (KlConfig::flux(), path.to_owned()),
        };
        stated.bound(&config, &files)?;
        let config = stated;
        let (encoder, decoder) = (config.encoder(), config.decoder());
        let original = files.info("encoder.down.0.block.0.conv1.weight").is_some();
        let levels = config.block_out_channels.len();
        let rename = if original { names::original } else { names::diffusers };
        let source = RenamedFiles { files: Arc::new(files), rename, levels };
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
        Ok(Self { config, source, encoder, decoder, parameters, weight_bytes })
    }

    /// The sizes.
    pub fn config(&self) -> &KlConfig {
        &self.config
    }

    fn shift(&self) -> f32 {
        self.config.shift_factor.unwrap_or(0.0)
    }

    /// Mean and variance of the latents of pictures `[B, 3, P H, P W]` with values in [-1, 1].
    ///
    /// # Errors
    /// As [`Autoencoder::encode`].
    pub fn moments(&self, device: &Cpu, pictures: &Batch) -> Result<LatentMoments> {
        let (height, width) = grid_of(pictures, self)?;
        let (batch, _, rows, columns) = pictures.shape();
        let channels = self.config.latent_channels;
        let values = channels * height * width;
        let shape = (batch, channels, height, width);
        let mut out =
            LatentMoments { mean: Tensor::zeros(device, shape), log_variance: Tensor::zeros(device, shape) };
        let mut planes = vec![0.0; 2 * values];
        let LatentMoments { mean, log_variance } = &mut out;
        let samples = mean.values_mut().chunks_exact_mut(values);
        let samples = samples.zip(log_variance.values_mut().chunks_exact_mut(values));
        for (picture, (mean, log_variance)) in pictures.values().chunks_exact(3 * rows * columns).zip(samples)
        {
            let x = Map::from_planes(picture, (3, rows, columns));
            steps::run(&self.encoder, device, &self.source, x)?.write_planes(&mut planes);
            check_finite(&planes, "latents", self)?;
            mean.copy_from_slice(&planes[..values]);
            log_variance.copy_from_slice(&planes[values..]);
            log_variance.iter_mut().for_each(|v| *v = v.clamp(LOG_VARIANCE.0, LOG_VARIANCE.1));
        }
        Ok(out)
    }
}

impl Autoencoder for Kl {
    fn kind(&self) -> &'static str {
        "kl"
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

    fn encode(&self, device: &Cpu, pictures: &Batch, posterior: Posterior<'_>) -> Result<Batch> {
        let LatentMoments { mean: mut latents, log_variance } = self.moments(device, pictures)?;
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

    fn decode(&self, device: &Cpu, latents: &Batch) -> Result<Batch> {
        check_latents(latents, self)?;
        let (batch, channels, height, width) = latents.shape();
        let (rows, columns) = (height * self.cell(), width * self.cell());
        let mut pictures = Tensor::zeros(device, (batch, 3, rows, columns));
        let samples = pictures.values_mut().chunks_exact_mut(3 * rows * columns);
        for (latents, picture) in latents.values().chunks_exact(channels * height * width).zip(samples) {
            let mut x = Map::from_planes(latents, (channels, height, width));
            let (shift, scale) = (self.shift(), self.config.scaling_factor);
            x.values.iter_mut().for_each(|z| *z = *z / scale + shift);
            steps::run(&self.decoder, device, &self.source, x)?.write_planes(picture);
            check_finite(picture, "pictures", self)?;
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
