//! The autoencoder of `encode`, `encode-references` and `decode`: which one, from which file.
//!
//! Shape letters: `B` batch, `C` latent channels, `H` `W` latent grid.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use prefgraph_nn::{
    self as nn, Device, DeviceKind,
    autoencoders::{Autoencoder, Batch, Dct, KlAutoencoder, Posterior, TinyAutoencoder},
    cuda::Cuda,
    once::get_or_try_init,
};

use super::weights::{below, beside};
use crate::{
    choices,
    operator::{Cost, Ctx, OpError},
    part::{Part, Toy},
    settings::DataPath,
};

/// The folder of the autoencoder in that of a checkpoint.
const VAE: &str = "vae";

choices! {
    /// Kinds of autoencoder.
    pub enum AutoencoderKind {
        /// Fixed cosine transform: nothing trained, 16 channels, one cell for 8x8 pixels.
        Dct = "dct",
        /// KL-regularised autoencoder of FLUX, SDXL and their kin.
        Kl = "kl",
        /// Small distilled autoencoder (TAESD and its kin).
        Tiny = "tiny",
    }
}

/// An autoencoder on the device of the run.
pub(crate) struct Coder {
    kind: AutoencoderKind,
    weights: DataPath,
    cpu: Arc<dyn Autoencoder>,
    /// Where the run has a GPU, from the first use on.
    gpu: OnceLock<Arc<dyn Autoencoder<Cuda>>>,
}

impl Coder {
    /// Open an autoencoder; weights stay in their mapped file.
    pub fn open(kind: AutoencoderKind, weights: &DataPath) -> Result<Self, OpError> {
        match (kind, weights.is_empty()) {
            (AutoencoderKind::Dct, false) => {
                return Err(OpError::new("weights: kind `dct` has none; did you mean kind `kl` or `tiny`?"));
            }
            (AutoencoderKind::Kl | AutoencoderKind::Tiny, true) => {
                return Err(OpError::new(
                    "weights: the folder of an autoencoder, or one safetensors file, is needed for this kind",
                ));
            }
            _ => {}
        }
        let cpu = open(kind, weights)?;
        Ok(Self { kind, weights: weights.clone(), cpu, gpu: OnceLock::new() })
    }

    /// To ask for what is known without its weights, and for costs.
    pub fn about(&self) -> &dyn Autoencoder {
        &*self.cpu
    }

    /// Pictures to latents: see [`Autoencoder::encode`].
    pub fn encode(
        &self,
        ctx: &Ctx<'_>,
        pictures: &Batch,
        posterior: Posterior<'_>,
    ) -> Result<Batch, OpError> {
        Ok(match ctx.gpu {
            None => self.cpu.encode(ctx.cpu, ctx.cpu, pictures, posterior)?,
            Some(gpu) => self.on_gpu()?.encode(gpu, ctx.cpu, pictures, posterior)?,
        })
    }

    /// Latents to pictures: see [`Autoencoder::decode`].
    pub fn decode(&self, ctx: &Ctx<'_>, latents: &Batch) -> Result<Batch, OpError> {
        Ok(match ctx.gpu {
            None => self.cpu.decode(ctx.cpu, ctx.cpu, latents)?,
            Some(gpu) => self.on_gpu()?.decode(gpu, ctx.cpu, latents)?,
        })
    }

    /// What a node costs that runs it on a GPU; nothing for a kind that runs on the host in any case.
    pub fn on_gpu_costs(&self, cost: Cost) -> Option<Cost> {
        let runs_there = self.kind != AutoencoderKind::Dct;
        runs_there.then_some(Cost { queue_bytes: DeviceKind::Cuda.queue_bytes(), ..cost })
    }

    fn on_gpu(&self) -> Result<&dyn Autoencoder<Cuda>, OpError> {
        get_or_try_init(&self.gpu, || open(self.kind, &self.weights)).map(|opened| &**opened)
    }
}

/// A cost whose host bytes are in the same memory as all else.
pub(crate) fn on_host(cost: Cost) -> Cost {
    Cost { scratch_bytes: cost.scratch_bytes.saturating_add(cost.host_bytes), host_bytes: 0, ..cost }
}

/// The cost of a node that gives a GPU what it has on the host: a queue, and memory that copies go through.
pub(crate) fn on_gpu(cost: Cost) -> Cost {
    let host_bytes = cost.host_bytes.saturating_add(DeviceKind::Cuda.pinned_bytes());
    Cost { queue_bytes: DeviceKind::Cuda.queue_bytes(), host_bytes, ..cost }
}

fn open<D: Device>(kind: AutoencoderKind, weights: &DataPath) -> Result<Arc<dyn Autoencoder<D>>, OpError> {
    let opened: nn::error::Result<Arc<dyn Autoencoder<D>>> = match kind {
        AutoencoderKind::Dct => Ok(Arc::new(Dct::new())),
        AutoencoderKind::Tiny => TinyAutoencoder::open(weights.as_path()).map(|a| Arc::new(a) as _),
        AutoencoderKind::Kl => KlAutoencoder::open(weights.as_path()).map(|a| Arc::new(a) as _),
    };
    opened.map_err(|e| {
        let why = beside(weights, VAE).unwrap_or_else(|| e.to_string());
        OpError::new(format!("weights: {why}"))
    })
}

/// What a node with an autoencoder of this kind is to others.
pub(crate) fn part(kind: AutoencoderKind, allow_toy: bool) -> Part {
    match kind {
        AutoencoderKind::Dct => {
            let toy = Toy {
                chosen_by: "kind: dct",
                instead: &["kind=kl", "weights=FOLDER_OR_FILE_OF_THE_AUTOENCODER"],
            };
            Part::of_toy(toy, allow_toy)
        }
        AutoencoderKind::Kl | AutoencoderKind::Tiny => Part::Ordinary,
    }
}

/// Where an autoencoder is read from: the file, or the folder, which may lie below the one that is named.
pub(crate) fn place(weights: &DataPath) -> PathBuf {
    below(weights, VAE)
}

/// A line for people about an autoencoder that has weights.
pub(crate) fn note(autoencoder: &dyn Autoencoder, weights: &DataPath) -> Vec<String> {
    if autoencoder.parameters() == 0 {
        return Vec::new();
    }
    vec![format!(
        "{} with {:.2}M frozen parameters, {} channels, one cell for {cell} x {cell} pixels, from {}",
        autoencoder.kind(),
        autoencoder.parameters() as f64 / 1e6,
        autoencoder.channels(),
        weights.as_path().display(),
        cell = autoencoder.cell(),
    )]
}
