//! All samples in file order, independent of seed and step, for filling a cache.

use super::{OnBad, Pairs, Row, sample};
use crate::{
    identity::{ReadBatch, Sample},
    operator::{Ctx, OpError, Operator},
    ports::Metrics,
    resume::{DataSample, External},
};

/// The version of how files become pixels and cells; raised when the same files give others.
const READING: u32 = 2;

/// Sizes, which of the files is what, and the prompt.
fn facts(row: &Row, size: (usize, usize), references: (usize, usize)) -> String {
    let masks: Vec<bool> = row.references.iter().map(|r| r.mask.is_some()).collect();
    format!("{READING} {size:?} {references:?} {} {masks:?} {:?}", row.priors.len(), row.prompt)
}

impl Pairs {
    /// See [`Operator::external`].
    pub(super) fn recorded(&self) -> Vec<External> {
        let sample = |row: &Row| {
            let masks: Vec<bool> = row.references.iter().map(|r| r.mask.is_some()).collect();
            DataSample {
                id: row.id.clone(),
                facts: format!("{} {masks:?} {:?}", row.priors.len(), row.prompt),
                files: row.files().map(ToOwned::to_owned).collect(),
            }
        };
        vec![External::samples("path", self.rows.iter().map(sample).collect())]
    }

    /// See [`Operator::samples`].
    pub(super) fn listed(&self) -> Vec<Sample> {
        let mut variants = vec![0; self.rows.len()];
        for (variant, group) in self.order.groups().iter().enumerate() {
            group.samples.iter().for_each(|sample| variants[*sample] = variant);
        }
        let (size, references) = (self.settings.size(), self.settings.reference_size());
        let rows = self.rows.iter().zip(variants);
        rows.map(|(row, variant)| Sample {
            variant,
            facts: facts(row, size, references),
            files: row.files().map(ToOwned::to_owned).collect(),
        })
        .collect()
    }

    /// See [`Operator::read`].
    pub(super) fn read_listed(
        &self,
        ctx: &Ctx<'_>,
        samples: &[usize],
    ) -> Result<ReadBatch<<Self as Operator>::Out>, OpError> {
        let (mut read, mut found) = (Vec::new(), Vec::new());
        for &number in samples {
            let row =
                self.rows.get(number).ok_or_else(|| OpError::internal(format!("no sample {number}")))?;
            match sample::Sample::read(row, &self.settings) {
                Ok(sample) => {
                    read.push(number);
                    found.push((row, sample));
                }
                Err(_) if self.settings.on_bad == OnBad::Skip => {}
                Err(reason) => return Err(self.unusable(row, reason)),
            }
        }
        if found.is_empty() {
            return Ok(None);
        }
        Ok(Some((read, self.outputs(ctx, &found, Metrics::default())?)))
    }
}
