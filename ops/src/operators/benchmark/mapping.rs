//! A mapping from cases to pictures, for folders that are laid out otherwise.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::operator::OpError;

/// A line of the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: String,
    picture: PathBuf,
}

/// Pictures by the id of their case.
#[derive(Debug)]
pub(super) struct Mapping(BTreeMap<String, PathBuf>);

impl Mapping {
    /// Read a file with a JSON object a line, `id` and `picture`; paths are relative to the file.
    ///
    /// # Errors
    /// If it cannot be read, a line is no such object, or an id occurs twice.
    pub fn read(path: &Path) -> Result<Self, OpError> {
        let fault = |message: String| OpError::new(format!("mapping: {}{message}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|e| fault(format!(": {e}")))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut all = BTreeMap::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let at = number + 1;
            let Line { id, picture } =
                serde_json::from_str(line).map_err(|e| fault(format!(", line {at}: {e}")))?;
            if all.insert(id.clone(), folder.join(picture)).is_some() {
                return Err(fault(format!(", line {at}: {id:?} occurs twice")));
            }
        }
        Ok(Self(all))
    }

    pub fn picture(&self, id: &str) -> Option<&PathBuf> {
        self.0.get(id)
    }

    /// Pictures of ids that are not among these.
    pub fn others(&self, ids: &HashSet<&str>) -> Vec<PathBuf> {
        self.0.iter().filter(|(id, _)| !ids.contains(id.as_str())).map(|(_, path)| path.clone()).collect()
    }
}
