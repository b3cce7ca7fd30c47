//! What a graph reads from outside its file, data and weights, and whether it is still what it was.
//!
//! ```text
//!  survey    what is there now                  reader   contents of samples, read while a run is at work
//!  compare   what is not as a checkpoint records it
//! ```
//!
//! Weights are told by their contents, as for the cache but without their modification times. Samples are told by their
//! ids, their order, their prompts and the contents of their files. To look at the contents of many thousand pictures
//! takes time, so lengths and modification times are compared first: contents are read where those differ, and, of a
//! run that begins, in the background. Paths do not count: what is moved is the same.

mod compare;
mod reader;
mod survey;

use std::collections::BTreeMap;

pub use compare::Comparison;
pub use reader::Reader;
pub use survey::{SourceError, Survey};

/// The first bytes of a BLAKE3 hash.
pub type Digest = [u8; 16];

/// What a run was made from, by `node.setting`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources(pub BTreeMap<String, Source>);

/// What one setting leads to.
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
    /// What people call it.
    pub id: String,
    /// Of its prompt, and of what its files are.
    pub facts: Digest,
    /// Of the lengths and modification times of its files.
    pub stamp: Digest,
    /// Of the contents of its files, where they were read.
    pub contents: Option<Digest>,
}

fn digest(hash: &blake3::Hasher) -> Digest {
    let mut digest = Digest::default();
    hash.finalize_xof().fill(&mut digest);
    digest
}
