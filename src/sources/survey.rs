//! The state of data and weights on disk.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use prefgraph_ops::{DataSample, External, Outside, guard};

use super::{Digest, SampleRecord, Source, Sources, digest};
use crate::{
    fingerprint::{FileStamp, Sampling, fingerprint, of_file},
    graph::Graph,
};

/// Data or weights that cannot be identified.
#[derive(Debug, thiserror::Error)]
#[error("node `{node}`, `{setting}`: {message}")]
pub struct SourceError {
    node: String,
    setting: String,
    message: String,
}

/// The data and weights of a graph, with the files of its samples.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    pub(super) found: Sources,
    /// By key and sample.
    pub(super) files: BTreeMap<String, Vec<Vec<PathBuf>>>,
}

impl Survey {
    /// Examine everything that the operators of a graph name. Weights are read in part; of samples only lengths and times.
    ///
    /// # Errors
    /// If weights cannot be read.
    pub fn of(graph: &Graph) -> Result<Self, SourceError> {
        let mut survey = Self::default();
        let mut stamps = HashMap::new();
        for (_, node) in graph.nodes() {
            let external = guard::catch(|| node.op.external()).map_err(|panic| SourceError {
                node: node.id.clone(),
                setting: "external".into(),
                message: format!("internal error, please report it: a panic: {panic}"),
            })?;
            for External { setting, what } in external {
                let key = format!("{}.{setting}", node.id);
                let source = match what {
                    Outside::Files(paths) => {
                        Source::Files(identity(&paths).map_err(|message| SourceError {
                            node: node.id.clone(),
                            setting,
                            message,
                        })?)
                    }
                    Outside::Samples(samples) => {
                        let records = samples.iter().map(|sample| record(sample, &mut stamps)).collect();
                        survey.files.insert(key.clone(), samples.into_iter().map(|s| s.files).collect());
                        Source::Samples(records)
                    }
                };
                survey.found.0.insert(key, source);
            }
        }
        Ok(survey)
    }

    /// What is known so far.
    pub fn sources(&self) -> &Sources {
        &self.found
    }
}

fn identity(paths: &[PathBuf]) -> Result<String, String> {
    let parts =
        paths.iter().map(|path| fingerprint(path, Sampling::WEIGHTS)).collect::<Result<Vec<_>, _>>()?;
    match &parts[..] {
        [alone] => Ok(alone.clone()),
        many => Ok(format!("{} {}", many.len(), blake3::hash(many.join("\n").as_bytes()).to_hex())),
    }
}

fn record(sample: &DataSample, stamps: &mut HashMap<PathBuf, FileStamp>) -> SampleRecord {
    let (mut facts, mut stamp) = (blake3::Hasher::new(), blake3::Hasher::new());
    facts.update(sample.facts.as_bytes());
    for path in &sample.files {
        // A missing file is recorded as one without length and time.
        let FileStamp { length, modified } =
            *stamps.entry(path.clone()).or_insert_with(|| FileStamp::of(path).unwrap_or_default());
        stamp.update(&length.to_le_bytes());
        stamp.update(&modified.to_le_bytes());
    }
    SampleRecord { id: sample.id.clone(), facts: digest(&facts), stamp: digest(&stamp), contents: None }
}

/// Contents of files; a file that several samples share is read once.
#[derive(Default)]
pub(super) struct Contents(HashMap<PathBuf, String>);

impl Contents {
    pub fn of(&mut self, files: &[PathBuf]) -> Digest {
        let mut hash = blake3::Hasher::new();
        for path in files {
            let found = self.0.entry(path.clone()).or_insert_with(|| one(path));
            hash.update(found.as_bytes());
            hash.update(b"\n");
        }
        digest(&hash)
    }
}

/// An unreadable file is recorded as such: a run may skip its samples.
fn one(path: &Path) -> String {
    of_file(path, Sampling::PICTURE).unwrap_or_else(|e| format!("unreadable: {:?}", e.kind()))
}
