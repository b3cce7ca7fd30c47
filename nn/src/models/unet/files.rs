//! Checkpoints of a U-Net: a folder of diffusers, with its weights in one file or in shards.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::config::{CLASS, UNetConfig};
use crate::{
    error::{Error, Result},
    files::{TensorFiles, TensorView, no_model},
};

/// What a path to weights may lead to.
const EXPECTED: &str = "the U-Net of Stable Diffusion XL: its folder of diffusers, with config.json and weights, or the folder above \
                        its `unet`";

/// What weights are called in a folder: as they are, or only in half precision.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "diffusion_pytorch_model.fp16"];

/// A checkpoint whose names and shapes have been compared with its sizes; values are read through views.
#[derive(Debug)]
pub struct UNetFiles {
    files: Arc<TensorFiles>,
}

impl UNetFiles {
    /// Open a folder of diffusers: the U-Net's, or the one above its `unet`.
    ///
    /// # Errors
    /// If files are missing or torn; if it is another kind of model, or a U-Net for something else, which is named; if the sizes are
    /// none that can be run; if tensors are missing, surplus or of another shape.
    pub fn open(path: &Path) -> Result<(UNetConfig, Self)> {
        if path.is_file() {
            return Err(not_a_folder(path, &TensorFiles::open(path)?));
        }
        let below = path.join("unet");
        let folder = if !path.join("config.json").exists() && below.is_dir() { &below } else { path };
        let stated = folder.join("config.json");
        if !stated.exists() {
            return Err(no_model(folder, EXPECTED));
        }
        let config = UNetConfig::read(&stated)?;
        let files = TensorFiles::open_in(folder, stem(folder))?;
        config.bound(&stated, &files)?;
        files.expect_exactly(&config.tensors())?;
        Ok((config, Self { files: Arc::new(files) }))
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// If the model has no tensor of this name.
    pub fn view(&self, name: &str) -> Result<TensorView> {
        TensorView::whole(&self.files, name)
    }

    /// The mapped files.
    pub fn files(&self) -> &Arc<TensorFiles> {
        &self.files
    }
}

/// The first stem that weights of the folder have, or the usual one.
fn stem(folder: &Path) -> &'static str {
    let there = |stem: &&&str| {
        let file = |ending| -> PathBuf { folder.join(format!("{stem}.{ending}")) };
        file("safetensors").exists() || file("safetensors.index.json").exists()
    };
    STEMS.iter().find(there).unwrap_or(&STEMS[0])
}

/// What a single file is that was given for a folder.
fn not_a_folder(path: &Path, files: &TensorFiles) -> Error {
    const SIGNS: [(&str, &str); 7] = [
        (
            "model.diffusion_model.input_blocks.0",
            "a checkpoint of Stable Diffusion in one file, with its original names",
        ),
        ("down_blocks.0.resnets.0.conv1", "a file of a U-Net's folder"),
        ("ip_adapter.1.to_k_ip", "an IP-Adapter"),
        ("lora_", "an adapter"),
        ("double_blocks.0", "a FLUX transformer"),
        ("transformer_blocks.0", "a transformer, in diffusers' names"),
        ("decoder.conv_in", "an autoencoder"),
    ];
    let sign = SIGNS.iter().find(|(sign, _)| files.names().any(|n| n.contains(sign)));
    let kind = sign.map_or("a file", |(_, kind)| kind);
    Error::file(path, format!("is {kind}: expected {EXPECTED} (`_class_name` {CLASS})"))
}
