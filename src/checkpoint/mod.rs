//! Checkpoints: all that a run needs to go on as if it had never stopped.
//!
//! ```text
//!  checkpoints/step-N/cells.safetensors   the tensors of all cells
//!  checkpoints/step-N/state.bin           the rest, with a checksum over both files
//! ```
//!
//! A checkpoint is written into a folder beside, flushed to the disk and renamed: it is there whole or not at all. What
//! was torn or altered later is noticed when it is read, and the one before is used.

mod state;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use prefgraph_nn::{
    cpu::map::FileMap,
    files::{NamedTensor as FileTensor, TensorFiles, write_safetensors},
};
use prefgraph_ops::{NamedState, NamedTensor};

use state::{CellState, State};

const CELLS: &str = "cells.safetensors";
const STATE: &str = "state.bin";

/// Why a checkpoint was not written or read.
#[derive(Debug, thiserror::Error)]
#[error("checkpoint `{}`: {message}", .path.display())]
pub struct CheckpointError {
    path: PathBuf,
    message: String,
}

impl CheckpointError {
    fn new(path: &Path, message: impl std::fmt::Display) -> Self {
        Self { path: path.to_owned(), message: message.to_string() }
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
    /// Carried values, by the path of their cell.
    pub cells: BTreeMap<String, NamedState>,
}

impl Checkpoint {
    /// Write into `folder`, as `step-N`, and then remove all but the `keep` newest up to this one.
    ///
    /// # Errors
    /// If anything cannot be written; the checkpoints that were there are then as they were.
    pub fn write(&self, folder: &Path, keep: usize) -> Result<PathBuf, CheckpointError> {
        let place = folder.join(format!("step-{}", self.step));
        let fault =
            |what: &str, e: std::io::Error| CheckpointError::new(&place, format!("cannot {what}: {e}"));
        fs::create_dir_all(folder).map_err(|e| fault("make its folder", e))?;
        remove_unfinished(folder);
        let beside = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempdir_in(folder)
            .map_err(|e| fault("make a folder beside", e))?;
        self.write_files(beside.path())?;
        sync(beside.path()).map_err(|e| fault("flush it", e))?;
        if place.exists() {
            // An older try at the same step: a torn one, or one from before the run was taken back.
            fs::remove_dir_all(&place).map_err(|e| fault("replace it", e))?;
        }
        fs::rename(beside.path(), &place).map_err(|e| fault("rename it into place", e))?;
        readable(&place).map_err(|e| fault("make it readable", e))?;
        // Renamed: there is nothing left to clean up.
        let _ = beside.keep();
        sync(folder).map_err(|e| fault("flush its folder", e))?;
        prune(folder, self.step, keep.max(1));
        Ok(place)
    }

    fn write_files(&self, folder: &Path) -> Result<(), CheckpointError> {
        let path = folder.join(CELLS);
        let mut tensors = Vec::new();
        let mut cells = Vec::new();
        for (cell, state) in &self.cells {
            for tensor in &state.tensors {
                let key = key(cell, &tensor.name);
                tensors.push(FileTensor::borrowed(key, tensor.dims.clone(), &tensor.values));
            }
            cells.push(CellState {
                name: cell.clone(),
                tensors: state.tensors.iter().map(|t| t.name.clone()).collect(),
                counters: state.counters.clone(),
            });
        }
        write_safetensors(&path, &tensors, &[]).map_err(|e| CheckpointError::new(&path, e))?;
        // Mapped, since cells may be as large as the memory that is left.
        let bytes = FileMap::open(&path).map_err(|e| CheckpointError::new(&path, e))?;
        let state = State {
            step: self.step,
            seed: self.seed,
            graph_hash: *blake3::hash(self.graph.as_bytes()).as_bytes(),
            graph: self.graph.clone(),
            cells,
        };
        let path = folder.join(STATE);
        let text = state.encode(&bytes).map_err(|e| CheckpointError::new(&path, e))?;
        prefgraph_nn::files::write_atomically(&path, &text).map_err(|e| CheckpointError::new(&path, e))
    }

    /// Read the checkpoint in `folder`.
    ///
    /// # Errors
    /// If a file is missing, torn, altered, or of another version.
    pub fn read(folder: &Path) -> Result<Self, CheckpointError> {
        let fault = |e: &dyn std::fmt::Display| CheckpointError::new(folder, e);
        let tensors = FileMap::open(&folder.join(CELLS)).map_err(|e| fault(&format!("{CELLS}: {e}")))?;
        let text = fs::read(folder.join(STATE)).map_err(|e| fault(&format!("{STATE}: {e}")))?;
        let state = State::decode(&text, &tensors).map_err(|e| fault(&e))?;
        let files = TensorFiles::open(&folder.join(CELLS)).map_err(|e| fault(&e))?;
        let mut cells = BTreeMap::new();
        for cell in state.cells {
            let mut named = NamedState { tensors: Vec::new(), counters: cell.counters };
            for name in cell.tensors {
                let key = key(&cell.name, &name);
                let dims =
                    files.info(&key).ok_or_else(|| fault(&format!("`{key}` is missing")))?.shape.clone();
                let values = files.read(&key).map_err(|e| fault(&e))?.into();
                named.tensors.push(NamedTensor { name, dims, values });
            }
            cells.insert(cell.name, named);
        }
        Ok(Self { step: state.step, seed: state.seed, graph: state.graph, cells })
    }

    /// The newest checkpoint in `folder` that is whole, and a sentence for every newer one that is not.
    ///
    /// # Errors
    /// If there are checkpoints, but none of them is whole.
    pub fn newest(folder: &Path) -> Result<(Option<Self>, Vec<String>), CheckpointError> {
        let mut notes = Vec::new();
        let mut steps = steps(folder);
        steps.sort_unstable_by(|a, b| b.cmp(a));
        for &step in &steps {
            match Self::read(&folder.join(format!("step-{step}"))) {
                Ok(found) if found.step == step => return Ok((Some(found), notes)),
                Ok(found) => notes.push(format!(
                    "checkpoint step-{step} holds step {}: somebody renamed it; it is not used",
                    found.step
                )),
                Err(e) => notes.push(format!("{e}; it is not used")),
            }
        }
        match notes.is_empty() {
            true => Ok((None, notes)),
            false => {
                Err(CheckpointError::new(folder, format!("no checkpoint is whole: {}", notes.join("; "))))
            }
        }
    }
}

const UNFINISHED: &str = ".writing-";

fn key(cell: &str, tensor: &str) -> String {
    format!("{cell}/{tensor}")
}

/// Numbers of all checkpoints.
fn steps(folder: &Path) -> Vec<u64> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.strip_prefix("step-")?.parse().ok()).collect()
}

/// What a run that was killed while it wrote has left.
fn remove_unfinished(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Old checkpoints go; a failure to remove one costs space, not the run.
fn prune(folder: &Path, newest: u64, keep: usize) {
    // Newer ones are those that were found torn: they say nothing about how many good ones there are.
    let mut steps: Vec<u64> = steps(folder).into_iter().filter(|s| *s <= newest).collect();
    steps.sort_unstable_by(|a, b| b.cmp(a));
    for step in steps.into_iter().skip(keep) {
        let _ = fs::remove_dir_all(folder.join(format!("step-{step}")));
    }
}

/// Flush a folder's entries; not every system can open one.
fn sync(folder: &Path) -> std::io::Result<()> {
    fs::File::open(folder).map_or(Ok(()), |f| f.sync_all())
}

#[cfg(unix)]
fn readable(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn readable(_: &Path) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn sample(step: u64) -> Checkpoint {
        let tensor = |name: &str, values: Vec<f32>| NamedTensor {
            name: name.into(),
            dims: vec![values.len()],
            values: Arc::new(values),
        };
        let lora = NamedState {
            tensors: vec![tensor("b", vec![1.0, -0.0]), tensor("a", vec![f32::MIN_POSITIVE, step as f32])],
            counters: vec![("updates".into(), u64::MAX)],
        };
        let cells = BTreeMap::from([("lora".to_owned(), lora), ("empty".to_owned(), NamedState::default())]);
        Checkpoint { step, seed: 7, graph: "Graph(nodes: [])".into(), cells }
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let place = sample(3).write(dir.path(), 3).unwrap();
        assert_eq!(Checkpoint::read(&place).unwrap(), sample(3));
        assert_eq!(Checkpoint::newest(dir.path()).unwrap(), (Some(sample(3)), vec![]));
        assert_eq!(Checkpoint::newest(&dir.path().join("none")).unwrap(), (None, vec![]));
    }

    #[test]
    fn the_last_few_are_kept_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(".writing-killed/x")).unwrap();
        for step in [10, 20, 30, 30, 40] {
            sample(step).write(dir.path(), 2).unwrap();
        }
        let mut names: Vec<String> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        assert_eq!(names, ["step-30", "step-40"]);
    }

    #[test]
    fn a_change_of_any_byte_is_noticed_and_the_one_before_is_used() {
        let dir = tempfile::tempdir().unwrap();
        sample(1).write(dir.path(), 3).unwrap();
        let place = sample(2).write(dir.path(), 3).unwrap();
        for file in [STATE, CELLS] {
            let path = place.join(file);
            let whole = fs::read(&path).unwrap();
            for at in 0..whole.len() {
                let mut bytes = whole.clone();
                bytes[at] ^= 0x10;
                fs::write(&path, bytes).unwrap();
                assert!(Checkpoint::read(&place).is_err(), "byte {at} of {file}");
            }
            for len in [0, 1, whole.len() / 2, whole.len() - 1] {
                fs::write(&path, &whole[..len]).unwrap();
                assert!(Checkpoint::read(&place).is_err(), "{file} cut to {len} bytes");
            }
            let (found, notes) = Checkpoint::newest(dir.path()).unwrap();
            assert_eq!(found, Some(sample(1)));
            assert!(notes.len() == 1 && notes[0].contains("step-2"), "{notes:?}");
            fs::write(&path, whole).unwrap();
        }
        assert_eq!(Checkpoint::newest(dir.path()).unwrap().0, Some(sample(2)));
        fs::remove_file(place.join(STATE)).unwrap();
        fs::remove_file(dir.path().join("step-1").join(CELLS)).unwrap();
        let error = Checkpoint::newest(dir.path()).unwrap_err().to_string();
        assert!(error.contains("step-1") && error.contains("step-2"), "{error}");
    }

    #[test]
    fn files_of_two_checkpoints_are_no_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (sample(1).write(dir.path(), 3).unwrap(), sample(2).write(dir.path(), 3).unwrap());
        fs::copy(a.join(CELLS), b.join(CELLS)).unwrap();
        assert!(Checkpoint::read(&b).unwrap_err().to_string().contains("checksum"));
    }

    #[test]
    fn a_torn_newer_checkpoint_does_not_push_good_ones_out() {
        let dir = tempfile::tempdir().unwrap();
        sample(10).write(dir.path(), 1).unwrap();
        fs::create_dir(dir.path().join("step-90")).unwrap();
        sample(20).write(dir.path(), 1).unwrap();
        assert_eq!(Checkpoint::newest(dir.path()).unwrap().0, Some(sample(20)));
    }
}
