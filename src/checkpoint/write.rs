//! Writing a checkpoint, and removing old ones.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use prefgraph_nn::files::{
    NamedTensor as FileTensor, UNFINISHED, is_unfinished, open_regular, write_atomically, write_safetensors,
};

use super::{
    CELLS, Checkpoint, CheckpointError, STATE, kept_key, key, place,
    state::{CellState, KeptState, State},
    steps,
};

/// Suffix of a checkpoint that must not be resumed from.
const ASIDE: &str = ".diverged";

impl Checkpoint {
    /// Write to `folder`, as `step-N`. Only one process may write there at a time.
    ///
    /// # Errors
    /// If anything cannot be written; the checkpoints of other steps are then as they were.
    pub fn write(&self, folder: &Path) -> Result<PathBuf, CheckpointError> {
        let place = place(folder, self.step);
        let fault =
            |what: &str, e: std::io::Error| CheckpointError::new(&place, format!("cannot {what}: {e}"));
        fs::create_dir_all(folder).map_err(|e| fault("make its folder", e))?;
        remove_unfinished(folder);
        let beside = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempdir_in(folder)
            .map_err(|e| fault("make a folder beside", e))?;
        self.write_files(beside.path()).map_err(|mut e| {
            // Where it was to be is what people know, and the folder beside is gone by now.
            e.message = e.message.replace(&format!("{}/", beside.path().display()), "");
            CheckpointError { path: place.clone(), ..e }
        })?;
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
        let mut kept = Vec::new();
        for (node, own) in &self.kept {
            for tensor in &own.tensors {
                let key = kept_key(node, &tensor.name);
                tensors.push(FileTensor::borrowed(key, tensor.dims.clone(), &tensor.values));
            }
            kept.push(KeptState {
                node: node.clone(),
                tensors: own.tensors.iter().map(|t| t.name.clone()).collect(),
                text: own.text.clone(),
            });
        }
        write_safetensors(&path, &tensors, &[]).map_err(|e| CheckpointError::new(&path, e))?;
        let state = State {
            step: self.step,
            seed: self.seed,
            graph: self.graph.clone(),
            sources: self.sources.clone(),
            cells,
            kept,
        };
        // The checksum is computed from the file: cells may be as large as the free memory.
        let mut written = open_regular(&path).map_err(|e| CheckpointError::new(&path, e))?;
        let path = folder.join(STATE);
        let text = state.encode(&mut written).map_err(|e| CheckpointError::new(&path, e))?;
        write_atomically(&path, &text).map_err(|e| CheckpointError::new(&path, e))
    }
}

/// Remove all checkpoints up to `newest` but the last `keep`; also those set aside, and step 0 once there is another. A
/// failure to remove one costs space, not the run.
pub fn prune(folder: &Path, newest: u64, keep: usize) {
    // Newer ones are those that were found torn: they say nothing about how many good ones there are.
    let older = steps(folder).unwrap_or_default().into_iter().filter(|step| *step <= newest);
    for step in older.enumerate().filter(|(n, step)| *n >= keep.max(1) || (*step == 0 && newest > 0)) {
        let _ = fs::remove_dir_all(place(folder, step.1));
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let aside =
            name.to_str().and_then(|n| n.strip_prefix("step-")?.strip_suffix(ASIDE)?.parse::<u64>().ok());
        if aside.is_some_and(|step| step <= newest) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Remove the checkpoints of steps beyond `after` up to `newest`: a run goes back to that one, and the next resume must not go on from what
/// it has left. What lies beyond was not read, and stays.
///
/// # Errors
/// If one cannot be removed.
pub fn prune_between(folder: &Path, after: u64, newest: u64) -> Result<(), CheckpointError> {
    let all = steps(folder).map_err(|e| CheckpointError::new(folder, e))?;
    for later in all.into_iter().filter(|step| (after + 1..=newest).contains(step)) {
        let place = place(folder, later);
        fs::remove_dir_all(&place).map_err(|e| {
            CheckpointError::new(
                &place,
                format!("cannot be removed, and the run goes on from step {after}: {e}"),
            )
        })?;
    }
    Ok(())
}

/// Rename a checkpoint that must not be resumed from; returns its new path.
///
/// # Errors
/// If that fails.
pub fn set_aside(folder: &Path, step: u64) -> Result<PathBuf, CheckpointError> {
    let place = place(folder, step);
    let aside = folder.join(format!("step-{step}{ASIDE}"));
    let fault = |e: std::io::Error| CheckpointError::new(&place, format!("cannot set it aside: {e}"));
    if aside.exists() {
        fs::remove_dir_all(&aside).map_err(fault)?;
    }
    fs::rename(&place, &aside).map_err(fault)?;
    sync(folder).map_err(fault)?;
    Ok(aside)
}

/// Remove what killed runs left unfinished.
fn remove_unfinished(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if is_unfinished(&entry.path()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Flush a folder's entries; not every system can open one.
fn sync(folder: &Path) -> std::io::Result<()> {
    File::open(folder).map_or(Ok(()), |f| f.sync_all())
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
