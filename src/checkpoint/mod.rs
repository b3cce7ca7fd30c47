//! Checkpoints: all that a run needs to go on as if it had never stopped.
//!
//! ```text
//!  checkpoints/step-N/cells.safetensors   the tensors of all cells
//!  checkpoints/step-N/state.bin           the rest, with a checksum over both files
//!
//!  state   the bytes of state.bin      write   a checkpoint onto the disk, and old ones off it
//!  finite  what may not be written     read    the newest that is whole
//! ```
//!
//! A checkpoint is written into a folder beside, flushed to the disk and renamed: it is there whole or not at all. What
//! was torn or altered later is noticed when it is read, and the one before is used. What cannot be read because the
//! system says so is an error: a disk that fails, or a folder of somebody else, is no reason to go back in time.
//!
//! A run that begins writes the checkpoint of step 0, which has no cells. It says that a run was begun here and that
//! nothing is lost by beginning it again; it goes when there is another.

mod finite;
mod read;
mod state;
#[cfg(test)]
mod tests;
mod write;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use prefgraph_ops::NamedState;

use crate::sources::Sources;

pub use finite::{LARGEST_FACTOR, check_finite, check_range};
pub use write::{prune, set_aside};

const CELLS: &str = "cells.safetensors";
const STATE: &str = "state.bin";

/// Why a checkpoint was not written or read.
#[derive(Debug, thiserror::Error)]
#[error("checkpoint `{}`: {message}", .path.display())]
pub struct CheckpointError {
    path: PathBuf,
    message: String,
    damaged: bool,
}

impl CheckpointError {
    /// Something that the system would not do.
    fn new(path: &Path, message: impl std::fmt::Display) -> Self {
        Self { path: path.to_owned(), message: message.to_string(), damaged: false }
    }

    /// A checkpoint that could be read and is not whole.
    fn damaged(path: &Path, message: impl std::fmt::Display) -> Self {
        Self { damaged: true, ..Self::new(path, message) }
    }

    /// Is the checkpoint itself at fault: torn, altered, or of another version? Otherwise it could not be read at all.
    pub fn is_damage(&self) -> bool {
        self.damaged
    }
}

/// The state of a run between two steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Number of the next step.
    pub step: u64,
    /// Seed of the run.
    pub seed: u64,
    /// The resolved graph, as text.
    pub graph: String,
    /// What the graph read from outside; `None` in a checkpoint of a version that did not record it.
    pub sources: Option<Sources>,
    /// Carried values, by the path of their cell.
    pub cells: BTreeMap<String, NamedState>,
}

fn key(cell: &str, tensor: &str) -> String {
    format!("{cell}/{tensor}")
}

fn place(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("step-{step}"))
}

/// Numbers of all checkpoints in `folder`; none if there is no such folder.
fn steps(folder: &Path) -> io::Result<Vec<u64>> {
    // A link that leads nowhere is not the same as nothing.
    if fs::symlink_metadata(folder).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
        return Ok(Vec::new());
    }
    let mut steps = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        steps.extend(name.to_str().and_then(|n| n.strip_prefix("step-")?.parse::<u64>().ok()));
    }
    steps.sort_unstable_by(|a, b| b.cmp(a));
    Ok(steps)
}
