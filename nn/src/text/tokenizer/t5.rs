//! The tokeniser of T5: the most likely pieces of a text (Kudo 2018), as `tokenizer.json` states them.

use std::path::Path;

use ::tokenizers::Tokenizer;

use super::{id_of, largest_id, read, split};
use crate::error::{Error, Result};

const END: &str = "</s>";
const PADDING: &str = "<pad>";

/// Prompts as ids of one length: text, end, and padding up to the length.
#[derive(Debug)]
pub struct T5Tokenizer {
    tokenizer: Tokenizer,
    end: u32,
    padding: u32,
    length: usize,
}

impl T5Tokenizer {
    /// Read `tokenizer.json` of a folder, for prompts of `length` ids (FLUX.1-dev was trained with 512).
    ///
    /// # Errors
    /// If the file is missing or malformed, or `length` is zero.
    pub fn open(folder: &Path, length: usize) -> Result<Self> {
        if length == 0 {
            return Err(Error::Setting("prompts of 0 token ids: expected at least 1".into()));
        }
        let path = folder.join("tokenizer.json");
        let tokenizer = read(&path)?;
        let (end, padding) = (id_of(&tokenizer, &path, END)?, id_of(&tokenizer, &path, PADDING)?);
        Ok(Self { tokenizer, end, padding, length })
    }

    /// Number of ids of a prompt.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The largest id that a prompt can have.
    pub fn largest_id(&self) -> u32 {
        largest_id(&self.tokenizer)
    }

    /// The ids of a prompt; what does not fit before the end is cut off.
    ///
    /// # Errors
    /// If the text cannot be split.
    pub fn encode(&self, prompt: &str) -> Result<Vec<u32>> {
        let mut ids = split(&self.tokenizer, prompt)?;
        ids.truncate(self.length - 1);
        ids.push(self.end);
        ids.resize(self.length, self.padding);
        Ok(ids)
    }
}
