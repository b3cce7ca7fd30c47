//! A source that can be listed, an encoder that counts, and their faulty relatives.

#![allow(clippy::disallowed_methods, reason = "expected values: their last bits do not matter")]

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use prefgraph::{Graph, Wire};
use prefgraph_ops::{
    Cost, Ctx, Identity, OpError, Operator, ReadBatch, Sample,
    operator::{InShapes, OutShapes},
};

use crate::{common::*, operator};

/// Values of a sample.
pub const WIDTH: usize = 3;

/// `count` samples, shuffled in every epoch; a sample's values are those of its number, or of its file.
#[derive(Clone)]
pub struct Numbers {
    pub count: usize,
    pub batch: usize,
    /// A folder with a file `0`, `1`, ... of one number for each sample.
    pub folder: Option<PathBuf>,
    pub listed: bool,
    /// Samples that cannot be used.
    pub bad: Vec<usize>,
}

impl Numbers {
    pub fn new(count: usize, batch: usize) -> Self {
        Self { count, batch, folder: None, listed: true, bad: Vec::new() }
    }

    fn file(&self, sample: usize) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(sample.to_string()))
    }

    fn rows(&self, samples: &[usize]) -> Matrix {
        let row = |sample: &usize| {
            let text = self.file(*sample).map(|path| std::fs::read_to_string(path).unwrap());
            let value = text.map_or(*sample as f32, |text| text.trim().parse().unwrap());
            [value, value + 0.25, -value]
        };
        matrix(samples.iter().flat_map(row).collect(), samples.len(), WIDTH)
    }
}

impl Operator for Numbers {
    operator!(Numbers, "numbers", (): [] -> (Matrix,): ["x"], false);
    type Saved = ();
    fn shapes(&self, (): (), _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok(((self.batch, WIDTH),))
    }
    fn samples(&self) -> Option<Vec<Sample>> {
        let one = |n: usize| Sample {
            variant: n % 2,
            facts: n.to_string(),
            files: self.file(n).into_iter().collect(),
        };
        self.listed.then(|| (0..self.count).map(one).collect())
    }
    fn read(&self, _: &Ctx<'_>, samples: &[usize]) -> Result<ReadBatch<(Matrix,)>, OpError> {
        assert!(samples.len() <= self.batch && samples.iter().all(|s| s % 2 == samples[0] % 2));
        let good: Vec<usize> = samples.iter().copied().filter(|s| !self.bad.contains(s)).collect();
        Ok((!good.is_empty()).then(|| (good.clone(), (self.rows(&good),))))
    }
    fn forward(&self, ctx: &Ctx<'_>, (): ()) -> Result<((Matrix,), ()), OpError> {
        let first = ctx.step as usize * self.batch;
        let order = ctx.random("order").permutation(self.count);
        let samples: Vec<usize> = (first..first + self.batch).map(|i| order[i % self.count]).collect();
        Ok(((self.rows(&samples),), ()))
    }
}

/// What an encoder was asked for.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub rows: Arc<AtomicUsize>,
    pub drops: Arc<AtomicUsize>,
}

impl Counts {
    pub fn seen(&self) -> (usize, usize) {
        (self.rows.load(Ordering::SeqCst), self.drops.load(Ordering::SeqCst))
    }
}

/// A frozen function of each sample, with heavy weights.
pub struct Encoder {
    pub counts: Counts,
    pub scale: f32,
    pub weights: Option<PathBuf>,
}

/// Bytes of the weights, as the encoder states them.
pub const HEAVY: usize = 1 << 40;

impl Encoder {
    pub fn new(counts: &Counts, scale: f32) -> Self {
        Self { counts: counts.clone(), scale, weights: None }
    }

    pub fn with_weights(counts: &Counts, scale: f32, path: impl Into<PathBuf>) -> Self {
        Self { counts: counts.clone(), scale, weights: Some(path.into()) }
    }
}

impl Drop for Encoder {
    fn drop(&mut self) {
        self.counts.drops.fetch_add(1, Ordering::SeqCst);
    }
}

impl Operator for Encoder {
    operator!(Encoder, "encoder", (Matrix,): ["x"] -> (Matrix,): ["y"], false);
    type Saved = ();
    fn shapes(&self, (x,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((x,))
    }
    fn cost(&self, _: &InShapes<Self>, _: &OutShapes<Self>) -> Cost {
        Cost { resident_bytes: HEAVY, scratch_bytes: HEAVY, ..Cost::default() }
    }
    fn cacheable(&self) -> Option<Identity> {
        let identity = Identity::new().setting("scale", self.scale);
        Some(match &self.weights {
            Some(path) => identity.file("weights", path),
            None => identity,
        })
    }
    fn forward(&self, _: &Ctx<'_>, (x,): Self::In) -> Result<((Matrix,), ()), OpError> {
        use dfdx::shapes::HasShape;
        let (rows, columns) = *HasShape::shape(&x);
        self.counts.rows.fetch_add(rows, Ordering::SeqCst);
        Ok(((matrix(x.as_vec().iter().map(|v| (v * self.scale).sin()).collect(), rows, columns),), ()))
    }
}

/// Adds noise: the same for nobody.
pub struct Noisy;
impl Operator for Noisy {
    operator!(Noisy, "noisy", (Matrix,): ["x"] -> (Matrix,): ["y"], false);
    type Saved = ();
    fn shapes(&self, (x,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((x,))
    }
    fn random(&self) -> Option<String> {
        Some("it draws noise".into())
    }
    fn cacheable(&self) -> Option<Identity> {
        Some(Identity::new())
    }
    fn forward(&self, _: &Ctx<'_>, (x,): Self::In) -> Result<((Matrix,), ()), OpError> {
        Ok(((x,), ()))
    }
}

/// Source, two encoders in a row, and something that learns from them.
pub fn learner(numbers: Numbers, first: Encoder, second: Encoder) -> Graph {
    let batch = numbers.batch;
    let mut g = Graph::new("learner");
    let (x,) = g.add("x", numbers, ());
    let (encoded,) = g.add("encoded", first, (x,));
    let (twice,) = g.add("twice", second, (encoded,));
    learns(&mut g, batch, encoded, twice);
    g
}

fn learns(g: &mut Graph, batch: usize, encoded: Wire<Matrix>, twice: Wire<Matrix>) {
    let (w,) = g.add("w", Weights(batch, WIDTH), ());
    let (noisy,) = g.add("noisy", Noisy, (twice,));
    let (product,) = g.add("product", Multiply, (noisy, w));
    let miss = g.op("miss", (product, encoded), |a, b| a - b);
    let loss = mean_square(g, "loss", miss);
    let (next,) = g.add("next", Descend, (w, w.cotangent()));
    g.set_loss(loss);
    g.carry(w, next);
}
