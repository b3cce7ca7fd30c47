//! After which blocks it is asked how much each target token resembles each reference (FocusDPO, Eq. 3).

use std::ops::Range;

use prefgraph_nn::BackboneLayout;

use crate::choices;

choices! {
    /// After which blocks tokens are compared with the references.
    pub enum Hooks {
        /// None: there are no scores.
        Off = "off",
        /// Every block.
        All = "all",
        /// Blocks with a text stream and an image stream.
        Double = "double",
        /// Blocks with one stream.
        Single = "single",
    }
}

impl Hooks {
    /// The numbers of the blocks.
    pub(crate) fn blocks(self, layout: &BackboneLayout) -> Range<usize> {
        let stem = |name: &str| {
            name.strip_prefix("transformer_blocks.").and_then(|n| n.split('.').next()?.parse().ok())
        };
        let double =
            layout.linears.iter().filter_map(|l| stem(&l.name)).max().map_or(0, |last: usize| last + 1);
        match self {
            Self::Off => 0..0,
            Self::All => 0..layout.blocks,
            Self::Double => 0..double,
            // Blocks of a U-Net have neither name.
            Self::Single
                if layout.linears.iter().any(|l| l.name.starts_with("single_transformer_blocks.")) =>
            {
                double..layout.blocks
            }
            Self::Single => 0..0,
        }
    }
}
