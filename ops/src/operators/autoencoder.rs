//! The autoencoder of `encode`, `encode-references` and `decode`: which one, from which file.
//!
//! Shape letters: `B` batch, `C` latent channels, `H` `W` latent grid.

use std::{path::PathBuf, sync::Arc};

use prefgraph_nn::{
    self as nn,
    autoencoders::{Autoencoder, Dct, Kl, Tiny},
};

use crate::{
    choices,
    error::OpError,
    part::{Part, Toy},
    settings::DataPath,
};

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

/// Open an autoencoder; weights stay in their mapped file.
pub(crate) fn open(kind: AutoencoderKind, weights: &DataPath) -> Result<Arc<dyn Autoencoder>, OpError> {
    if kind == AutoencoderKind::Dct {
        return if weights.is_empty() {
            Ok(Arc::new(Dct::new()))
        } else {
            Err(OpError::new("weights: kind `dct` has none; did you mean kind `kl` or `tiny`?"))
        };
    }
    if weights.is_empty() {
        return Err(OpError::new(
            "weights: the folder of an autoencoder, or one safetensors file, is needed for this kind",
        ));
    }
    let opened: nn::error::Result<Arc<dyn Autoencoder>> = match kind {
        AutoencoderKind::Tiny => Tiny::open(weights.as_path()).map(|a| Arc::new(a) as _),
        _ => Kl::open(weights.as_path()).map(|a| Arc::new(a) as _),
    };
    opened.map_err(|e| OpError::new(format!("weights: {e}")))
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
    let below = weights.as_path().join("vae");
    if !weights.as_path().join("config.json").exists() && below.is_dir() { below } else { weights.0.clone() }
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
