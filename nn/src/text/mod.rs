//! From prompts to conditions.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::{
    error::{Error, Result},
    files::TensorFiles,
};

mod attention;
pub mod clip;
pub mod hash;
mod measure;
mod source;
pub mod t5;
pub mod tokenizer;

pub use clip::Clip;
pub use hash::Hash;
pub use t5::T5;
pub use tokenizer::{ClipTokenizer, T5Tokenizer};

/// What a pass of a text encoder takes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TextCost {
    /// Floating-point operations.
    pub flops: f64,
    /// Most bytes of values alive at once.
    pub scratch_bytes: usize,
}

/// Parse a configuration whose `model_type` must be `kind`.
fn read_config<C: DeserializeOwned>(path: &Path, kind: &str, what: &str) -> Result<C> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::file(path, e))?;
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| Error::file(path, format!("is not JSON: {e}")))?;
    match value.get("model_type").and_then(|v| v.as_str()) {
        Some(found) if found == kind => {}
        found => {
            let found = found.unwrap_or("missing");
            return Err(Error::file(path, format!("model_type is {found}: expected {kind}")));
        }
    }
    serde_json::from_value(value)
        .map_err(|e| Error::file(path, format!("is not the configuration of {what}: {e}")))
}

/// The weights of a transformers folder.
fn open_weights(folder: &Path) -> Result<TensorFiles> {
    TensorFiles::open_in(folder, "model")
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
