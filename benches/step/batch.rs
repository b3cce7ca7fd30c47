//! A random batch, drawn once: a step is timed as it is where its data have been read before.
//!
//! Shape letters: `B` pairs, `G` `G` latent grid, `r` `r` latent grid of the reference, `L` text tokens, `E` text width, `P`
//! pooled width.

use std::sync::{Arc, OnceLock};

use dfdx::{shapes::Const, tensor::TensorFromVec};
use prefgraph_nn::once::get_or_try_init;
use prefgraph_ops::{
    Ctx, Nothing, OpError, Operator,
    operator::{InShapes, OutShapes},
    ports::{
        ImageShape, Images, Latents, List, ListShape, Mask, Pooled, Process, TextTokens, TimeShape, Timesteps,
    },
};

use crate::shape::{CELL, Shape};

/// Side of a token in latent cells.
const PATCH: usize = 2;
/// Channels of a latent cell.
const CHANNELS: usize = 16;

/// The batch of a shape.
pub struct Draw {
    pairs: usize,
    grid: usize,
    reference: usize,
    text: (usize, usize),
    pooled: usize,
    drawn: OnceLock<Batch>,
}

type Batch = (Latents, Latents, List<Latents>, Timesteps, TextTokens, Pooled, Images, List<Mask>);

impl Draw {
    /// For targets of so many pixels a side.
    pub fn new(shape: &Shape, pixels: usize) -> Self {
        Self {
            pairs: shape.pairs,
            grid: pixels / CELL,
            reference: shape.reference / CELL,
            text: (shape.text, shape.network.joint_attention_dim),
            pooled: shape.network.pooled_projection_dim,
            drawn: OnceLock::new(),
        }
    }

    fn draw(&self, ctx: &Ctx<'_>) -> Result<Batch, OpError> {
        let shapes = Operator::shapes(self, (), 0)?;
        let (batch, g) = (self.pairs, self.grid);
        let mut random = ctx.random_of_node("batch");
        let mut normals = |dims: &[usize]| random.normals(dims.iter().product());
        let x0_w = normals(&[batch, CHANNELS, g, g]);
        let off = normals(&[batch, CHANNELS, g, g]);
        let x0_l = x0_w.iter().zip(off).map(|(w, o)| w + 0.1 * o).collect();
        let r = shapes.2.0[0];
        let reference = normals(&[r.0, r.1, r.2, r.3]);
        let text = normals(&[shapes.4.0, shapes.4.1, shapes.4.2]);
        let pooled = normals(&[shapes.5.0, shapes.5.1]);
        let t = (0..batch).map(|_| random.uniform() as f32).collect();
        let ImageShape { height, width, .. } = shapes.6;
        let bytes = batch * height * width * 3;
        let rgb = (0..bytes.div_ceil(8)).flat_map(|_| random.bits().to_le_bytes()).take(bytes).collect();
        // The subject is the upper third.
        let tokens = (g / PATCH) * (g / PATCH);
        let prior = (0..batch * tokens).map(|i| f32::from(u8::from(i % tokens < tokens / 3))).collect();
        let host = ctx.host;
        Ok((
            host.tensor_from_vec(x0_w, shapes.0),
            host.tensor_from_vec(x0_l, shapes.1),
            List(vec![host.tensor_from_vec(reference, r)]),
            Timesteps::new(Process::Flow, t),
            host.tensor_from_vec(text, shapes.4),
            host.tensor_from_vec(pooled, shapes.5),
            Images { batch, height, width, rgb: Arc::new(rgb) },
            List(vec![host.tensor_from_vec(prior, shapes.7.0[0])]),
        ))
    }
}

impl Operator for Draw {
    const NAME: &'static str = "draw";
    const DOC: &'static str = "A random batch, the same in every step.";
    const IN: [&'static str; 0] = [];
    const OUT: [&'static str; 8] = ["x0_w", "x0_l", "references", "t", "text", "pooled", "winner", "priors"];
    type Settings = Nothing;
    type In = ();
    type Out = Batch;
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(_: Nothing) -> Result<Self, OpError> {
        Err(OpError::new("the program chooses the shape of the batch"))
    }

    fn shapes(&self, (): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        let Self { pairs: batch, grid, reference, text, pooled, .. } = *self;
        let latents = (batch, CHANNELS, grid, grid);
        Ok((
            latents,
            latents,
            ListShape(vec![(batch, CHANNELS, reference, reference)]),
            TimeShape { batch, process: Process::Flow },
            (batch, text.0, text.1),
            (batch, pooled),
            ImageShape { batch, height: CELL * grid, width: CELL * grid },
            ListShape(vec![(batch, Const, grid / PATCH, grid / PATCH)]),
        ))
    }

    fn forward(&self, ctx: &Ctx<'_>, (): ()) -> Result<(Self::Out, ()), OpError> {
        let batch = get_or_try_init(&self.drawn, || self.draw(ctx))?;
        Ok((batch.clone(), ()))
    }
}
