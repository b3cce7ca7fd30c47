//! The cache of encoder outputs: frozen encoders run once per sample and leave memory before training.
//!
//! ```text
//!  lineage   may a node be cached, and what do its entries depend on
//!  recipe    operator, settings and weights: what a set of entries is of
//!  cached    an operator that reads its rows from the disk                    entry     one file of it
//!  store     the folder                       index, stamp   which sample has which entry, without reading it
//!  status    what is there                    fill           makes what is not          tend   looks after a folder
//! ```
//!
//! An entry's key is a hash of the row of every input, of the operator's name, its settings and the identity of its
//! weights. It does not depend on the sample's place, name or batch: two runs that share a folder write the same bytes
//! under the same name.
//!
//! **Architecture invariant:** with a cache every value has the bits that it has without.

mod cached;
mod entry;
mod error;
mod fill;
mod index;
mod lineage;
mod recipe;
mod stamp;
mod status;
mod store;
mod tend;

use std::{path::Path, sync::Arc};

use prefgraph_ops::Sample;

use cached::{Cached, Handle};
use index::Index;
use lineage::Lineage;
use stamp::Stamps;
use store::Store;

pub use error::CacheError;
pub use fill::{Filled, Filling};
pub use recipe::Recipe;
pub use status::{NodeStatus, State};
pub use tend::{Cleaned, Group, clean, show, verify};

pub use crate::fingerprint::{BLOCK, BLOCKS, WHOLE};

use crate::graph::{Graph, NodeId};

/// Version of everything that is on the disk.
pub const FORMAT: u32 = 1;

type Hash = blake3::Hash;

/// The cache of a graph: the nodes that it stands before, and its folder.
pub struct Cache {
    store: Arc<Store>,
    index: Index,
    members: Vec<Member>,
    sources: Vec<SampleSource>,
}

/// A cached node.
struct Member {
    id: String,
    node: NodeId,
    cached: Arc<Cached>,
    recipe: Recipe,
    lineage: Lineage,
}

/// A source and its samples.
struct SampleSource {
    node: NodeId,
    operator: String,
    samples: Vec<Sample>,
}

impl Member {
    /// What the index knows a sample's entry by.
    fn lookup(&self, sample: Hash) -> Hash {
        let mut hash = blake3::Hasher::new_derive_key("prefgraph 2026 index of a cache");
        hash.update(sample.as_bytes());
        hash.update(self.lineage.hash.as_bytes());
        hash.finalize()
    }
}

impl SampleSource {
    fn hashes(&self, stamps: &mut Stamps) -> Vec<Hash> {
        self.samples.iter().map(|sample| stamps.of(&self.operator, sample)).collect()
    }
}

impl Cache {
    /// Put a cache in `folder` before these nodes of a graph. Nothing is written; entries are made by
    /// [`fill`](Self::fill), or, where a graph runs without one, as they are missed. Networks run on the GPU of this name, or on
    /// the processor: an entry of one is none of the other, since their last bits differ.
    ///
    /// # Errors
    /// If a node is unknown, random, reached by a cell, or not cacheable, or if the weights that it reads cannot be
    /// identified; the graph is then unchanged.
    pub fn attach(
        graph: &mut Graph,
        folder: &Path,
        nodes: &[String],
        gpu: Option<&str>,
    ) -> Result<Self, CacheError> {
        let store = Arc::new(Store::new(folder));
        let mut found: Vec<(String, Lineage)> = Vec::new();
        for id in nodes {
            let unknown = |e: crate::GraphError| CacheError::unknown(id, e);
            let node = graph.find(id).map_err(unknown)?;
            if found.iter().any(|(other, _)| other == id) {
                return Err(CacheError::of(id, "it is named twice"));
            }
            found.push((id.clone(), lineage::lineage(graph, node, gpu).map_err(|e| choices(graph, e))?));
        }
        let mut cache =
            Self { index: Index::read(&store.index()), store, members: Vec::new(), sources: Vec::new() };
        for (id, lineage) in found {
            let node = *lineage.needs.last().unwrap_or(&lineage.source);
            let (recipe, store) = (lineage.recipe.clone(), cache.store.clone());
            let identity = graph[node].op.cacheable().unwrap_or_default();
            let cached = Arc::new(Cached::new(graph[node].op.as_ref(), identity, &recipe, store));
            cached.compute_by(graph.replace_operator(node, Arc::new(Handle(cached.clone()))));
            if !cache.sources.iter().any(|s| s.node == lineage.source) {
                let op = &graph[lineage.source].op;
                let samples = op.samples().unwrap_or_default();
                cache.sources.push(SampleSource {
                    node: lineage.source,
                    operator: op.name().to_owned(),
                    samples,
                });
            }
            cache.members.push(Member { id, node, cached, recipe, lineage });
        }
        Ok(cache)
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        self.store.root()
    }

    /// What the entries of its nodes are of, by node.
    pub fn recipes(&self) -> impl Iterator<Item = (&str, &Recipe)> {
        self.members.iter().map(|m| (m.id.as_str(), &m.recipe))
    }

    /// Drop the operators of all cached nodes: from now on their rows are read only.
    pub fn release(&self) {
        self.members.iter().for_each(|m| m.cached.release());
    }

    fn source_of(&self, member: &Member) -> (usize, &SampleSource) {
        let at = self.sources.iter().position(|s| s.node == member.lineage.source);
        let at = at.expect("every cached node has its source");
        (at, &self.sources[at])
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let nodes: Vec<&str> = self.members.iter().map(|m| m.id.as_str()).collect();
        write!(f, "cache of {nodes:?} in {}", self.store.root().display())
    }
}

/// With the nodes that could be cached.
fn choices(graph: &Graph, error: CacheError) -> CacheError {
    let good: Vec<String> = graph
        .nodes()
        .filter(|(node, _)| lineage::lineage(graph, *node, None).is_ok())
        .map(|(_, node)| format!("`{}`", node.id))
        .collect();
    match &good[..] {
        [] => error.help("no node of this graph can be cached"),
        good => error.help(format!("nodes that can be cached: {}", good.join(", "))),
    }
}
