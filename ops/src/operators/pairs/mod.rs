//! `pairs`: preference pairs from a `pairs.jsonl` and picture files.
//!
//! Shape letters: `B` batch, `R` references of each sample of the batch, `h` `w` focus grid of a picture.

mod apart;
mod check;
mod geometry;
mod listed;
mod order;
mod picture;
mod row;
#[cfg(test)]
mod tests;

use std::path::Path;

use dfdx::shapes::Const;

pub use self::{
    check::{Report, check},
    geometry::CELL,
    order::{Batch, Group, Order},
    picture::{Foreground, Rgb},
    row::{BadRow, Reference, Row, read},
};
use super::tensors::{mask, tensor};
use crate::{
    choices, identity,
    operator::{Cost, Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{
        ImageShape, Images, List, ListShape, Mask, Metric, MetricDoc, Metrics, MetricsShape, PerSample,
        Texts, TextsShape,
    },
    settings,
    settings::DataPath,
};

choices! {
    /// What becomes of a sample whose pictures cannot be used.
    pub enum OnBad {
        /// The run stops and names it.
        Fail = "fail",
        /// The next usable sample of its group takes its place, and it is counted.
        Skip = "skip",
    }
}

settings! {
    /// Settings of [`Pairs`].
    pub struct PairsSettings {
        /// The `pairs.jsonl`; paths in it are relative to it.
        pub path: DataPath = DataPath::default(),
        /// Rows of pixels of winner and loser, a multiple of 16.
        pub height: usize = 512,
        /// Columns of pixels of winner and loser, a multiple of 16.
        pub width: usize = 512,
        /// Rows of pixels of a reference, a multiple of 16; `height` where it is not given.
        pub reference_height: Option<usize> = None,
        /// Columns of pixels of a reference, a multiple of 16; `width` where it is not given.
        pub reference_width: Option<usize> = None,
        /// Pairs in a batch.
        pub batch: usize = 1,
        /// Is the order drawn anew in every epoch?
        pub shuffle: bool = true,
        /// Use only samples with these numbers of references; all where it is empty.
        pub reference_counts: Vec<usize> = Vec::new(),
        /// Use only the first so many of these samples, e.g. always the same ones for previews.
        pub first: Option<usize> = None,
        /// What becomes of a sample whose pictures cannot be used.
        pub on_bad: OnBad = OnBad::Fail,
        /// Of held-out pairs: the file that is trained on. A sample with a winner of that file is refused.
        pub apart_from: Option<DataPath> = None,
    }
}

/// Batches of preference pairs. A picture is scaled until it covers its size and cut out of the middle, and its masks
/// with it; nothing is flipped.
pub struct Pairs {
    settings: PairsSettings,
    rows: Vec<Row>,
    order: Order,
    left_out: usize,
}

/// A decoded sample.
struct Sample {
    winner: Vec<u8>,
    loser: Vec<u8>,
    references: Vec<Vec<u8>>,
    reference_masks: Vec<Vec<f32>>,
    priors: Vec<Vec<f32>>,
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
    OpError::new(message)
}

impl Pairs {
    fn size(&self) -> (usize, usize) {
        (self.settings.height, self.settings.width)
    }

    fn reference_size(&self) -> (usize, usize) {
        let s = &self.settings;
        (s.reference_height.unwrap_or(s.height), s.reference_width.unwrap_or(s.width))
    }

    fn grid((height, width): (usize, usize)) -> (usize, usize) {
        (height / CELL, width / CELL)
    }

    /// A picture at the size of training, and its masks on the grid.
    fn picture(
        path: &Path,
        masks: &[&Path],
        size: (usize, usize),
    ) -> Result<(Vec<u8>, Vec<Vec<f32>>), String> {
        let picture = Rgb::open(path)?;
        let shape = (picture.height, picture.width);
        let mut cells = Vec::with_capacity(masks.len());
        for path in masks {
            let mask = Foreground::open(path)?;
            let found = (mask.height, mask.width);
            if !geometry::same_shape(found, shape) {
                return Err(format!(
                    "{}: is {}x{}, its picture {}x{}: a mask may be of another resolution, but not of another shape",
                    path.display(),
                    found.0,
                    found.1,
                    shape.0,
                    shape.1
                ));
            }
            cells.push(geometry::on_grid(&mask, size).map_err(|e| format!("{}: {e}", path.display()))?);
        }
        Ok((geometry::fitted(picture, size), cells))
    }

    fn sample(&self, row: &Row) -> Result<Sample, String> {
        let priors: Vec<&Path> = row.priors.iter().map(AsRef::as_ref).collect();
        let (winner, mut priors) = Self::picture(&row.winner, &priors, self.size())?;
        let (loser, _) = Self::picture(&row.loser, &[], self.size())?;
        let cells = |(h, w): (usize, usize)| h * w;
        if row.priors.is_empty() {
            priors = vec![vec![1.0; cells(Self::grid(self.size()))]; row.references.len()];
        }
        let (mut references, mut reference_masks) = (Vec::new(), Vec::new());
        for reference in &row.references {
            let masks: Vec<&Path> = reference.mask.iter().map(AsRef::as_ref).collect();
            let (picture, mut mask) = Self::picture(&reference.image, &masks, self.reference_size())?;
            references.push(picture);
            reference_masks
                .push(mask.pop().unwrap_or_else(|| vec![1.0; cells(Self::grid(self.reference_size()))]));
        }
        Ok(Sample { winner, loser, references, reference_masks, priors })
    }

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
        let images = |(height, width): (usize, usize), of: &dyn Fn(&Sample) -> &[u8]| Images {
            batch,
            height,
            width,
            rgb: samples.iter().flat_map(|(_, s)| of(s)).copied().collect::<Vec<u8>>().into(),
        };
        let masks = |size, of: &dyn Fn(&Sample) -> &[f32]| -> Result<Mask, OpError> {
            let (h, w) = Self::grid(size);
            mask(ctx, (batch, h, w), samples.iter().flat_map(|(_, s)| of(s)).copied().collect())
        };
        let references = 0..samples[0].0.references.len();
        let (size, reference_size) = (self.size(), self.reference_size());
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
            metrics,
        ))
    }

    /// The samples of a batch with the rows they come from, and how many could not be used.
    fn batch(&self, ctx: &Ctx<'_>) -> Result<(Drawn<'_>, usize), OpError> {
        let Batch { samples, spares, .. } = self.order.at(ctx.seed, ctx.node, ctx.step);
        let mut spares = spares.into_iter();
        let mut skipped = 0;
        let mut out = Vec::with_capacity(samples.len());
        for first in samples {
            let mut next = Some(first);
            loop {
                let Some(number) = next else {
                    return Err(OpError::new(format!(
                        "{}: no sample of the group is left that can be used",
                        self.settings.path.as_path().display()
                    )));
                };
                let row = &self.rows[number];
                match self.sample(row) {
                    Ok(sample) => {
                        out.push((row, sample));
                        break;
                    }
                    Err(_) if self.settings.on_bad == OnBad::Skip => skipped += 1,
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
                               where each subject is in the winner (priors, on the focus grid of 16x16 pixels).";
    const IN: [&'static str; 0] = [];
    const OUT: [&'static str; 9] = [
        "winner",
        "loser",
        "references",
        "reference_masks",
        "priors",
        "prompts",
        "ids",
        "has_prior",
        "metrics",
    ];
    const METRICS: &'static [MetricDoc] = &[
        MetricDoc::number("references", "References of each sample of the batch."),
        MetricDoc::number("epoch", "Times that all samples have been seen."),
        MetricDoc::number(
            "skipped",
            "Samples of the batch that could not be used and were replaced (`on_bad: skip`).",
        ),
    ];
    type Settings = PairsSettings;
    type In = ();
    type Out = (Images, Images, List<Images>, List<Mask>, List<Mask>, Texts, Texts, PerSample, Metrics);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: PairsSettings) -> Result<Self, OpError> {
        let s = &settings;
        if s.path.is_empty() {
            return Err(OpError::new("path: a pairs.jsonl is needed"));
        }
        for (name, count) in [("batch", Some(s.batch)), ("first", s.first)] {
            if count == Some(0) {
                return Err(OpError::new(format!("{name}: at least 1 is needed")));
            }
        }
        for (name, side) in [
            ("height", Some(s.height)),
            ("width", Some(s.width)),
            ("reference_height", s.reference_height),
            ("reference_width", s.reference_width),
        ] {
            if let Some(side) = side.filter(|side| *side == 0 || !side.is_multiple_of(CELL)) {
                return Err(OpError::new(format!(
                    "{name} is {side}: a positive multiple of {CELL} is needed"
                )));
            }
        }
        let path = s.path.as_path();
        let (mut rows, mut bad) = read(path).map_err(OpError::new)?;
        let all = rows.len();
        if !s.reference_counts.is_empty() {
            rows.retain(|r| s.reference_counts.contains(&r.references.len()));
        }
        rows.truncate(s.first.unwrap_or(all));
        if s.on_bad == OnBad::Fail {
            for row in &rows {
                if let Some(file) = row.files().find(|f| !f.is_file()) {
                    let reason = format!("{}: there is no such file", file.display());
                    bad.push(BadRow { line: row.line, id: row.id.clone(), reason });
                }
            }
        }
        if !bad.is_empty() {
            bad.sort_by_key(|b| b.line);
            return Err(refuse(path, &bad));
        }
        if rows.is_empty() {
            return Err(OpError::new(format!(
                "{}: no samples{}",
                path.display(),
                if all > 0 {
                    format!(" with {:?} references among {all}", s.reference_counts)
                } else {
                    String::new()
                }
            )));
        }
        if let Some(trained) = &s.apart_from {
            apart::check(&rows, path, trained.as_path())?;
        }
        let order = Order::new(rows.iter().map(|r| r.references.len()), s.batch, s.shuffle);
        Ok(Self { left_out: all - rows.len(), rows, order, settings })
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
            let (h, w) = Self::grid(size);
            (batch, Const, h, w)
        };
        Ok((
            image(self.size()),
            image(self.size()),
            ListShape(vec![image(self.reference_size()); group.references]),
            ListShape(vec![mask(self.reference_size()); group.references]),
            ListShape(vec![mask(self.size()); group.references]),
            TextsShape { batch },
            TextsShape { batch },
            (batch,),
            MetricsShape,
        ))
    }

    fn cost(&self, (): &InShapes<Self>, outputs: &OutShapes<Self>) -> Cost {
        use crate::shape::PortShape;
        let pixels = (outputs.0.bytes() + outputs.1.bytes() + outputs.2.bytes()) / 3;
        // Decoding and scaling, some hundred operations a pixel.
        Cost { forward_flops: 100.0 * pixels as f64, moved_bytes: 12.0 * pixels as f64, ..Cost::default() }
    }

    fn notes(&self, (): &InShapes<Self>) -> Vec<String> {
        let without = self.rows.iter().filter(|r| r.priors.is_empty()).count();
        let mut notes = vec![format!(
            "{} samples, {} batches of {} an epoch, {}x{} pixels, references {}x{}",
            self.rows.len(),
            self.order.epoch(),
            self.settings.batch,
            self.settings.height,
            self.settings.width,
            self.reference_size().0,
            self.reference_size().1
        )];
        notes.extend(
            self.order
                .groups()
                .iter()
                .map(|g| format!("{} references: {} samples", g.references, g.samples.len())),
        );
        if without > 0 {
            notes.push(format!("{without} samples have no prior: they are trained with plain DPO"));
        }
        let trained = self.settings.apart_from.as_ref();
        notes.extend(trained.and_then(|t| apart::note(self.settings.path.as_path(), t.as_path())));
        if self.left_out > 0 {
            notes.push(format!("{} samples are left out by `reference_counts` or `first`", self.left_out));
        }
        notes
    }

    fn exports(&self) -> Vec<(String, serde_json::Value)> {
        vec![
            ("samples".into(), self.rows.len().into()),
            ("batches_per_epoch".into(), self.order.epoch().into()),
            ("left_out".into(), self.left_out.into()),
        ]
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
