//! What encoders of prompts and of pictures share: how their files are found, measured and read, and the block that most of them
//! are made of.

use std::path::Path;

use crate::{
    error::{Error, Result},
    files::no_model,
};

pub(crate) mod block;
pub(crate) mod config;
pub(crate) mod measure;
pub(crate) mod weights;

/// Refuse a path that leads nowhere, or to a folder of something else, before its parts are missed.
pub(crate) fn must_be_model(path: &Path, what: &str, below: &str) -> Result<()> {
    if path.is_file() || path.join("config.json").exists() {
        return Ok(());
    }
    let expected = format!(
        "{what}: its folder with config.json and weights, the folder above its `{below}`, or one \
                            safetensors file"
    );
    Err(no_model(path, &expected))
}

pub(crate) fn check_finite(values: &[f32], who: &str) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(at) => Err(Error::NotFinite(format!(
            "the {who} gave {} at element {at}: its weights are damaged",
            values[at]
        ))),
    }
}
