//! What a probe asked of the cross-attentions of a pass.
//!
//! The cosine between the mean key of a reference's image tokens and the query of a pixel says how much the pixel looks like the
//! reference. Every latent cell has the cosine of the pixel that covers it.
//!
//! `N` batch, `B` samples that are scored, `R` references, `H` `W` latent grid, `h` `w` pixels of one attention, `K` image tokens,
//! `C` channels.

use std::ops::Range;

use super::{attention::Looked, context::Pass};
use crate::{
    backbone::{BlockTokens, Probe},
    device::{Device, Kind, Queue, View, ViewMut},
    error::{Error, Result},
    layers::Map,
};

/// Answers, as far as they are known.
pub(super) struct Asked<'a, D: Device> {
    probe: &'a Probe<'a>,
    /// H and W.
    grid: (usize, usize),
    scored: Vec<Scored<D>>,
    tokens: Vec<BlockTokens>,
}

/// Cosines of one attention, `[R, B, h w]`.
struct Scored<D: Device> {
    size: (usize, usize),
    cosines: D::Buffer,
}

impl<'a, D: Device> Asked<'a, D> {
    /// What a probe asks of a pass over latents of this grid with so many samples and image tokens.
    ///
    /// # Errors
    /// If it asks for scores and there are no image tokens; if its masks do not share them out.
    pub fn new(probe: &'a Probe<'a>, grid: (usize, usize), image_tokens: Option<usize>) -> Result<Self> {
        if let Some(scoring) = probe.scores.as_ref().filter(|s| !s.masks.is_empty() && !s.blocks.is_empty()) {
            let Some(tokens) = image_tokens else {
                return Err(Error::Setting(
                    "scores compare pixels with image tokens, and the pass has none: load an IP-Adapter beside the U-Net"
                        .into(),
                ));
            };
            let references = scoring.masks.len();
            let each = scoring.samples * (tokens / references);
            if !tokens.is_multiple_of(references) || scoring.masks.iter().any(|mask| mask.len() != each) {
                return Err(Error::shape(
                    format!("masks of {tokens} image tokens of {references} references"),
                    format!("{} values each", scoring.samples as f64 * tokens as f64 / references as f64),
                    scoring.masks.iter().map(Vec::len).collect::<Vec<_>>(),
                ));
            }
        }
        Ok(Self { probe, grid, scored: Vec::new(), tokens: Vec::new() })
    }

    /// Is anything asked of this cross-attention?
    pub fn wants(&self, crossing: usize) -> bool {
        self.probe.tokens.contains(&crossing) || self.scored_blocks().contains(&crossing)
    }

    fn scored_blocks(&self) -> Range<usize> {
        let scores = self.probe.scores.as_ref().filter(|s| !s.masks.is_empty());
        scores.map_or(0..0, |s| s.blocks.clone())
    }

    /// A cross-attention over pixels of the size of `of` has run.
    pub fn block(
        &mut self,
        pass: Pass<'_, D>,
        crossing: usize,
        of: &Map<D>,
        looked: &Looked<D>,
    ) -> Result<()> {
        let (queue, channels, pixels) = (pass.ctx.queue, of.channels, of.pixels());
        let image_tokens = pass.image.map_or(0, |image| image.count);
        if self.probe.tokens.contains(&crossing) {
            self.tokens.push(BlockTokens {
                block: crossing,
                targets: queue.download(&looked.q, 0, of.len())?,
                references: queue.download(&looked.k_image, 0, pass.batch * image_tokens * channels)?,
            });
        }
        let Some(scoring) = self.probe.scores.as_ref().filter(|_| self.scored_blocks().contains(&crossing))
        else {
            return Ok(());
        };
        if scoring.cells.is_some_and(|cells| cells != self.grid.0 / of.height) {
            return Ok(());
        }
        let references = scoring.masks.len();
        let each = image_tokens / references;
        let mut cosines = queue.take(references * scoring.samples * pixels, Kind::Exact);
        let mut at = 0;
        for (reference, masks) in scoring.masks.iter().enumerate() {
            for (sample, mask) in masks.chunks_exact(each).enumerate() {
                let key = sample * image_tokens + reference * each;
                queue.scores(
                    channels,
                    (View::new(&looked.k_image, channels).skip(key * channels), mask),
                    (View::new(&looked.q, channels).skip(sample * pixels * channels), pixels),
                    ViewMut::new(&mut cosines, pixels).skip(at),
                );
                at += pixels;
            }
        }
        self.scored.push(Scored { size: (of.height, of.width), cosines });
        Ok(())
    }

    /// Means over the attentions for each reference, `[B, H W]`, and the tokens.
    ///
    /// # Errors
    /// The first one of the queue; if scores are asked of attentions that the network does not have.
    pub fn answer(self, queue: &D::Queue) -> Result<(Vec<Vec<f32>>, Vec<BlockTokens>)> {
        let blocks = self.scored_blocks();
        let Some(scoring) = self.probe.scores.as_ref().filter(|_| !blocks.is_empty()) else {
            return Ok((Vec::new(), self.tokens));
        };
        if self.scored.is_empty() {
            return Err(Error::Setting(format!(
                "none of the cross-attentions {blocks:?} has pixels of {} latent cells",
                scoring.cells.unwrap_or(1)
            )));
        }
        let (rows, columns) = self.grid;
        let cells = rows * columns;
        let mut sums = vec![vec![0.0; scoring.samples * cells]; scoring.masks.len()];
        for Scored { size: (height, width), cosines } in &self.scored {
            let pixels = height * width;
            let cosines = queue.download(cosines, 0, sums.len() * scoring.samples * pixels)?;
            for (sum, cosines) in sums.iter_mut().zip(cosines.chunks_exact(scoring.samples * pixels)) {
                for (sum, cosines) in sum.chunks_exact_mut(cells).zip(cosines.chunks_exact(pixels)) {
                    for (cell, sum) in sum.iter_mut().enumerate() {
                        let (row, column) =
                            (cell / columns * height / rows, cell % columns * width / columns);
                        *sum += f64::from(cosines[row * width + column]);
                    }
                }
            }
        }
        let count = self.scored.len() as f64;
        let mean = |sums: Vec<f64>| sums.into_iter().map(|sum| (sum / count) as f32).collect();
        Ok((sums.into_iter().map(mean).collect(), self.tokens))
    }
}
