//! One line of a file of prompts: what is asked for, without pictures that answer it.

use std::path::{Path, PathBuf};

use super::row::{BadRow, Line, Reference, name_of, references_at};

/// A prompt with its references. A line of a `pairs.jsonl` is one, too; its winner and loser are not looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub line: usize,
    pub id: String,
    pub prompt: String,
    pub references: Vec<Reference>,
}

impl Request {
    /// The request in a line.
    ///
    /// # Errors
    /// If the line is none.
    pub(super) fn parse(line: usize, text: &str, folder: &Path) -> Result<Self, BadRow> {
        let mut parsed = Line::read(line, text)?;
        let id = name_of(line, &mut parsed)?;
        let references = references_at(parsed.refs.unwrap_or_default(), folder);
        if references.iter().any(|r| r.image == folder) {
            return Err(BadRow { line, id, reason: "the path of a file is empty".into() });
        }
        Ok(Self { line, id, prompt: parsed.prompt, references })
    }

    /// One prompt that no file holds.
    pub(super) fn stated(prompt: &str, references: impl IntoIterator<Item = PathBuf>) -> Self {
        let reference = |image| Reference { image, subject: None, mask: None };
        Self {
            line: 1,
            id: "prompt".into(),
            prompt: prompt.into(),
            references: references.into_iter().map(reference).collect(),
        }
    }
}
