//! Checkpoints: everything a run needs to continue as if it had never stopped.
//!
//! ```text
//!  checkpoints/step-N/cells.safetensors   the tensors of all cells
//!  checkpoints/step-N/state.bin           the rest, with a checksum over both files
//!
//!  state   the bytes of state.bin      write   a checkpoint onto the disk, and old ones off it
//!  finite  what must not be written    read    the newest intact one
//! ```
//!
//! A checkpoint is written to a temporary folder, flushed to the disk and renamed: it exists in full or not at all. Damage
//! after that is noticed by its checksum, and the checkpoint before is used. An error of the system is an error: a failing
//! disk or missing permissions are no reason to fall back to an older state.
//!
//! A run starts by writing the checkpoint of step 0, which has no cells. It marks the folder as a run's, and means that
//! starting over loses nothing; it is removed once there is another.

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

use prefgraph_ops::{NamedState, NamedTensor};

use crate::sources::Sources;

pub use finite::{check_finite, check_range};
pub use write::{prune, prune_between, set_aside};

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
    /// An error of the system.
    fn new(path: &Path, message: impl std::fmt::Display) -> Self {
        Self { path: path.to_owned(), message: message.to_string(), damaged: false }
    }

    /// A checkpoint that is readable, but damaged.
    fn damaged(path: &Path, message: impl std::fmt::Display) -> Self {
        Self { damaged: true, ..Self::new(path, message) }
    }

    /// Is the checkpoint damaged: torn, altered, or of an unknown version? Otherwise the system failed to read it.
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
    /// The data and weights that the graph read; `None` in checkpoints of format 1, which did not record them.
    pub sources: Option<Sources>,
    /// Carried values, by the path of their cell.
    pub cells: BTreeMap<String, NamedState>,
    /// What the run itself remembers of the effects of nodes, by node.
    pub kept: BTreeMap<String, Kept>,
}

/// What a run remembers of the effects of a node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Kept {
    /// In a fixed order, with unique names.
    pub tensors: Vec<NamedTensor>,
    /// All else, in a notation of its own.
    pub text: String,
}

fn key(cell: &str, tensor: &str) -> String {
    format!("{cell}/{tensor}")
}

/// The key of a tensor that the run itself remembers; no cell is called like this.
fn kept_key(node: &str, tensor: &str) -> String {
    format!("kept:{node}/{tensor}")
}

fn place(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("step-{step}"))
}

/// Numbers of all checkpoints in `folder`, newest first; none if the folder does not exist.
fn steps(folder: &Path) -> io::Result<Vec<u64>> {
    // A dangling link is not the same as nothing.
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
