//! Checkpoints of a U-Net in both published layouts: each tensor by its diffusers name.
//!
//! ```text
//!  a folder of diffusers      config.json, and weights in one file or in shards
//!  one file, original names   sd_xl_base_1.0.safetensors: the whole pipeline, of which this reads the U-Net
//! ```

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    config::{CLASS, UNetConfig},
    original::originals,
};
use crate::{
    error::{Error, Result},
    files::{TensorFiles, TensorView, config_beside, no_model},
};

/// What a path to weights may lead to.
const EXPECTED: &str = "the U-Net of Stable Diffusion XL: its folder of diffusers, with config.json and weights, the folder above its \
                        `unet`, or a checkpoint in one file with the original names";

/// What weights are called in a folder: as they are, or only in half precision.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "diffusion_pytorch_model.fp16"];

/// What stands before the original names of a U-Net, longest first.
const PREFIXES: [&str; 3] = ["model.diffusion_model.", "diffusion_model.", ""];

/// A checkpoint whose names and shapes have been compared with its sizes; values are read through views.
#[derive(Debug)]
pub struct UNetFiles {
    files: Arc<TensorFiles>,
    /// From names in diffusers' layout to those of the file, where these are others.
    names: Option<HashMap<String, String>>,
}

impl UNetFiles {
    /// Open a folder of diffusers (the U-Net's, or the one above its `unet`), or one `.safetensors` file with the original names.
    ///
    /// Sizes are those of `config.json`. A single file has none: it is taken to be of SDXL's sizes, as all models made from it are,
    /// unless a `config.json` of a U-Net lies beside it.
    ///
    /// # Errors
    /// If files are missing or torn; if it is another kind of model, or a U-Net for something else, which is named; if the sizes are
    /// none that can be run; if tensors are missing, surplus or of another shape.
    pub fn open(path: &Path) -> Result<(UNetConfig, Self)> {
        if path.is_file() {
            return Self::open_file(path);
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
        Ok((config, Self { files: Arc::new(files), names: None }))
    }

    fn open_file(path: &Path) -> Result<(UNetConfig, Self)> {
        let files = TensorFiles::open(path)?;
        let first = "input_blocks.0.0.weight";
        let prefix = PREFIXES.into_iter().find(|prefix| files.info(&format!("{prefix}{first}")).is_some());
        let Some(prefix) = prefix else { return Err(not_a_unet(path, &files)) };
        let config = match config_beside(path, |kind| kind == CLASS)? {
            Some(beside) => UNetConfig::read(&beside)?,
            None => of_sdxl(path, &files, prefix)?,
        };
        config.bound(path, &files)?;
        let originals = originals(&config);
        let expected: Vec<_> =
            originals.iter().map(|(_, name, s)| (format!("{prefix}{name}"), s.clone())).collect();
        // What stands outside the prefix are other parts of the pipeline.
        files.expect_exactly_under(prefix, &expected)?;
        let names = originals.into_iter().map(|(diffusers, name, _)| (diffusers, format!("{prefix}{name}")));
        Ok((config, Self { names: Some(names.collect()), files: Arc::new(files) }))
    }

    /// The tensor of this name in diffusers' layout.
    ///
    /// # Errors
    /// If the model has no tensor of this name.
    pub fn view(&self, name: &str) -> Result<TensorView> {
        let found = self.names.as_ref().and_then(|names| names.get(name));
        TensorView::whole(&self.files, found.map_or(name, String::as_str))
    }

    /// The mapped files.
    pub fn files(&self) -> &Arc<TensorFiles> {
        &self.files
    }
}

/// SDXL's sizes for a file that states none, or what else the file is.
fn of_sdxl(path: &Path, files: &TensorFiles, prefix: &str) -> Result<UNetConfig> {
    let inputs = |name: &str| files.info(&format!("{prefix}{name}")).and_then(|i| i.shape.get(1).copied());
    let mut config = UNetConfig::sdxl();
    // What gives another kind away: channels in, the width of text, and whether sizes are told.
    config.in_channels = inputs("input_blocks.0.0.weight").unwrap_or(config.in_channels);
    let crossing = |name: &&str| name.starts_with(prefix) && name.ends_with("attn2.to_k.weight");
    let text = files.names().find(crossing).and_then(|name| files.info(name)?.shape.get(1).copied());
    config.cross_attention_dim = text.unwrap_or(config.cross_attention_dim);
    if inputs("label_emb.0.0.weight").is_none() {
        config.addition_embed_type = None;
    }
    match config.other_kind() {
        Some(kind) => Err(Error::file(path, kind)),
        None => Ok(config),
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

/// What a single file is that has no U-Net in the original layout.
fn not_a_unet(path: &Path, files: &TensorFiles) -> Error {
    const SIGNS: [(&str, &str); 6] = [
        (
            "down_blocks.0.resnets.0.conv1",
            "a file of a U-Net's folder: name the folder, whose config.json has its sizes",
        ),
        ("ip_adapter.1.to_k_ip", "an IP-Adapter"),
        ("lora_", "an adapter"),
        ("double_blocks.0", "a FLUX transformer"),
        ("transformer_blocks.0", "a transformer, in diffusers' names"),
        ("decoder.conv_in", "an autoencoder"),
    ];
    let sign = SIGNS.iter().find(|(sign, _)| files.names().any(|n| n.contains(sign)));
    let kind = sign.map_or("no U-Net", |(_, kind)| kind);
    Error::file(path, format!("is {kind}; expected {EXPECTED}"))
}
