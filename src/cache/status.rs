//! What a cache holds for a graph, from file names, sizes and times alone.

use std::fmt;

use prefgraph_ops::words::{count, form};

use super::{Cache, FORMAT, Hash, Member, entry, index::Known, stamp::Stamps, store::Found};
use crate::fingerprint::FileStamp;

/// What is known of one sample and one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// Its entry is there, or there is nothing to keep.
    Present,
    /// It is known which entry it needs, and that is not there, or not whole.
    Missing,
    /// Only reading the sample will tell.
    Unknown,
}

/// Is everything there?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// All of it.
    Hit,
    /// Not all of it.
    Miss,
    /// That is known when the data is read.
    Unknown,
}

/// What the cache holds for one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// The node.
    pub node: String,
    /// Samples of its source.
    pub samples: usize,
    /// Samples whose entries are there.
    pub present: usize,
    /// Samples whose entries are not.
    pub missing: usize,
    /// Samples that are new or changed since the data was read last.
    pub unindexed: usize,
    /// Why nothing is there.
    pub why: Option<String>,
}

impl NodeStatus {
    /// Is everything there?
    pub fn state(&self) -> State {
        match () {
            () if self.present == self.samples => State::Hit,
            () if self.why.is_some() || self.missing > 0 => State::Miss,
            () => State::Unknown,
        }
    }
}

impl fmt::Display for NodeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.samples;
        match (self.state(), &self.why) {
            (State::Hit, _) => match all {
                1 => f.write_str("hit: its only sample"),
                _ => write!(f, "hit: all {all} samples"),
            },
            (_, Some(why)) => write!(f, "miss: {why}"),
            (State::Miss, None) => {
                let are = form(self.missing, "is", "are");
                write!(f, "miss: {} of {} {are} missing", self.missing, count(all, "sample"))?;
                match self.unindexed {
                    0 => Ok(()),
                    n => write!(f, ", {n} more are not known until the data is read"),
                }
            }
            (State::Unknown, None) => write!(
                f,
                "unknown until the data is read: {} of {} {} new, changed, or left by a filling that was interrupted",
                self.unindexed,
                count(all, "sample"),
                form(self.unindexed, "is", "are")
            ),
        }
    }
}

impl Cache {
    /// What is there for every cached node, in the order in which they were named.
    pub fn status(&self) -> Vec<NodeStatus> {
        let mut stamps = Stamps::default();
        let hashes: Vec<Vec<Hash>> = self.sources.iter().map(|s| s.hashes(&mut stamps)).collect();
        let one = |member: &Member| {
            let (at, source) = self.source_of(member);
            let mut status = NodeStatus {
                node: member.id.clone(),
                samples: source.samples.len(),
                present: 0,
                missing: 0,
                unindexed: 0,
                why: self.why_nothing(member),
            };
            for sample in &hashes[at] {
                match self.sight(member, *sample) {
                    Sight::Present => status.present += 1,
                    Sight::Missing => status.missing += 1,
                    Sight::Unknown => status.unindexed += 1,
                }
            }
            status
        };
        self.members.iter().map(one).collect()
    }

    /// What is known of a sample, given the hash of its stamp.
    pub(super) fn sight(&self, member: &Member, sample: Hash) -> Sight {
        match self.index.get(member.lookup(sample)) {
            None => Sight::Unknown,
            Some(Known::Nothing | Known::LeftOut) => Sight::Present,
            Some(Known::Entry(key, stamp)) => {
                let path = member.cached.path(key);
                let there = match FileStamp::of(&path) {
                    Ok(found) if found == stamp => true,
                    // Another run may have written it again; a file that was cut or altered is no entry.
                    Ok(_) => entry::read(&path, key, &member.cached.names()).is_ok(),
                    Err(_) => false,
                };
                if there { Sight::Present } else { Sight::Missing }
            }
        }
    }

    /// Why there is nothing of this node at all, if there is not.
    fn why_nothing(&self, member: &Member) -> Option<String> {
        match self.store.found() {
            Found::Cache => {}
            Found::Nothing => return Some("no entries yet".into()),
            Found::Other(what) => {
                return Some(format!("the folder is a {what}, this build writes format {FORMAT}"));
            }
            Found::Foreign => return Some("the folder is not a cache".into()),
        }
        let recipes = self.store.recipes();
        let own = member.recipe.id();
        if recipes.iter().any(|(id, _)| *id == own) {
            return None;
        }
        let others = recipes.iter().filter_map(|(_, recipe)| recipe.as_ref());
        let others = others.filter(|r| r.operator == member.recipe.operator && r.nodes.contains(&member.id));
        // Of several the one that is nearest.
        let nearest = others.map(|r| member.recipe.changes(r)).min_by_key(Vec::len);
        Some(nearest.map_or_else(|| "no entries yet".into(), |changes| changes.join("; ")))
    }
}
