//! The shapes of `benches/peers/shapes.json`, which the peers read as well.

use std::collections::BTreeMap;

use prefgraph_nn::models::FluxConfig;
use serde::Deserialize;

/// Sizes of a network and of a batch.
#[derive(Clone, Debug, Deserialize)]
pub struct Shape {
    #[serde(flatten)]
    pub network: Sizes,
    /// Sides of the target pictures; each is a case of its own.
    pub pixels: Vec<usize>,
    /// Side of the one reference, in pixels, where it is seen as latents.
    #[serde(default)]
    pub reference: usize,
    /// Tokens of the one reference, where it is seen through an IP-Adapter.
    #[serde(default)]
    pub image_tokens: usize,
    /// Text tokens.
    pub text: usize,
    /// Pairs of a batch.
    pub pairs: usize,
    /// Rank of the adapter.
    pub rank: usize,
    /// Linears that the adapter has factors for, as `lora` takes them; none means those of the blocks but the modulations.
    #[serde(default)]
    pub targets: Vec<String>,
}

/// Sizes of a network, as its `config.json` states them.
#[derive(Clone, Debug, Deserialize)]
pub enum Sizes {
    #[serde(rename = "flux")]
    Flux(FluxConfig),
    /// Of a U-Net with an IP-Adapter.
    #[serde(rename = "unet")]
    UNet(serde_json::Value),
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
