//! What an operator says when a run is resumed: what it reads from outside the graph, and what becomes of the run if its
//! settings are others.

use std::{collections::BTreeMap, path::PathBuf};

use crate::{identity::Identity, port::NamedState};

/// Something outside the graph file that results depend on. A checkpoint records what it was; a resumed run compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// The setting that leads to it: where only the path is another and the contents are the same, nothing has changed.
    pub setting: String,
    /// What is there.
    pub what: Outside,
}

/// See [`External`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outside {
    /// Weights, vocabularies, tensors: the contents of files, or of all files of a folder.
    Files(Vec<PathBuf>),
    /// Data, in the order in which a run counts it.
    Samples(Vec<DataSample>),
}

/// A sample of a data set, as it is told from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataSample {
    /// What people call it.
    pub id: String,
    /// All that results depend on but the contents of its files: prompts, which file is what. No path, so that a data set
    /// may be moved, and nothing that is a setting.
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

    /// The files of an [`Identity`]: an operator that can be cached has said already what it reads.
    pub(crate) fn of(identity: Option<Identity>) -> Vec<Self> {
        let files = identity.iter().flat_map(Identity::files);
        files.map(|(setting, path)| Self::file(setting, path)).collect()
    }
}

/// Where a run goes on.
#[derive(Clone, Debug)]
pub struct Restart<'a> {
    /// Number of the next step.
    pub step: u64,
    /// Steps of the whole run, as it is now.
    pub steps: u64,
    /// What the checkpoint holds of the cells that the node reads, by input.
    pub cells: BTreeMap<String, &'a NamedState>,
}

/// What other values of some settings do to a run that goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restated {
    /// The settings whose change this explains; none if nothing was changed.
    pub settings: Vec<&'static str>,
    /// What happens, in a sentence with both values.
    pub effect: String,
    /// Does it follow from the number of steps alone, so that nobody has to accept it?
    pub follows: bool,
}
