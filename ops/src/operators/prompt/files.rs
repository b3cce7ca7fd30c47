//! Where encoders and tokenisers lie, by the settings that name them.

use std::path::{Path, PathBuf};

use crate::{
    operator::OpError,
    operators::weights::{below, configuration},
    settings::DataPath,
};

/// The folder of an encoder, which may be given as the folder above, or its file.
pub(super) fn encoder(setting: &str, path: &DataPath, name: &str) -> Result<PathBuf, OpError> {
    if path.is_empty() {
        return Err(OpError::new(format!(
            "{setting}: the encoder is needed: its folder, that of a checkpoint with `{name}`, or its single file"
        )));
    }
    let found = below(path, name);
    if found == path.0 && found.is_dir() && !found.join("config.json").exists() {
        let what = match setting {
            "bigg" => "OpenCLIP ViT-bigG, which Stable Diffusion 1 does not have",
            "clip" => "CLIP-L",
            _ => "T5",
        };
        return Err(OpError::new(format!(
            "{setting}: `{}` has no folder `{name}`, where a pipeline has {what}, and no config.json of an encoder: name the \
             encoder's folder or its single file",
            found.display()
        )));
    }
    Ok(found)
}

/// The folder of a tokeniser: as stated, else the encoder's neighbour of this name, else the encoder's own.
pub(super) fn tokenizer(
    setting: &str,
    path: &DataPath,
    encoder: &Path,
    name: &str,
) -> Result<PathBuf, OpError> {
    if !path.is_empty() {
        return Ok(path.0.clone());
    }
    let beside = encoder.parent().map(|above| above.join(name));
    match beside.filter(|folder| folder.is_dir()) {
        Some(beside) => Ok(beside),
        None if encoder.is_dir() => Ok(encoder.to_owned()),
        None => Err(OpError::new(format!(
            "{setting}: the encoder is a single file, `{}`, which has no tokeniser: name the folder of one",
            encoder.display()
        ))),
    }
}

/// Refuse a tokeniser with more ids than its encoder has tokens.
pub(super) fn one_model(setting: &str, largest: u32, vocabulary: usize) -> Result<(), OpError> {
    if (largest as usize) < vocabulary {
        return Ok(());
    }
    Err(OpError::new(format!(
        "{setting}_tokenizer: it has ids up to {largest}, but the encoder of `{setting}` knows {vocabulary} tokens: they are not \
         of one model"
    )))
}

/// What two encoders and their tokenisers are read from, by setting: the configurations that are there, then the encoders, each stated
/// with the name of its configuration, then the tokenisers.
pub(super) fn by_setting(
    encoders: [(&'static str, &'static str, &Path); 2],
    tokenizers: [(&'static str, PathBuf); 2],
) -> Vec<(&'static str, PathBuf)> {
    let configurations =
        encoders.into_iter().filter_map(|(_, name, path)| Some((name, configuration(path)?)));
    let weights = encoders.into_iter().map(|(setting, _, path)| (setting, path.to_owned()));
    configurations.chain(weights).chain(tokenizers).collect()
}
