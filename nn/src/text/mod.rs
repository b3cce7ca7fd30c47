//! Text encoders: from prompts to conditions.

use crate::error::{Error, Result};

pub mod clip;
pub mod hash;
pub mod t5;
pub mod tokenizer;

pub use clip::{Clip, ClipEncoder, ClipModel};
pub use hash::Hash;
pub use t5::{T5, T5Encoder};
pub use tokenizer::{ClipTokenizer, T5Tokenizer};

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
