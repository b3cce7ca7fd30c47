//! Resuming a run: the data and weights that an operator reads, and the effect of its changed settings.

use std::{collections::BTreeMap, path::PathBuf};

use crate::{identity::Identity, port::NamedState};

/// Data or weights that results depend on. A checkpoint records their identity; a resumed run compares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// The setting that names it: if its path changes and the contents are the same, nothing has changed.
    pub setting: String,
    /// What it names.
    pub what: Outside,
}

/// See [`External`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outside {
    /// Weights, vocabularies, tensors: the contents of files, or of all files of a folder.
    Files(Vec<PathBuf>),
    /// A data set, in its order.
    Samples(Vec<DataSample>),
}

/// The identity of a sample of a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataSample {
    /// Its name.
    pub id: String,
    /// What results depend on besides the contents of its files: prompts, which files there are. No paths, so that a data set
    /// can be moved, and no settings.
    pub facts: String,
    /// Its files, in a fixed order.
    pub files: Vec<PathBuf>,
}

impl External {
    /// The contents of one file or folder.
    pub fn file(setting: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self::files(setting, vec![path.into()])
    }

    /// The contents of several.
    pub fn files(setting: impl Into<String>, paths: Vec<PathBuf>) -> Self {
        Self { setting: setting.into(), what: Outside::Files(paths) }
    }

    /// A data set.
    pub fn samples(setting: impl Into<String>, samples: Vec<DataSample>) -> Self {
        Self { setting: setting.into(), what: Outside::Samples(samples) }
    }

    /// The files of an [`Identity`].
    pub(crate) fn of(identity: Option<Identity>) -> Vec<Self> {
        let files = identity.iter().flat_map(Identity::files);
        files.map(|(setting, path)| Self::file(setting, path)).collect()
    }
}

/// The point from which a run continues.
#[derive(Clone, Debug)]
pub struct Restart<'a> {
    /// Number of the next step.
    pub step: u64,
    /// Steps of the run, as set now.
    pub steps: u64,
    /// What the checkpoint holds of the cells that the node reads, by input.
    pub cells: BTreeMap<String, &'a NamedState>,
}

/// The effect of changed settings on a run that continues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restated {
    /// The changed settings that this explains; may be empty.
    pub settings: Vec<&'static str>,
    /// The effect in a sentence, with both values.
    pub effect: String,
    /// Does it follow from the number of steps alone, so that it need not be accepted?
    pub follows: bool,
}
