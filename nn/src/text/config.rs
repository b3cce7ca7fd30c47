//! Which sizes a text encoder has, and from which file they come.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::{
    error::{Error, Result},
    files::{TensorFiles, read_model_config},
};

/// The configuration of a kind of text encoder, `config.json` of transformers.
pub(super) trait EncoderConfig: DeserializeOwned {
    /// Its `model_type`.
    const KIND: &'static str;
    /// The model in messages, with an article.
    const WHAT: &'static str;

    /// What is wrong with its values, if anything is.
    fn check(&self) -> Result<(), String>;
}

/// Read a configuration of transformers, which always states the kind of its model.
///
/// # Errors
/// If it cannot be read, is of another model, or states sizes that cannot be run.
pub(super) fn read_config<C: EncoderConfig>(path: &Path) -> Result<C> {
    #[derive(serde::Deserialize)]
    struct Stated {
        #[serde(rename = "model_type")]
        _kind: String,
    }
    read_model_config::<Stated>(path, C::KIND, C::WHAT)?;
    let config: C = read_model_config(path, C::KIND, C::WHAT)?;
    config.check().map_err(|message| Error::file(path, message))?;
    Ok(config)
}

/// The weights of a folder or of one file, and the configuration that a folder states. That is read first, so that a folder of
/// another kind is known by it.
pub(super) fn open_stated<C: EncoderConfig>(path: &Path) -> Result<(Option<C>, TensorFiles)> {
    if !path.is_dir() {
        return Ok((None, TensorFiles::open(path)?));
    }
    let stated = read_config(&path.join("config.json"))?;
    Ok((Some(stated), TensorFiles::open_in(path, "model")?))
}

/// The configuration of a model, and the file that it comes from: the one that its folder states, or that of its kind beside a
/// single file, or what the tensors show.
pub(super) fn configuration<C: EncoderConfig>(
    path: &Path,
    stated: Option<C>,
    measured: impl FnOnce() -> Result<C>,
) -> Result<(C, PathBuf)> {
    Ok(match stated {
        Some(config) => (config, path.join("config.json")),
        None => match config_beside(path)? {
            Some(config) => (config, path.with_file_name("config.json")),
            None => (measured()?, path.to_owned()),
        },
    })
}

/// The configuration beside a file, if there is one of this kind of model.
///
/// # Errors
/// If it cannot be read, or is none for all that it says.
fn config_beside<C: EncoderConfig>(file: &Path) -> Result<Option<C>> {
    let path = file.with_file_name("config.json");
    let Ok(text) = std::fs::read_to_string(&path) else { return Ok(None) };
    let value: Option<serde_json::Value> = serde_json::from_str(&text).ok();
    // A folder of single files has files of several models, and a configuration of at most one of them.
    let of_kind = value.and_then(|v| Some(v.get("model_type")?.as_str()? == C::KIND)).unwrap_or(false);
    of_kind.then(|| read_config(&path)).transpose()
}
