//! What an operator declares so that its outputs can be cached on disk: what its rows depend on, and what
//! the samples of a source are before they are read.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::{error::OpError, settings::Settings};

/// All that the rows an operator gives depend on, besides the rows it reads.
///
/// It is a promise: row `i` of every output is a function of row `i` of every input, of these settings and of the
/// contents of these files, with the same bits whatever the other rows are and however many there are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Identity {
    settings: Vec<(String, Value)>,
    files: Vec<(String, PathBuf)>,
    shape_only: Vec<&'static str>,
    on_device: bool,
}

impl Identity {
    /// Nothing but the rows.
    pub fn new() -> Self {
        Self::default()
    }

    /// All settings but paths: what a path leads to is said by [`file`](Self::file).
    ///
    /// # Errors
    /// If the settings cannot be written, which is a defect of their type.
    pub fn of<S: Settings>(settings: &S) -> Result<Self, OpError> {
        let all = serde_json::to_value(settings).map_err(OpError::internal)?;
        let docs = S::docs();
        let stated = docs.iter().filter(|d| !d.path).map(|d| (d.name.to_owned(), all[d.name].clone()));
        Ok(Self { settings: stated.collect(), ..Self::default() })
    }

    /// With a setting, or anything else that changes results.
    #[must_use]
    pub fn setting(mut self, name: &str, value: impl Serialize) -> Self {
        // A value that JSON cannot hold, such as a map with odd keys, is told apart by its error at least.
        let value = serde_json::to_value(value).unwrap_or_else(|e| Value::String(e.to_string()));
        self.settings.retain(|(n, _)| n != name);
        self.settings.push((name.into(), value));
        self
    }

    /// Without a setting that changes no result.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.settings.retain(|(n, _)| n != name);
        self
    }

    /// With weights that are read from a file, from the shards of a `.safetensors.index.json`, or from all the files of
    /// a folder.
    #[must_use]
    pub fn file(mut self, name: &str, path: &Path) -> Self {
        self.files.push((name.into(), path.to_owned()));
        self
    }

    /// Of this input only the shape is looked at, and only for the shapes of the outputs.
    #[must_use]
    pub fn shape_only(mut self, input: &'static str) -> Self {
        self.shape_only.push(input);
        self
    }

    /// The bits depend on the device that computes them, too.
    #[must_use]
    pub fn on_device(mut self) -> Self {
        self.on_device = true;
        self
    }

    /// Do the bits depend on the device?
    pub fn is_on_device(&self) -> bool {
        self.on_device
    }

    /// Settings that change results, by name.
    pub fn settings(&self) -> &[(String, Value)] {
        &self.settings
    }

    /// Files and folders of weights, by name.
    pub fn files(&self) -> &[(String, PathBuf)] {
        &self.files
    }

    /// Is nothing but the shape of this input looked at?
    pub fn is_shape_only(&self, input: &str) -> bool {
        self.shape_only.contains(&input)
    }
}

/// A sample of a source, before it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The variant of its batches; samples of one variant can be read together.
    pub variant: usize,
    /// Everything that it depends on, but for the contents of files: texts, sizes of pictures.
    pub facts: String,
    /// The files that it is read from.
    pub files: Vec<PathBuf>,
}

/// Numbers of the samples that were read, and their batch; `None` if none of them can be used and the settings say to
/// leave such out.
pub type ReadBatch<B> = Option<(Vec<usize>, B)>;
