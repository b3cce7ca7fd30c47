//! From prompts to token ids, with the published vocabularies.
//!
//! Splitting is done by the crate `tokenizers`, which these vocabularies were made with. Beginning, end, cutting and padding
//! are done here: they are what an encoder was trained with, and files state them in several ways or not at all.

use std::path::Path;

use ::tokenizers::Tokenizer;

use crate::error::{Error, Result};

mod clip;
mod t5;

pub use clip::ClipTokenizer;
pub use t5::T5Tokenizer;

/// Read a `tokenizer.json`, without its own cutting and padding.
fn read(path: &Path) -> Result<Tokenizer> {
    let bytes = std::fs::read(path).map_err(|e| Error::file(path, e))?;
    from_bytes(path, &bytes)
}

fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Tokenizer> {
    let mut tokenizer =
        Tokenizer::from_bytes(bytes).map_err(|e| Error::file(path, format!("is not a tokeniser: {e}")))?;
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|e| Error::file(path, e))?;
    Ok(tokenizer)
}

/// The id of a token that must be there.
fn id_of(tokenizer: &Tokenizer, path: &Path, token: &str) -> Result<u32> {
    tokenizer.token_to_id(token).ok_or_else(|| {
        Error::file(path, format!("has no token `{token}`: is it the tokeniser of another model?"))
    })
}

fn largest_id(tokenizer: &Tokenizer) -> u32 {
    tokenizer.get_vocab(true).into_values().max().unwrap_or(0)
}

/// The ids of a text, without beginning and end.
fn split(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let encoding =
        tokenizer.encode(text, false).map_err(|e| Error::Setting(format!("the prompt {text:?}: {e}")))?;
    Ok(encoding.get_ids().to_vec())
}
