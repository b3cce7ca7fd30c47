//! Where the weights of an encoder lie, by the path that a setting names.

use std::path::{Path, PathBuf};

use crate::settings::DataPath;

/// The folder of this name below a path, where the path is a checkpoint's; else the path.
pub(crate) fn below(path: &DataPath, name: &str) -> PathBuf {
    let inside = path.as_path().join(name);
    if !path.as_path().join("config.json").exists() && inside.is_dir() { inside } else { path.0.clone() }
}

/// The configuration beside a single file, of which the result depends, too.
pub(crate) fn configuration(path: &Path) -> Option<PathBuf> {
    Some(path.with_file_name("config.json")).filter(|config| path.is_file() && config.is_file())
}
