//! Autoencoders: from pictures to latents and back.
//!
//! Shape letters: `B` batch, `C` latent channels, `H` `W` latent grid; a picture has `P` H rows and `P` W columns of
//! pixels, `P` being the side of a latent cell.

use std::fmt;

use crate::{
    cost::PassCost,
    cpu::Cpu,
    device::Device,
    error::{Error, Result},
    tensor::Tensor,
};

pub mod dct;
mod files;
pub mod kl;
mod network;
mod steps;
pub mod tiny;

pub use dct::Dct;
pub use kl::{Kl, KlAutoencoder};
pub use tiny::{Tiny, TinyAutoencoder};

/// Most resolutions of an autoencoder, each of half the side of the one before: a latent cell of 512 pixels. Published ones have
/// four.
const MOST_LEVELS: usize = 10;

/// Latents or pictures of a batch: `[B, channels, rows, columns]`.
pub type Batch = Tensor<(usize, usize, usize, usize)>;

/// Which latents of a picture are wanted, where an encoder gives a distribution of them.
#[derive(Clone, Copy, Debug)]
pub enum Posterior<'a> {
    /// The mean.
    Mean,
    /// mean + deviation * these standard normal numbers, `[B, C, H, W]`.
    Sample(&'a [f32]),
}

/// One of the two networks of an autoencoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// From pictures to latents.
    Encoder,
    /// From latents to pictures.
    Decoder,
}

/// From pictures to latents and back, on a device. Weights, if there are any, are frozen; each half reads its own when it first
/// runs, for the device that it runs on, and keeps them: later runs are to be on the same one.
pub trait Autoencoder<D: Device = Cpu>: fmt::Debug + Send + Sync {
    /// Name in messages, e.g. `kl`.
    fn kind(&self) -> &'static str;

    /// C.
    fn channels(&self) -> usize;

    /// P, pixels along each side of a latent cell.
    fn cell(&self) -> usize;

    /// Does [`encode`](Self::encode) give a distribution, which can be sampled?
    fn has_posterior(&self) -> bool;

    /// Number of frozen values.
    fn parameters(&self) -> usize;

    /// Bytes of the mapped file that they are read from.
    fn weight_bytes(&self) -> usize;

    /// Bytes that the weights of a half hold once it has run. Mapped files are not counted.
    fn resident_bytes(&self, half: Half) -> usize;

    /// Pictures `[B, 3, P H, P W]` with values in [-1, 1] to latents `[B, C, H, W]` of roughly unit variance, shifted
    /// and scaled as the denoiser takes them. Both are tensors of `host`.
    ///
    /// # Errors
    /// If the sizes do not fit, weights cannot be read, the device fails, or a sample is asked of an autoencoder without a
    /// posterior.
    fn encode(&self, device: &D, host: &Cpu, pictures: &Batch, posterior: Posterior<'_>) -> Result<Batch>;

    /// Latents `[B, C, H, W]` to pictures `[B, 3, P H, P W]`; values may leave [-1, 1].
    ///
    /// # Errors
    /// If the channels are others, weights cannot be read, or the device fails.
    fn decode(&self, device: &D, host: &Cpu, latents: &Batch) -> Result<Batch>;

    /// What encoding a picture of `height` x `width` pixels takes; pictures of a batch go one after the other.
    fn encode_cost(&self, height: usize, width: usize) -> PassCost;

    /// What decoding to a picture of `height` x `width` pixels takes.
    fn decode_cost(&self, height: usize, width: usize) -> PassCost;
}

/// Check the axes of pictures for an autoencoder of this kind with cells of this side; gives the latent grid.
fn grid_of(pictures: &Batch, (who, cell): (&str, usize)) -> Result<(usize, usize)> {
    let (_, channels, rows, columns) = pictures.shape();
    let whole = |side: usize| side > 0 && side.is_multiple_of(cell);
    if channels != 3 || !whole(rows) || !whole(columns) {
        let expected = format!("[B, 3, a multiple of {cell}, a multiple of {cell}]");
        return Err(shape_error("pictures", who, &expected, pictures));
    }
    Ok((rows / cell, columns / cell))
}

/// Check the axes of latents for an autoencoder of this kind with so many channels.
fn check_latents(latents: &Batch, (who, expected): (&str, usize)) -> Result<()> {
    let (_, channels, height, width) = latents.shape();
    if channels != expected || height * width == 0 {
        return Err(shape_error("latents", who, &format!("[B, {expected}, H, W]"), latents));
    }
    Ok(())
}

/// An autoencoder without a posterior cannot be sampled.
fn refuse_sample(posterior: Posterior<'_>, who: &str) -> Result<()> {
    match posterior {
        Posterior::Mean => Ok(()),
        Posterior::Sample(_) => Err(Error::Setting(format!(
            "the autoencoder `{who}` gives latents, not a distribution of them: expected the mean, not a sample"
        ))),
    }
}

fn shape_error(what: &str, who: &str, expected: &str, found: &Batch) -> Error {
    Error::Shape {
        what: format!("{what} for the autoencoder `{who}`"),
        expected: expected.into(),
        found: format!("{:?}", found.dims()),
    }
}

fn check_finite(values: &[f32], what: &str, who: &str) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(at) => Err(Error::NotFinite(format!(
            "the autoencoder `{who}` gave {} at element {at} of its {what}: what it was given is not finite, or its \
             weights are damaged",
            values[at]
        ))),
    }
}
