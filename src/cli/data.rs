//! `graph-run data check`: everything decoded once, before a run trips over it.

use std::path::Path;

use super::Failure;

/// Check the data at `path`.
pub(super) fn check(path: &Path) -> Result<u8, Failure> {
    Err(Failure::new(format!("`{}`: no reader", path.display())))
}
