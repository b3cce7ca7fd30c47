//! The shapes of `benches/peers/shapes.json`, which the peers read as well.

use std::collections::BTreeMap;

use prefgraph_nn::models::FluxConfig;
use serde::Deserialize;

/// Sizes of a network and of a batch.
#[derive(Clone, Debug, Deserialize)]
pub struct Shape {
    pub network: FluxConfig,
    /// Sides of the target pictures; each is a case of its own.
    pub pixels: Vec<usize>,
    /// Side of the one reference, in pixels.
    pub reference: usize,
    /// Text tokens.
    pub text: usize,
    /// Pairs of a batch.
    pub pairs: usize,
    /// Rank of the adapter.
    pub rank: usize,
}

/// Pixels of a latent cell.
pub const CELL: usize = 8;

impl Shape {
    /// The shape of this name.
    pub fn named(name: &str) -> Result<Self, String> {
        let mut all: BTreeMap<String, Self> = serde_json::from_str(include_str!("../peers/shapes.json"))
            .map_err(|e| format!("benches/peers/shapes.json: {e}"))?;
        let names = all.keys().cloned().collect::<Vec<_>>().join(", ");
        all.remove(name).ok_or_else(|| format!("there is no shape {name:?}: expected one of {names}"))
    }
}
