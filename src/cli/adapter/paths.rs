//! Checks of the paths on the command line, before anything is read or written.

use std::{fs, path::Path};

use prefgraph_nn::lora::AdapterFile;

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

/// Can a file be written at `output` without taking away what is read from `input`?
///
/// # Errors
/// If both are one file, also by another name or a link; if `output` is a folder.
pub(super) fn can_be_written(output: &Path, input: &Path) -> Result<(), Failure> {
    if output.is_dir() {
        return Err(Failure::new(format!(
            "`{}` is a folder: name the file that is to be written",
            output.display()
        )));
    }
    if is_same_file(input, output) {
        return Err(Failure::new(format!(
            "`{}` is the file that is read, `{}`: name another file to write",
            output.display(),
            input.display()
        )));
    }
    Ok(())
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
