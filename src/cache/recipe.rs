//! What a set of entries was computed with: operator, settings that change its results, weights.

use std::collections::{BTreeMap, BTreeSet};

use prefgraph_ops::Identity;
use serde::{Deserialize, Serialize};

use super::{CacheError, FORMAT, Hash};
use crate::fingerprint::{Sampling, fingerprint};

/// An operator with all that its rows depend on besides the rows it reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// Of the entries.
    pub format: u32,
    /// Of the kernels that computed them, see [`prefgraph_nn::ARITHMETIC`].
    #[serde(default = "first_arithmetic")]
    pub arithmetic: u32,
    /// Its name.
    pub operator: String,
    /// As JSON, by name.
    pub settings: BTreeMap<String, String>,
    /// Identities of files, by the name of what they are.
    pub weights: BTreeMap<String, String>,
    /// Nodes that used it; not a part of what it is.
    pub nodes: BTreeSet<String>,
}

/// Stands among the settings; an operator's own have no spaces.
const DEVICE: &str = "run on";

/// That of recipes that do not state it.
fn first_arithmetic() -> u32 {
    1
}

impl Recipe {
    /// That of a node with this operator, whose networks run on this GPU, or on the processor.
    pub(super) fn new(
        node: &str,
        operator: &str,
        identity: &Identity,
        gpu: Option<&str>,
    ) -> Result<Self, CacheError> {
        let settings = identity.settings().iter().map(|(name, value)| (name.clone(), value.to_string()));
        // Nothing on the processor: its entries have no other names than before there were GPUs.
        let gpu = gpu.filter(|_| identity.is_on_device()).map(|gpu| (DEVICE.to_owned(), gpu.to_owned()));
        let mut weights = BTreeMap::new();
        for (name, path) in identity.files() {
            let found = fingerprint(path, Sampling::CACHED_WEIGHTS)
                .map_err(|e| CacheError::of(node, format!("weights `{name}`: {e}")))?;
            weights.insert(name.clone(), found);
        }
        Ok(Self {
            format: FORMAT,
            arithmetic: prefgraph_nn::ARITHMETIC,
            operator: operator.into(),
            settings: settings.chain(gpu).collect(),
            weights,
            nodes: BTreeSet::from([node.to_owned()]),
        })
    }

    /// What tells it apart from all others.
    pub(super) fn hash(&self) -> Hash {
        let mut hash = blake3::Hasher::new_derive_key("prefgraph 2026 what entries of a cache are of");
        let mut text = |text: &str| {
            hash.update(&(text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        };
        text(&self.format.to_string());
        text(&self.arithmetic.to_string());
        text(&self.operator);
        for (kind, all) in [("settings", &self.settings), ("weights", &self.weights)] {
            text(kind);
            text(&all.len().to_string());
            for (name, value) in all {
                text(name);
                text(value);
            }
        }
        hash.finalize()
    }

    /// Name of the folder of its entries.
    pub fn id(&self) -> String {
        self.hash().to_hex()[..32].to_owned()
    }

    /// What is not as in `old`, for people.
    pub(super) fn changes(&self, old: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        let none = || "nothing".to_owned();
        let mut compare =
            |what: &str, old: &BTreeMap<String, String>, new: &BTreeMap<String, String>, show: bool| {
                let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
                for name in names.into_iter().filter(|n| old.get(*n) != new.get(*n)) {
                    let value = |all: &BTreeMap<String, String>| all.get(name).cloned().unwrap_or_else(none);
                    changes.push(match show {
                        true => format!("{what} changed: {name} {} -> {}", value(old), value(new)),
                        false => format!("{what} changed: {name}"),
                    });
                }
            };
        compare("settings", &old.settings, &self.settings, true);
        compare("weights", &old.weights, &self.weights, false);
        if old.format != self.format {
            changes.push(format!("format version {} -> {}", old.format, self.format));
        }
        if old.arithmetic != self.arithmetic {
            changes.push(format!("arithmetic version {} -> {}", old.arithmetic, self.arithmetic));
        }
        changes
    }
}
