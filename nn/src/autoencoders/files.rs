//! Finds the files of an autoencoder.

use std::path::{Path, PathBuf};

use crate::{
    error::Result,
    files::{TensorFiles, no_model},
};

/// What a path to weights may lead to.
const EXPECTED: &str = "an autoencoder: its folder with config.json and weights, the folder above its `vae`, or one safetensors \
                        file";

/// Name of the weights in a diffusers folder, without the suffix.
const STEM: &str = "diffusion_pytorch_model";

/// The configuration, if there is one, and the weights: of a folder, of the folder above its `vae`, or of one file. A
/// folder must have a configuration.
pub(super) fn open(path: &Path) -> Result<(Option<PathBuf>, TensorFiles)> {
    if path.is_file() {
        let config = path.with_file_name("config.json");
        return Ok((config.is_file().then_some(config), TensorFiles::open(path)?));
    }
    if !path.is_dir() {
        return Err(no_model(path, EXPECTED));
    }
    let mut folder = path.to_owned();
    if !folder.join("config.json").exists() && folder.join("vae").is_dir() {
        folder.push("vae");
    }
    let config = folder.join("config.json");
    if !config.is_file() {
        return Err(no_model(&folder, EXPECTED));
    }
    let files = TensorFiles::open_in(&folder, STEM)?;
    Ok((Some(config), files))
}
