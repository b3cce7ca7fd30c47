//! An adapter that is part of the frozen network, e.g. UNO's own: read from the file where it is used.
//!
//! ```text
//! y += s (x D^T) U^T      D down [R, K]    U up [N, R]    s scale
//! ```
//!
//! Linears that are one in the file share one D, and each has its own rows of U: nothing is copied, whatever the
//! format and the dtype. Modules may have ranks and scales of their own.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::read::{AdapterFile, not_adapted};
use crate::{
    error::{Error, Result},
    files::TensorView,
    linears::Linears,
};

/// The factors of one linear of diffusers' layout, as they stand in the file.
#[derive(Clone, Debug)]
pub struct FrozenFactors {
    /// `[R, K]`.
    pub down: TensorView,
    /// `[N, R]`.
    pub up: TensorView,
    /// What the product is multiplied by: alpha / rank.
    pub scale: f32,
}

impl FrozenFactors {
    /// `R`.
    pub fn rank(&self) -> usize {
        self.down.shape()[0]
    }
}

/// A frozen adapter. Values are read by whoever uses the views.
#[derive(Debug)]
pub struct FrozenAdapter {
    path: PathBuf,
    factors: BTreeMap<String, FrozenFactors>,
}

impl FrozenAdapter {
    /// Open an adapter in the names of any known tool, a file or a folder with one, for a model with these linears.
    ///
    /// # Errors
    /// As [`AdapterFile::open`]; if a module is none of the linears or has other widths.
    pub fn open(path: &Path, linears: &Linears) -> Result<Self> {
        let file = AdapterFile::open(path, "", linears.names)?;
        let mut factors = BTreeMap::new();
        for pair in file.factors() {
            let rank = pair.rank();
            let scale = pair.alpha.map_or(1.0, |alpha| alpha / rank as f32);
            for part in &pair.parts {
                let up = pair.up.rows(part.rows.clone())?;
                let found = FrozenFactors { down: pair.down.clone(), up, scale };
                check(path, &part.name, &found, linears)?;
                factors.insert(part.name.clone(), found);
            }
        }
        Ok(Self { path: file.path(), factors })
    }

    /// The factors of a linear, by its name in diffusers' layout; nothing if it has none.
    pub fn get(&self, linear: &str) -> Option<&FrozenFactors> {
        self.factors.get(linear)
    }

    /// The linears it has factors for, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.factors.keys().map(String::as_str)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn check(path: &Path, name: &str, found: &FrozenFactors, linears: &Linears) -> Result<()> {
    let Some(linear) = linears.iter().find(|l| l.name == name) else {
        let why = not_adapted(linears.names, name, linears);
        return Err(Error::file(path, format!("has factors for `{name}`, {why}")));
    };
    let widths = (found.down.shape()[1], found.up.shape()[0]);
    if widths != (linear.inputs, linear.outputs) {
        return Err(Error::shape(
            format!("inputs and outputs of `{name}` of {}", path.display()),
            (linear.inputs, linear.outputs),
            widths,
        ));
    }
    Ok(())
}
