//! Checks of the paths on the command line, before anything is read or written.

use std::{fs, path::Path};

use prefgraph_nn::{files::TensorFiles, lora::AdapterFile};

use super::opened::Opened;
use crate::cli::Failure;

/// The tensors of a checkpoint, and what else it consists of.
pub(super) const CHECKPOINT: [&str; 2] = ["cells.safetensors", "state.bin"];

/// Is it a checkpoint rather than an adapter?
///
/// # Errors
/// If it is, with the command that is meant.
pub(super) fn no_checkpoint(path: &Path) -> Result<(), Failure> {
    let file = path.file_name().and_then(|n| n.to_str()).is_some_and(|name| CHECKPOINT.contains(&name));
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
pub(super) fn can_be_written(output: &Path, read: &[&Path]) -> Result<(), Failure> {
    let refused = |what: String| Err(Failure::new(format!("`{}` {what}", output.display())));
    if output.is_dir() {
        return refused("is a folder: name the file that is to be written".into());
    }
    if !output.exists() {
        return Ok(());
    }
    if let Some(read) = read.iter().find(|read| is_same_file(read, output) || is_within(read, output)) {
        return refused(format!("is read, as `{}`: name another file to write", read.display()));
    }
    let of_checkpoint =
        output.file_name().and_then(|n| n.to_str()).is_some_and(|name| CHECKPOINT.contains(&name));
    if of_checkpoint || !is_adapter(output) {
        return refused("is there and is no adapter: name another file, or remove it first".into());
    }
    Ok(())
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

fn is_same_file(a: &Path, b: &Path) -> bool {
    match (fs::canonicalize(a), fs::canonicalize(b)) {
        (Ok(a), Ok(b)) => a == b || is_linked(&a, &b),
        _ => false,
    }
}

/// Have both names one inode?
#[cfg(unix)]
fn is_linked(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let inode = |path: &Path| fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    inode(a).is_some_and(|found| inode(b) == Some(found))
}

#[cfg(not(unix))]
fn is_linked(_: &Path, _: &Path) -> bool {
    false
}
