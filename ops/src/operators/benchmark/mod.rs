//! `benchmark`: the pictures that a benchmark scores, and the photographs that they are compared with.
//!
//! ```text
//!  dreambench   subjects, prompts, listed photographs, pairs      preset    the rules of each published script
//!  survey       what is asked for, and what of it there is        mapping   pictures by the id of their case
//!  settings     what a graph says
//! ```
//!
//! Shape letters: `B` pictures of a batch.

mod dreambench;
mod mapping;
mod preset;
mod settings;
mod survey;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, path::PathBuf};

use prefgraph_nn::vision::Middle;

pub use self::{
    dreambench::{PHOTOGRAPHS, Subject},
    preset::{Compared, Drawn, Group, Layout, Mean, PRESETS, Preset},
    settings::BenchmarkSettings,
    survey::{Case, Photograph, Size, Survey, cases, photographs_of},
};
use super::pairs::Rgb;
use crate::{
    guard,
    operator::{Cost, Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{ImageShape, Images, Texts, TextsShape},
    resume::{DataSample, External},
    shape::PortShape,
    words::count,
};

/// A picture or a photograph.
struct Row {
    id: String,
    /// Empty of a photograph.
    prompt: String,
    path: PathBuf,
    size: Size,
}

/// One batch a step: photographs first, then pictures in the order of the lists, those of one size together.
pub struct Benchmark {
    settings: BenchmarkSettings,
    preset: &'static Preset,
    rows: Vec<Row>,
    /// Numbers of rows of one size, by step.
    batches: Vec<Vec<usize>>,
    /// The different shapes of batches.
    shapes: Vec<ImageShape>,
}

impl Benchmark {
    fn shape_of(rows: &[Row], batch: &[usize]) -> ImageShape {
        let (height, width) = rows[batch[0]].size;
        ImageShape { batch: batch.len(), height, width }
    }
}

impl Operator for Benchmark {
    const NAME: &'static str = "benchmark";
    const DOC: &'static str = "Read the pictures that a benchmark scores, and the photographs that it compares them with: what \
                               `graph-run evaluate` embeds and compares.";
    const IN: [&'static str; 0] = [];
    const OUT: [&'static str; 3] = ["images", "prompts", "ids"];
    type Settings = BenchmarkSettings;
    type In = ();
    type Out = (Images, Texts, Texts);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: BenchmarkSettings) -> Result<Self, OpError> {
        if settings.batch == 0 || settings.max_pixels == 0 {
            return Err(OpError::new("batch and max_pixels: at least 1 is needed"));
        }
        let survey = Survey::of(&settings)?;
        if !survey.is_complete() && !settings.incomplete {
            return Err(OpError::new(format!(
                "pictures: {}: `graph-run evaluate` lists them; `incomplete: true` scores what is there",
                survey.faults()
            )));
        }
        let photographs = survey.photographs.iter().map(|p| Row {
            id: p.id.clone(),
            prompt: String::new(),
            path: p.path.clone(),
            size: p.size,
        });
        let pictures = survey.present.iter().map(|(case, size)| {
            let case = &survey.cases[*case];
            Row { id: case.id.clone(), prompt: case.prompt.clone(), path: case.path.clone(), size: *size }
        });
        let (count, rows) = (survey.photographs.len(), photographs.chain(pictures).collect::<Vec<_>>());
        if rows.len() == count && !settings.real {
            return Err(OpError::new("pictures: none of them can be scored"));
        }
        let mut by_size: BTreeMap<(bool, Size), Vec<usize>> = BTreeMap::new();
        for (number, row) in rows.iter().enumerate() {
            by_size.entry((number >= count, row.size)).or_default().push(number);
        }
        let batches: Vec<Vec<usize>> =
            by_size.values().flat_map(|rows| rows.chunks(settings.batch).map(<[usize]>::to_vec)).collect();
        let mut shapes: Vec<ImageShape> = Vec::new();
        for batch in &batches {
            let shape = Self::shape_of(&rows, batch);
            if !shapes.contains(&shape) {
                shapes.push(shape);
            }
        }
        Ok(Self { settings, preset: survey.preset, rows, batches, shapes })
    }

    fn variants(&self) -> usize {
        self.shapes.len()
    }

    fn shapes(&self, (): InShapes<Self>, variant: usize) -> Result<OutShapes<Self>, OpError> {
        let shape = self.shapes.get(variant).cloned();
        let shape = shape.ok_or_else(|| OpError::internal(format!("no variant {variant}")))?;
        let texts = TextsShape { batch: shape.batch };
        Ok((shape, texts.clone(), texts))
    }

    fn cost(&self, (): &InShapes<Self>, outputs: &OutShapes<Self>) -> Cost {
        let pixels = outputs.0.bytes() / 3;
        Cost { forward_flops: 100.0 * pixels as f64, moved_bytes: 12.0 * pixels as f64, ..Cost::default() }
    }

    fn notes(&self, (): &InShapes<Self>) -> Vec<String> {
        let photographs = self.rows.iter().filter(|row| row.prompt.is_empty()).count();
        vec![format!(
            "{}: {} and {} in {}; `graph-run evaluate` scores them",
            self.preset.name,
            count(self.rows.len() - photographs, "picture"),
            count(photographs, "photograph"),
            count(self.batches.len(), "batch")
        )]
    }

    fn exports(&self) -> Vec<(String, serde_json::Value)> {
        let middle = match self.preset.clip_middle {
            Middle::Floor => "floor",
            Middle::Even => "even",
        };
        vec![
            ("samples".into(), self.rows.len().into()),
            ("batches_per_epoch".into(), self.batches.len().into()),
            ("dino_shortest".into(), self.preset.dino_shortest.into()),
            ("clip_middle".into(), middle.into()),
        ]
    }

    fn external(&self) -> Vec<External> {
        let sample = |row: &Row| DataSample {
            id: row.id.clone(),
            facts: format!("{:?}", row.prompt),
            files: vec![row.path.clone()],
        };
        vec![External::samples("pictures", self.rows.iter().map(sample).collect())]
    }

    fn forward(&self, ctx: &Ctx<'_>, (): Self::In) -> Result<(Self::Out, ()), OpError> {
        let batch = &self.batches[(ctx.step % self.batches.len() as u64) as usize];
        let ImageShape { batch: count, height, width } = Self::shape_of(&self.rows, batch);
        let mut rgb = Vec::with_capacity(count * height * width * 3);
        for row in batch.iter().map(|number| &self.rows[*number]) {
            let read = || Rgb::open_stored(&row.path, self.settings.max_pixels);
            let picture = guard::reason(read).map_err(OpError::new)?;
            if (picture.height, picture.width) != row.size {
                return Err(OpError::new(format!(
                    "{}: has changed while it was being scored",
                    row.path.display()
                )));
            }
            rgb.extend(picture.rgb);
        }
        let texts = |of: &dyn Fn(&Row) -> &String| {
            Texts(batch.iter().map(|number| of(&self.rows[*number]).clone()).collect())
        };
        let images = Images { batch: count, height, width, rgb: rgb.into() };
        Ok(((images, texts(&|row| &row.prompt), texts(&|row| &row.id)), ()))
    }
}
