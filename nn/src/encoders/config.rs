//! Which sizes an encoder has, and from which file they come.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    device::Activation,
    error::{Error, Result},
    files::{TensorFiles, config_beside, model_config, read_json},
};

/// The configuration of a kind of encoder, `config.json` of transformers.
pub(crate) trait EncoderConfig: DeserializeOwned {
    /// Its `model_type`.
    const KIND: &'static str;
    /// The model in messages, with an article.
    const WHAT: &'static str;

    /// Its part of a configuration of several models.
    fn part_of(whole: Value) -> Value {
        whole
    }

    /// What is wrong with its values, if anything is.
    fn check(&self) -> Result<(), String>;
}

/// Read a configuration of transformers, which always states the kind of its model.
///
/// # Errors
/// If it cannot be read, is of another model, or states sizes that cannot be run.
pub(crate) fn read_config<C: EncoderConfig>(path: &Path) -> Result<C> {
    let value = C::part_of(read_json(path, C::WHAT)?);
    let config: C = model_config(path, value, C::KIND, C::WHAT)?;
    config.check().map_err(|message| Error::file(path, message))?;
    Ok(config)
}

/// What transformers calls the activations that published encoders have.
const ACTIVATIONS: [(&str, Activation); 2] =
    [("quick_gelu", Activation::QuickGelu), ("gelu", Activation::GeluErf)];

/// Read `hidden_act`.
pub(crate) fn activation<'de, D: Deserializer<'de>>(from: D) -> Result<Activation, D::Error> {
    let stated = String::deserialize(from)?;
    let found = ACTIVATIONS.iter().find(|(name, _)| *name == stated);
    found.map(|(_, activation)| *activation).ok_or_else(|| {
        serde::de::Error::custom(format!("hidden_act is {stated:?}: expected quick_gelu or gelu"))
    })
}

/// What transformers calls an activation.
pub(crate) fn activation_name(activation: Activation) -> &'static str {
    ACTIVATIONS.iter().find(|(_, known)| *known == activation).map_or("another one", |(name, _)| name)
}

/// The weights of a folder or of one file, and the configuration that a folder states. That is read first, so that a folder of
/// another kind is known by it.
pub(crate) fn open_stated<C: EncoderConfig>(path: &Path) -> Result<(Option<C>, TensorFiles)> {
    if !path.is_dir() {
        return Ok((None, TensorFiles::open(path)?));
    }
    let stated = read_config(&path.join("config.json"))?;
    Ok((Some(stated), TensorFiles::open_in(path, "model")?))
}

/// The configuration of a model, and the file that it comes from: the one that its folder states, or that of its kind beside a
/// single file, or what the tensors show.
pub(crate) fn configuration<C: EncoderConfig>(
    path: &Path,
    stated: Option<C>,
    measured: impl FnOnce() -> Result<C>,
) -> Result<(C, PathBuf)> {
    Ok(match stated {
        Some(config) => (config, path.join("config.json")),
        None => match config_beside(path, |kind| kind == C::KIND)? {
            Some(beside) => (read_config(&beside)?, beside),
            None => (measured()?, path.to_owned()),
        },
    })
}
