//! Checks of the paths on the command line, before anything is read or written.

use std::{fs, path::Path};

use prefgraph_nn::{files::TensorFiles, lora::AdapterFile};

use super::opened::Opened;
use crate::cli::{
    Failure,
    output::{identity, is_taken},
};

/// The tensors of a checkpoint, and what else it consists of.
pub(super) const CHECKPOINT: [&str; 2] = ["cells.safetensors", "state.bin"];

/// Is it a checkpoint rather than an adapter?
///
/// # Errors
/// If it is, with the command that is meant.
pub(super) fn no_checkpoint(path: &Path) -> Result<(), Failure> {
    let file = is_of_checkpoint(path);
    let folder = CHECKPOINT.iter().all(|name| path.join(name).is_file());
    if file || folder {
        Err(checkpoint(path, if file { path.parent().unwrap_or(path) } else { path }))
    } else {
        Ok(())
    }
}

/// Are these the tensors of a checkpoint under another name? There, the cell stands before the name of a linear.
///
/// # Errors
/// If they are, with the command that is meant.
pub(super) fn no_cells(file: &AdapterFile) -> Result<(), Failure> {
    match file.modules().iter().any(|m| m.linear.name.contains('/')) {
        true => Err(checkpoint(&file.path(), Path::new("CHECKPOINT"))),
        false => Ok(()),
    }
}

fn checkpoint(path: &Path, folder: &Path) -> Failure {
    Failure::new(format!(
        "`{}` holds the cells of a checkpoint, the moments of the optimiser among them, and is no adapter file: `graph-run \
         adapter export {} OUT` writes its adapter",
        path.display(),
        folder.display()
    ))
}

/// Can an adapter be written at `output` without taking away what is read, files or folders, or what is no adapter?
///
/// # Errors
/// If `output` is a folder, one of the files that are read, also by another name or a link, or something that no adapter is: an old adapter
/// is replaced.
pub(super) fn can_be_written<'a>(
    output: &Path,
    read: impl IntoIterator<Item = &'a Path>,
) -> Result<(), Failure> {
    let refused = |what: String| Failure::new(format!("`{}` {what}", output.display()));
    if !is_taken(output).map_err(refused)? {
        return Ok(());
    }
    let is_output = |path: &Path| identity(path) == identity(output) || is_within(path, output);
    if let Some(read) = read.into_iter().find(|path| is_output(path)) {
        return Err(refused(format!("is read, as `{}`: name another file to write", read.display())));
    }
    if is_of_checkpoint(output) || !is_adapter(output) {
        return Err(refused("is there and is no adapter: name another file, or remove it first".into()));
    }
    Ok(())
}

/// Is it called like a file of a checkpoint?
fn is_of_checkpoint(path: &Path) -> bool {
    path.file_name().and_then(|n| n.to_str()).is_some_and(|name| CHECKPOINT.contains(&name))
}

/// Is it an adapter of any tool, or a file that this program has written?
fn is_adapter(path: &Path) -> bool {
    let ours = |files: TensorFiles| files.metadata().keys().any(|key| key.starts_with("prefgraph."));
    Opened::open(path, true).is_ok() || TensorFiles::open(path).is_ok_and(ours)
}

/// Is the file in this folder?
fn is_within(folder: &Path, file: &Path) -> bool {
    let whole = |path: &Path| fs::canonicalize(path).ok();
    folder.is_dir() && whole(folder).zip(whole(file)).is_some_and(|(folder, file)| file.starts_with(folder))
}
