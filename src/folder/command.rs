//! `command.json`: settings from the command line, so that resuming does not need them again.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{FolderError, held::read_if_there};

pub(super) const NAME: &str = "command.json";

/// The command line of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Command {
    /// The graph file, as it was named.
    pub graph: String,
    /// Settings in the syntax of `--set`, with absolute paths; each setting once.
    pub set: Vec<String>,
    /// Of a sweep: the lists of values, in the syntax of `--over`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub over: Vec<String>,
    /// Accepted changes since a checkpoint; they hold until the next checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted: Option<Accepted>,
}

/// Accepted changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Step of the checkpoint.
    pub step: u64,
    /// The changes, as they were shown.
    pub changes: Vec<String>,
}

impl Command {
    pub(super) fn read(path: &Path) -> Result<Self, FolderError> {
        let bytes = read_if_there(path).map_err(|e| FolderError::io("read", path, e))?;
        let Some(bytes) = bytes else { return Ok(Self::default()) };
        serde_json::from_slice(&bytes).map_err(|e| {
            FolderError::new(format!(
                "cannot parse `{}`: {e}; if you remove the file, --resume takes settings from the graph file and the command \
                 line only",
                path.display()
            ))
        })
    }

    pub(super) fn text(&self) -> Result<String, FolderError> {
        let text = serde_json::to_string_pretty(self);
        text.map(|text| text + "\n")
            .map_err(|e| FolderError::new(format!("internal error, please report it: {e}")))
    }

    /// The settings overridden by `sets`; for each setting the last value counts.
    pub fn over(&self, sets: &[String]) -> Vec<String> {
        let name = |set: &str| set.split_once('=').map_or(set, |(name, _)| name).trim().to_owned();
        let mut all: Vec<String> = Vec::new();
        for set in self.set.iter().chain(sets) {
            all.retain(|other| name(other) != name(set));
            all.push(set.clone());
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_again_takes_the_place_of_what_was_said_before() {
        let sets = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let command = Command { set: sets(&["run.steps=8", "update.lr=1e-3"]), ..Command::default() };
        assert_eq!(command.over(&sets(&["run.steps=12"])), ["update.lr=1e-3", "run.steps=12"]);
        assert_eq!(command.over(&[]), command.set);
    }

    #[test]
    fn it_is_read_as_it_was_written_and_no_file_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        assert_eq!(Command::read(&path).unwrap(), Command::default());
        let accepted = Accepted { step: 3, changes: vec!["update.lr: 1 -> 2".into()] };
        let command = Command {
            graph: "g.ron".into(),
            set: vec!["a.b=1".into()],
            accepted: Some(accepted),
            over: Vec::new(),
        };
        std::fs::write(&path, command.text().unwrap()).unwrap();
        assert_eq!(Command::read(&path).unwrap(), command);
        std::fs::write(&path, "{").unwrap();
        assert!(Command::read(&path).unwrap_err().to_string().contains("command.json"));
    }
}
