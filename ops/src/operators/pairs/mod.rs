//! `pairs`: preference pairs from a `pairs.jsonl` and picture files.
//!
//! ```text
//!  settings   what a graph says            lines, row   the file, and one sample of it
//!  order      which samples a step sees    picture      files of pictures and masks
//!  sample     the files of one sample      geometry     how they come to the size of training
//!  select     the samples a run reads      check        everything decoded once, before a run
//!  notes      what a run is told           listed       all samples, for a cache
//!  decoding   the memory of pictures as they are in their files
//!  request    a line without pictures      prompts      `prompts`, which reads such lines
//! ```
//!
//! Shape letters: `B` batch, `R` references of each sample of the batch, `h` `w` focus grid of a picture.

mod apart;
mod check;
mod decoding;
mod geometry;
mod lines;
mod listed;
mod notes;
mod order;
mod picture;
mod prompts;
mod request;
mod row;
mod sample;
mod select;
mod settings;
#[cfg(test)]
mod tests;
mod words;

use std::path::Path;

use dfdx::shapes::Const;

pub use self::{
    check::{Report, check, check_settings},
    geometry::CELL,
    lines::{EXAMPLE, locate, read},
    order::{Batch, Group, Order},
    picture::{Foreground, MAX_PIXELS, Rgb, StoredSize},
    prompts::{Asked, Prompts, PromptsSettings},
    row::{BadRow, Reference, Row},
    settings::{OnBad, PairsSettings},
};
use self::{
    sample::Sample,
    select::{no_samples, selected, with_losers},
    settings::{Size, grid},
};
use super::tensors::{mask, tensor};
use crate::{
    identity,
    operator::{Cost, Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{
        Crops, ImageShape, Images, List, ListShape, Mask, Metric, MetricDoc, Metrics, MetricsShape,
        PerSample, Texts, TextsShape,
    },
    resume::External,
};

/// Batches of preference pairs. A picture is scaled until it covers its size and cut out of the middle, and its masks
/// with it; nothing is flipped.
pub struct Pairs {
    settings: PairsSettings,
    rows: Vec<Row>,
    order: Order,
    left_out: usize,
    /// Lines that are not samples; none unless bad ones are skipped.
    bad: Vec<BadRow>,
}

/// The samples of a batch, with the rows they come from.
type Drawn<'a> = Vec<(&'a Row, Sample)>;

/// Number of bad rows that an error lists.
const LISTED: usize = 8;

fn refuse(path: &Path, bad: &[BadRow]) -> OpError {
    let mut message = format!("{}: {} bad rows", path.display(), bad.len());
    for row in bad.iter().take(LISTED) {
        message.push_str(&format!("\n  {row}"));
    }
    if bad.len() > LISTED {
        message.push_str(&format!("\n  and {} more", bad.len() - LISTED));
    }
    message.push_str("\n  `on_bad: skip` would leave them out");
    OpError::new(message)
}

impl Pairs {
    fn unusable(&self, row: &Row, reason: String) -> OpError {
        let bad = BadRow { line: row.line, id: row.id.clone(), reason };
        let path = self.settings.path.as_path().display();
        OpError::new(format!("{path}, {bad}\n  `on_bad: skip` would leave it out"))
    }

    /// The batch of these samples; the metrics are those of a step.
    fn outputs(
        &self,
        ctx: &Ctx<'_>,
        samples: &[(&Row, Sample)],
        metrics: Metrics,
    ) -> Result<<Self as Operator>::Out, OpError> {
        let batch = samples.len();
        let images = |(height, width): Size, of: &dyn Fn(&Sample) -> &[u8]| Images {
            batch,
            height,
            width,
            rgb: samples.iter().flat_map(|(_, s)| of(s)).copied().collect::<Vec<u8>>().into(),
        };
        let masks = |size, of: &dyn Fn(&Sample) -> &[f32]| -> Result<Mask, OpError> {
            let (h, w) = grid(size, self.settings.cell);
            mask(ctx, (batch, h, w), samples.iter().flat_map(|(_, s)| of(s)).copied().collect())
        };
        let references = 0..samples[0].0.references.len();
        let (size, reference_size) = (self.settings.size(), self.settings.reference_size());
        let texts = |of: &dyn Fn(&Row) -> String| Texts(samples.iter().map(|(r, _)| of(r)).collect());
        let has_prior: Vec<f32> =
            samples.iter().map(|(r, _)| f32::from(u8::from(!r.priors.is_empty()))).collect();
        Ok((
            images(size, &|s| &s.winner),
            images(size, &|s| &s.loser),
            List(references.clone().map(|r| images(reference_size, &move |s| &s.references[r])).collect()),
            List(
                references
                    .clone()
                    .map(|r| masks(reference_size, &move |s| &s.reference_masks[r]))
                    .collect::<Result<_, _>>()?,
            ),
            List(references.map(|r| masks(size, &move |s| &s.priors[r])).collect::<Result<_, _>>()?),
            texts(&|r| r.prompt.clone()),
            texts(&|r| r.id.clone()),
            tensor(ctx, (batch,), has_prior)?,
            tensor(ctx, (batch, Const), samples.iter().flat_map(|(_, s)| s.crop).collect())?,
            metrics,
        ))
    }

    /// The samples of a batch with the rows they come from, and how many could not be used.
    fn batch(&self, ctx: &Ctx<'_>) -> Result<(Drawn<'_>, usize), OpError> {
        let Batch { samples, spares, .. } = self.order.at(ctx.seed, ctx.node, ctx.step);
        let mut spares = spares.into_iter();
        let (mut skipped, mut last) = (0, None);
        let mut out = Vec::with_capacity(samples.len());
        for first in samples {
            let mut next = Some(first);
            loop {
                let Some(number) = next else {
                    return Err(OpError::new(format!(
                        "{}: no sample of the group is left that can be used{}",
                        self.settings.path.as_path().display(),
                        last.map_or(String::new(), |bad: BadRow| format!("; the last one was {bad}"))
                    )));
                };
                let row = &self.rows[number];
                match Sample::read(row, &self.settings) {
                    Ok(sample) => {
                        out.push((row, sample));
                        break;
                    }
                    Err(reason) if self.settings.on_bad == OnBad::Skip => {
                        skipped += 1;
                        last = Some(BadRow { line: row.line, id: row.id.clone(), reason });
                    }
                    Err(reason) => return Err(self.unusable(row, reason)),
                }
                next = spares.next();
            }
        }
        Ok((out, skipped))
    }
}

impl Operator for Pairs {
    const NAME: &'static str = "pairs";
    const DOC: &'static str = "Read preference pairs: winner, loser, references with the masks of their subjects, and \
                               where each subject is in the winner (priors, on the focus grid); \
                               also how winners came to their size (crops).";
    /// What they must not share with others is checked, and changes none of them.
    const FREE_SETTINGS: &'static [&'static str] = &["apart_from"];
    const IN: [&'static str; 0] = [];
    const OUT: [&'static str; 10] = [
        "winner",
        "loser",
        "references",
        "reference_masks",
        "priors",
        "prompts",
        "ids",
        "has_prior",
        "crops",
        "metrics",
    ];
    const METRICS: &'static [MetricDoc] = &[
        MetricDoc::number("references", "References of each sample of the batch."),
        MetricDoc::number("epoch", "Completed passes over all samples."),
        MetricDoc::number(
            "skipped",
            "Samples of the batch that could not be used and were replaced (`on_bad: skip`).",
        ),
    ];
    type Settings = PairsSettings;
    type In = ();
    type Out =
        (Images, Images, List<Images>, List<Mask>, List<Mask>, Texts, Texts, PerSample, Crops, Metrics);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: PairsSettings) -> Result<Self, OpError> {
        settings.check()?;
        let path = settings.path.as_path();
        let (rows, mut bad) = read(path).map_err(|e| OpError::new(format!("path: {e}")))?;
        let rows = with_losers(&settings, rows, &mut bad);
        let all = rows.len();
        let rows = selected(&settings, rows);
        if settings.on_bad == OnBad::Fail {
            for row in &rows {
                let fault = row.files().find_map(|f| Some((f, picture::file::regular(f).err()?)));
                if let Some((file, fault)) = fault {
                    let reason = format!("{}: {fault}", file.display());
                    bad.push(BadRow { line: row.line, id: row.id.clone(), reason });
                }
            }
            if !bad.is_empty() {
                bad.sort_by_key(|b| b.line);
                return Err(refuse(path, &bad));
            }
        }
        if rows.is_empty() {
            let why = no_samples(&settings, all, bad.len());
            return Err(OpError::new(format!("{}: {why}", path.display())));
        }
        if let Some(trained) = &settings.apart_from {
            apart::check(&rows, path, trained.as_path())?;
        }
        let order = Order::new(rows.iter().map(|r| r.references.len()), settings.batch, settings.shuffle);
        Ok(Self { left_out: all - rows.len(), rows, order, bad, settings })
    }

    fn variants(&self) -> usize {
        self.order.groups().len()
    }

    fn shapes(&self, (): InShapes<Self>, variant: usize) -> Result<OutShapes<Self>, OpError> {
        let group = self.order.groups().get(variant);
        let group = group.ok_or_else(|| OpError::internal(format!("pairs have no variant {variant}")))?;
        let batch = self.settings.batch;
        let image = |(height, width)| ImageShape { batch, height, width };
        let mask = |size| {
            let (h, w) = grid(size, self.settings.cell);
            (batch, Const, h, w)
        };
        let (size, reference_size) = (self.settings.size(), self.settings.reference_size());
        Ok((
            image(size),
            image(size),
            ListShape(vec![image(reference_size); group.references]),
            ListShape(vec![mask(reference_size); group.references]),
            ListShape(vec![mask(size); group.references]),
            TextsShape { batch },
            TextsShape { batch },
            (batch,),
            (batch, Const),
            MetricsShape,
        ))
    }

    fn cost(&self, (): &InShapes<Self>, outputs: &OutShapes<Self>) -> Cost {
        use crate::shape::PortShape;
        let pixels = (outputs.0.bytes() + outputs.1.bytes() + outputs.2.bytes()) / 3;
        Cost {
            // Decoding and scaling, some hundred operations a pixel.
            forward_flops: 100.0 * pixels as f64,
            moved_bytes: 12.0 * pixels as f64,
            scratch_bytes: self.decoding_bytes(),
            ..Cost::default()
        }
    }

    fn notes(&self, (): &InShapes<Self>) -> Vec<String> {
        self.described()
    }

    fn exports(&self) -> Vec<(String, serde_json::Value)> {
        vec![
            ("samples".into(), self.rows.len().into()),
            ("batches_per_epoch".into(), self.order.epoch().into()),
            ("left_out".into(), self.left_out.into()),
        ]
    }

    fn external(&self) -> Vec<External> {
        self.recorded()
    }

    fn samples(&self) -> Option<Vec<identity::Sample>> {
        Some(self.listed())
    }

    fn read(&self, ctx: &Ctx<'_>, samples: &[usize]) -> Result<identity::ReadBatch<Self::Out>, OpError> {
        self.read_listed(ctx, samples)
    }

    fn forward(&self, ctx: &Ctx<'_>, (): Self::In) -> Result<(Self::Out, ()), OpError> {
        let (samples, skipped) = self.batch(ctx)?;
        let references = samples[0].0.references.len();
        let mut metrics = Metrics::default();
        metrics.0.push(("references".into(), Metric::Number(references as f64)));
        metrics.number("epoch", (ctx.step / self.order.epoch()) as f64);
        metrics.number("skipped", skipped as f64);
        Ok((self.outputs(ctx, &samples, metrics)?, ()))
    }
}
