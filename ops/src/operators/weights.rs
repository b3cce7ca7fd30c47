//! Where the weights of an encoder lie, by the path that a setting names.

use std::path::{Path, PathBuf};

use crate::settings::DataPath;

/// The folder of this name below a path, where the path is a checkpoint's; else the path.
pub(crate) fn below(path: &DataPath, name: &str) -> PathBuf {
    let inside = path.as_path().join(name);
    if !path.as_path().join("config.json").exists() && inside.is_dir() { inside } else { path.0.clone() }
}

/// Is the path the folder of one part of a checkpoint, whose part of this name lies beside it? Then what to name instead, for errors:
/// a setting that others refer to, such as the weights of a network, is right for the one that states it.
pub(crate) fn beside(path: &DataPath, name: &str) -> Option<String> {
    let above = path.as_path().parent()?;
    let part = path.as_path().file_name()?.to_string_lossy();
    let is_part = part != name && path.as_path().join("config.json").is_file() && above.join(name).is_dir();
    is_part.then(|| {
        format!(
            "`{}` is the folder of `{part}` alone, and what is needed here is in `{name}` beside it: give the folder above, `{}`, \
             which has both",
            path.as_path().display(),
            above.display()
        )
    })
}

/// The configuration beside a single file, of which the result depends, too.
pub(crate) fn configuration(path: &Path) -> Option<PathBuf> {
    Some(path.with_file_name("config.json")).filter(|config| path.is_file() && config.is_file())
}
