//! Text encoders: from prompts to conditions.

use std::path::Path;

use crate::{
    error::{Error, Result},
    files::no_model,
};

pub mod clip;
mod config;
pub mod hash;
mod measure;
pub mod t5;
pub mod tokenizer;
mod weights;

pub use clip::{Clip, ClipEncoder};
pub use hash::Hash;
pub use t5::{T5, T5Encoder};
pub use tokenizer::{ClipTokenizer, T5Tokenizer};

/// Refuse a path that leads nowhere, or to a folder of something else, before its parts are missed.
fn must_be_model(path: &Path, what: &str, below: &str) -> Result<()> {
    if path.is_file() || path.join("config.json").exists() {
        return Ok(());
    }
    let expected = format!(
        "{what}: its folder with config.json and weights, the folder above its `{below}`, or one \
                            safetensors file"
    );
    Err(no_model(path, &expected))
}

/// Tokens of each prompt.
fn length_of(prompts: usize, ids: &[u32]) -> Result<usize> {
    if prompts == 0 || ids.is_empty() || !ids.len().is_multiple_of(prompts) {
        return Err(Error::Setting(format!(
            "{} token ids of {prompts} prompts: expected equally many for each, and at least one",
            ids.len()
        )));
    }
    Ok(ids.len() / prompts)
}

fn check_finite(values: &[f32], who: &str) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(at) => Err(Error::NotFinite(format!(
            "the {who} gave {} at element {at}: its weights are damaged",
            values[at]
        ))),
    }
}
