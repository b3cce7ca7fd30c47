//! The tokeniser of CLIP: lower-cased byte pairs (Sennrich et al. 2016) over bytes, words end with `</w>`.

use std::{collections::BTreeMap, path::Path};

use ::tokenizers::Tokenizer;
use serde_json::json;

use super::{from_bytes, id_of, largest_id, read, split};
use crate::{
    error::{Error, Result},
    text::clip::ClipModel,
};

const BEGIN: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
/// What a word is: an English contraction's end, letters, one digit, or other signs.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// What OpenCLIP pads with.
const ZERO: u32 = 0;

/// Prompts as ids of one length: beginning, text, end, and padding up to the length, which tokens of the text do not see, but the
/// network does that takes all tokens as its prompt.
#[derive(Debug)]
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    begin: u32,
    end: u32,
    padding: u32,
    length: usize,
}

impl ClipTokenizer {
    /// Read `tokenizer.json` of a folder, or `vocab.json` and `merges.txt` where there is none, for prompts of `length`
    /// ids (77 for the published encoders). The vocabulary of all models is the same: CLIP-L was trained with ends as padding,
    /// OpenCLIP with zeros.
    ///
    /// # Errors
    /// If files are missing or malformed, or `length` leaves no room between beginning and end.
    pub fn open(folder: &Path, length: usize, model: ClipModel) -> Result<Self> {
        if length < 2 {
            return Err(Error::Setting(format!("prompts of {length} token ids: expected at least 2")));
        }
        let (whole, parts) =
            (folder.join("tokenizer.json"), ["vocab.json", "merges.txt"].map(|n| folder.join(n)));
        let (path, tokenizer) = if whole.is_file() {
            let tokenizer = read(&whole)?;
            (whole, tokenizer)
        } else if parts.iter().all(|p| p.is_file()) {
            let tokenizer = from_parts(&parts[0], &parts[1])?;
            (folder.to_owned(), tokenizer)
        } else {
            return Err(Error::file(
                folder,
                "has no tokeniser: expected tokenizer.json, or vocab.json and merges.txt",
            ));
        };
        let (begin, end) = (id_of(&tokenizer, &path, BEGIN)?, id_of(&tokenizer, &path, END)?);
        let padding = match model {
            ClipModel::L | ClipModel::Pair => end,
            ClipModel::BigG => ZERO,
        };
        Ok(Self { tokenizer, begin, end, padding, length })
    }

    /// Number of ids of a prompt.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The largest id that a prompt can have.
    pub fn largest_id(&self) -> u32 {
        largest_id(&self.tokenizer)
    }

    /// The ids of a prompt; what does not fit between beginning and end is cut off.
    ///
    /// # Errors
    /// If the text cannot be split.
    pub fn encode(&self, prompt: &str) -> Result<Vec<u32>> {
        let mut ids = vec![self.begin];
        ids.extend(split(&self.tokenizer, prompt)?.into_iter().take(self.length - 2));
        ids.push(self.end);
        ids.resize(self.length, self.padding);
        Ok(ids)
    }
}

/// What a `tokenizer.json` of these two files would say.
fn from_parts(vocabulary: &Path, merges: &Path) -> Result<Tokenizer> {
    let text = std::fs::read_to_string(vocabulary).map_err(|e| Error::file(vocabulary, e))?;
    let vocab: BTreeMap<String, u32> = serde_json::from_str(&text)
        .map_err(|e| Error::file(vocabulary, format!("is not a vocabulary, names and their ids: {e}")))?;
    let special = |token: &str| -> Result<serde_json::Value> {
        let id =
            vocab.get(token).ok_or_else(|| Error::file(vocabulary, format!("has no token `{token}`")))?;
        Ok(json!({
            "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }))
    };
    let added = [special(BEGIN)?, special(END)?];
    let text = std::fs::read_to_string(merges).map_err(|e| Error::file(merges, e))?;
    let mut pairs = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.is_empty() || line.starts_with("#version") {
            continue;
        }
        match line.split_once(' ') {
            Some((first, second)) if !second.contains(' ') => pairs.push([first, second]),
            _ => {
                return Err(Error::file(
                    merges,
                    format!("line {}: expected two tokens, got {line:?}", number + 1),
                ));
            }
        }
    }
    let whole = json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Removed", "invert": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": END, "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": false, "vocab": vocab, "merges": pairs,
        },
    });
    from_bytes(merges, whole.to_string().as_bytes())
}
