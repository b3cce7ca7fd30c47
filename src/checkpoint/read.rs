//! Reading the newest intact checkpoint.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, ErrorKind, Read},
    path::Path,
};

use prefgraph_nn::files::{TensorFiles, open_regular};
use prefgraph_ops::{NamedState, NamedTensor};

use super::{
    CELLS, Checkpoint, CheckpointError, Kept, STATE, kept_key, key, place,
    state::{CellState, KeptState, State},
    steps,
};

/// Open a file of a checkpoint. A missing file, or something other than a file, is damage; any other failure is an error of
/// the system.
fn open(folder: &Path, name: &str) -> Result<File, CheckpointError> {
    let path = folder.join(name);
    open_regular(&path).map_err(|e| {
        // A dangling link may work again once a disk is mounted.
        let dangling = |path: &Path| fs::symlink_metadata(path).is_ok() && fs::metadata(path).is_err();
        let message = format!("{name}: {e}");
        match e.kind() {
            ErrorKind::NotFound if dangling(&path) || dangling(folder) => {
                CheckpointError::new(folder, format!("{message}: a dangling link"))
            }
            ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidInput => {
                CheckpointError::damaged(folder, message)
            }
            _ => CheckpointError::new(folder, message),
        }
    })
}

impl Checkpoint {
    /// Read the checkpoint in `folder`.
    ///
    /// # Errors
    /// If a file is missing, torn, altered, or of another version; if one cannot be read.
    pub fn read(folder: &Path) -> Result<Self, CheckpointError> {
        let fault = |e: &dyn std::fmt::Display| CheckpointError::new(folder, e);
        let mut tensors = open(folder, CELLS)?;
        let mut text = Vec::new();
        open(folder, STATE)?.read_to_end(&mut text).map_err(|e| fault(&format!("{STATE}: {e}")))?;
        let state = State::decode(&text, &mut tensors)
            .map_err(|e| fault(&format!("{CELLS}: {e}")))?
            .map_err(|e| CheckpointError::damaged(folder, e))?;
        // The checksum matched, so from here on a failure is not damage.
        let files = TensorFiles::open(&folder.join(CELLS)).map_err(|e| fault(&e))?;
        let read = |name: String, key: String| {
            let missing = || CheckpointError::damaged(folder, format!("`{key}` is missing"));
            let dims = files.info(&key).ok_or_else(missing)?.shape.clone();
            let values = files.read(&key).map_err(|e| fault(&e))?.into();
            Ok(NamedTensor { name, dims, values })
        };
        let mut cells = BTreeMap::new();
        for CellState { name: cell, tensors, counters } in state.cells {
            let tensors = tensors.into_iter().map(|name| read(name.clone(), key(&cell, &name)));
            cells.insert(cell.clone(), NamedState { tensors: tensors.collect::<Result<_, _>>()?, counters });
        }
        let mut kept = BTreeMap::new();
        for KeptState { node, tensors, text } in state.kept {
            let tensors = tensors.into_iter().map(|name| read(name.clone(), kept_key(&node, &name)));
            kept.insert(node.clone(), Kept { tensors: tensors.collect::<Result<_, _>>()?, text });
        }
        let (step, seed, graph, sources) = (state.step, state.seed, state.graph, state.sources);
        Ok(Self { step, seed, graph, sources, cells, kept })
    }

    /// The newest intact checkpoint in `folder`, and a sentence for every newer one that is damaged.
    ///
    /// # Errors
    /// If all checkpoints are damaged; if the system fails to read the folder or a checkpoint, since falling back to an older
    /// one would undo steps.
    pub fn newest(folder: &Path) -> Result<(Option<Self>, Vec<String>), CheckpointError> {
        Self::newest_up_to(folder, u64::MAX)
    }

    /// The same among those of at most so many steps.
    ///
    /// # Errors
    /// As [`newest`](Self::newest).
    pub fn newest_up_to(folder: &Path, most: u64) -> Result<(Option<Self>, Vec<String>), CheckpointError> {
        let mut notes = Vec::new();
        let steps = steps(folder).map_err(|e: io::Error| CheckpointError::new(folder, e))?;
        for &step in steps.iter().filter(|step| **step <= most) {
            match Self::read(&place(folder, step)) {
                Ok(found) if found.step == step => return Ok((Some(found), notes)),
                Ok(found) => notes.push(format!(
                    "checkpoint step-{step} holds step {}: it was renamed, and is not used",
                    found.step
                )),
                Err(e) if e.is_damage() => notes.push(format!("{e}; it is not used")),
                Err(e) => return Err(e),
            }
        }
        match notes.is_empty() {
            true => Ok((None, notes)),
            false => {
                let message = format!("every checkpoint is damaged: {}", notes.join("; "));
                Err(CheckpointError::damaged(folder, message))
            }
        }
    }
}
