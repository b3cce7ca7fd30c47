//! The sizes that a configuration states, compared with the tensors that it describes.

use std::path::Path;

use super::TensorFiles;
use crate::error::{Error, Result};

impl TensorFiles {
    /// Refuse sizes that no model in these files can have: more blocks than there are tensors, or an axis that is longer than
    /// the largest tensor has values. To be called before anything is built from a configuration, since what it describes may
    /// exceed any memory. Axes are wide numbers, so that products of two sizes can be among them.
    ///
    /// # Errors
    /// Naming the size, in `config`, the file that states it.
    pub(crate) fn bound(&self, config: &Path, blocks: &[(&str, usize)], axes: &[(&str, u128)]) -> Result<()> {
        let fault = |name: &str, size: &dyn std::fmt::Display, has: String| {
            let message = format!("{name} is {size}, but {} has {has}", self.path().display());
            Err(Error::file(config, message))
        };
        if let Some((name, count)) = blocks.iter().find(|(_, count)| *count > self.len()) {
            return fault(name, count, format!("only {} tensors", self.len()));
        }
        let largest =
            self.names().filter_map(|name| self.info(name)).map(|info| info.values()).max().unwrap_or(0);
        match axes.iter().find(|(_, axis)| *axis > largest as u128) {
            Some((name, axis)) => fault(name, axis, format!("no tensor with more than {largest} values")),
            None => Ok(()),
        }
    }
}
