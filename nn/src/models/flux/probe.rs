//! What a probe asked of a pass.
//!
//! `N` batch, `B` samples that are scored, `T` target tokens, `R` references, `D` width.

use super::{
    block::Pass,
    sequence::{IMAGE, TARGETS},
};
use crate::{
    backbone::{BlockTokens, Probe},
    device::{Device, Kind, Queue, View, ViewMut},
    error::Result,
};

/// Answers, as far as they are known.
pub(super) struct Asked<'a, D: Device> {
    probe: &'a Probe<'a>,
    /// Cosines after each block that is scored, `[blocks, R, B, T]`.
    scores: Option<D::Buffer>,
    tokens: Vec<BlockTokens>,
}

impl<'a, D: Device> Asked<'a, D> {
    pub fn new(pass: Pass<'_, D>, probe: &'a Probe<'a>) -> Self {
        let scores = probe.scores.as_ref().filter(|s| !s.masks.is_empty() && !s.blocks.is_empty());
        let scores = scores.map(|s| {
            let len = s.blocks.len() * s.masks.len() * s.samples * targets(pass);
            pass.ctx.queue.take(len, Kind::Exact)
        });
        Self { probe, scores, tokens: Vec::new() }
    }

    /// A block has run.
    pub fn block(&mut self, pass: Pass<'_, D>, block: usize, x: &D::Buffer) -> Result<()> {
        if self.probe.tokens.contains(&block) {
            let read = |span| {
                let rows = pass.sequence.span_rows(span);
                pass.ctx.queue.download(x, rows.start * pass.width, rows.len() * pass.width)
            };
            let (targets, image) = (read(TARGETS)?, read(IMAGE)?);
            let references = image[targets.len()..].to_vec();
            self.tokens.push(BlockTokens { block, targets, references });
        }
        let (Some(scoring), Some(scores)) = (&self.probe.scores, &mut self.scores) else { return Ok(()) };
        if !scoring.blocks.contains(&block) {
            return Ok(());
        }
        let (width, count) = (pass.width, targets(pass));
        let first = pass.sequence.span_rows(TARGETS);
        let all: usize = pass.sequence.reference_tokens.iter().sum();
        let rows = |row: usize| View::new(x, width).skip(row * width);
        let mut at = (block - scoring.blocks.start) * scoring.masks.len() * scoring.samples * count;
        let mut offset = 0;
        for (masks, tokens) in scoring.masks.iter().zip(&pass.sequence.reference_tokens) {
            for sample in 0..scoring.samples {
                let mask = &masks[sample * tokens..(sample + 1) * tokens];
                pass.ctx.queue.scores(
                    width,
                    (rows(first.end + sample * all + offset), mask),
                    (rows(first.start + sample * count), count),
                    ViewMut::new(scores, count).skip(at),
                );
                at += count;
            }
            offset += tokens;
        }
        Ok(())
    }

    /// Means over the blocks for each reference, `[B, T]`, and the tokens.
    pub fn answer(self, pass: Pass<'_, D>) -> Result<(Vec<Vec<f32>>, Vec<BlockTokens>)> {
        let (Some(scoring), Some(scores)) = (&self.probe.scores, &self.scores) else {
            return Ok((Vec::new(), self.tokens));
        };
        let (blocks, references) = (scoring.blocks.len(), scoring.masks.len());
        let each = scoring.samples * targets(pass);
        let scores = pass.ctx.queue.download(scores, 0, blocks * references * each)?;
        let mean = |reference: usize| -> Vec<f32> {
            let of_block = |block: usize| &scores[(block * references + reference) * each..][..each];
            let mut sums: Vec<f64> = of_block(0).iter().copied().map(f64::from).collect();
            for block in 1..blocks {
                sums.iter_mut().zip(of_block(block)).for_each(|(sum, score)| *sum += f64::from(*score));
            }
            sums.into_iter().map(|sum| (sum / blocks as f64) as f32).collect()
        };
        Ok(((0..references).map(mean).collect(), self.tokens))
    }
}

/// T.
fn targets<D: Device>(pass: Pass<'_, D>) -> usize {
    pass.sequence.span_rows(TARGETS).len() / pass.sequence.batch
}
