//! The similarity of each target token to each reference, collected as the blocks run (FocusDPO, Eq. 3).
//!
//! Shape letters: `B` winners, `T` target tokens, `D` width of the stream.

use std::ops::Range;

use prefgraph_nn::{
    BackboneLayout, Cpu, Visitor,
    backbone::BlockTokens,
    cpu::{cosine_scores, masked_mean},
};

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
            Self::Single => double..layout.blocks,
        }
    }
}

/// Sums, over the chosen blocks, of the cosine between a reference's mean foreground token and each target token of
/// the first `B` rows. Tokens themselves are never kept.
pub(crate) struct Scorer<'a> {
    cpu: &'a Cpu,
    blocks: Range<usize>,
    /// For each reference, the weights of its tokens, sample after sample.
    masks: &'a [Vec<f32>],
    /// For each reference, `[B, T]`.
    sums: Vec<Vec<f64>>,
    samples: usize,
    pooled: Vec<f32>,
    cosines: Vec<f32>,
}

impl<'a> Scorer<'a> {
    pub(crate) fn new(
        cpu: &'a Cpu,
        blocks: Range<usize>,
        (samples, tokens): (usize, usize),
        masks: &'a [Vec<f32>],
    ) -> Self {
        let sums = vec![vec![0.0; samples * tokens]; masks.len()];
        Self { cpu, blocks, masks, sums, samples, pooled: Vec::new(), cosines: vec![0.0; tokens] }
    }

    /// Means over the blocks.
    pub(crate) fn means(&self) -> impl Iterator<Item = Vec<f32>> {
        let count = self.blocks.len().max(1) as f64;
        self.sums.iter().map(move |sums| sums.iter().map(|s| (s / count) as f32).collect())
    }
}

impl Visitor for Scorer<'_> {
    fn block(&mut self, tokens: &BlockTokens<'_>) {
        if !self.blocks.contains(&tokens.block) {
            return;
        }
        self.pooled.resize(tokens.width, 0.0);
        let count = self.cosines.len();
        for (r, (sums, masks)) in self.sums.iter_mut().zip(self.masks).enumerate() {
            let reference_tokens = tokens.reference_tokens[r];
            for b in 0..self.samples {
                let mask = &masks[b * reference_tokens..(b + 1) * reference_tokens];
                masked_mean(self.cpu, tokens.reference(b, r), mask, &mut self.pooled);
                cosine_scores(self.cpu, tokens.target(b), &self.pooled, &mut self.cosines);
                let sums = &mut sums[b * count..(b + 1) * count];
                sums.iter_mut().zip(&self.cosines).for_each(|(sum, cosine)| *sum += f64::from(*cosine));
            }
        }
    }

    fn looks(&self) -> bool {
        !self.blocks.is_empty() && !self.masks.is_empty()
    }
}
