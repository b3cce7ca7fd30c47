//! The data and weights that a graph reads, and whether they have changed.
//!
//! ```text
//!  survey    what is on the disk now            reader   contents of samples, read in the background
//!  compare   differences from what a checkpoint records
//! ```
//!
//! Weights are identified by their contents, as for the cache but without their modification times. Samples are identified
//! by their ids, their order, their prompts and the contents of their files. Reading many thousand pictures takes time, so
//! lengths and modification times are compared first; contents are read only where those differ, and for a new run in the
//! background. Paths do not count: moved data is the same data.

mod compare;
mod reader;
mod survey;

use std::collections::BTreeMap;

pub use compare::Comparison;
pub use reader::Reader;
pub use survey::{SourceError, Survey};

/// The first bytes of a BLAKE3 hash.
pub type Digest = [u8; 16];

/// The data and weights of a run, by `node.setting`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources(pub BTreeMap<String, Source>);

/// What one setting refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The identity of files.
    Files(String),
    /// A data set, in its order.
    Samples(Vec<SampleRecord>),
}

/// What is recorded of a sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleRecord {
    /// Its name in the data set.
    pub id: String,
    /// Of its prompt, and of which files it has.
    pub facts: Digest,
    /// Of the lengths and modification times of its files.
    pub stamp: Digest,
    /// Of the contents of its files, if they have been read.
    pub contents: Option<Digest>,
}

fn digest(hash: &blake3::Hasher) -> Digest {
    let mut digest = Digest::default();
    hash.finalize_xof().fill(&mut digest);
    digest
}
