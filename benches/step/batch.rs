//! A random batch, drawn once: a step is timed as it is where its data have been read before.
//!
//! Shape letters: `B` pairs, `C` latent channels, `G` `G` latent grid, `r` `r` latent grid of the reference, `L` text tokens, `E` text
//! width, `K` image tokens, `P` pooled width.

use std::sync::{Arc, OnceLock};

use dfdx::{shapes::Const, tensor::TensorFromVec};
use prefgraph_nn::{BackboneLayout, backbone::Time, once::get_or_try_init, sampling::scaled_linear};
use prefgraph_ops::{
    Ctx, Nothing, OpError, Operator,
    operator::{InShapes, OutShapes},
    ports::{
        ImagePrompt, ImageShape, Images, Latents, List, ListShape, Mask, Pooled, Process,
        Sizes as PictureSizes, TextTokens, TimeShape, Timesteps,
    },
};

use crate::shape::{CELL, Shape};

/// The batch of a shape. A network that sees references as image tokens has none among its latents.
pub struct Draw {
    pairs: usize,
    channels: usize,
    grid: usize,
    /// Cells of a side of the focus grid.
    focus: usize,
    reference: Option<usize>,
    text: (usize, usize),
    pooled: usize,
    process: Process,
    drawn: OnceLock<Batch>,
}

type Batch = (Latents, Latents, List<Latents>, Timesteps, TextTokens, Pooled, Images, List<Mask>);

impl Draw {
    /// For targets of so many pixels a side.
    pub fn new(shape: &Shape, layout: &BackboneLayout, pixels: usize) -> Self {
        let grid = pixels / CELL;
        Self {
            pairs: shape.pairs,
            channels: layout.channels,
            grid,
            focus: grid / layout.patch,
            reference: (!layout.image_tokens).then_some(shape.reference / CELL),
            text: (shape.text, layout.text_width),
            pooled: layout.pooled_width,
            process: match layout.time {
                Time::Sigma => Process::Flow,
                Time::Step => Process::DdpmEps,
            },
            drawn: OnceLock::new(),
        }
    }

    fn draw(&self, ctx: &Ctx<'_>) -> Result<Batch, OpError> {
        let shapes = Operator::shapes(self, (), 0)?;
        let (batch, c, g) = (self.pairs, self.channels, self.grid);
        let mut random = ctx.random_of_node("batch");
        let mut normals = |dims: &[usize]| random.normals(dims.iter().product());
        let x0_w = normals(&[batch, c, g, g]);
        let off = normals(&[batch, c, g, g]);
        let x0_l = x0_w.iter().zip(off).map(|(w, o)| w + 0.1 * o).collect();
        let references: Vec<_> = shapes.2.0.iter().map(|&r| (normals(&[r.0, r.1, r.2, r.3]), r)).collect();
        let text = normals(&[shapes.4.0, shapes.4.1, shapes.4.2]);
        let pooled = normals(&[shapes.5.0, shapes.5.1]);
        let time = |uniform: f64| match self.process {
            Process::Flow => uniform,
            _ => (uniform * scaled_linear::TIMESTEPS as f64).floor(),
        };
        let t = (0..batch).map(|_| time(random.uniform()) as f32).collect();
        let ImageShape { height, width, .. } = shapes.6;
        let bytes = batch * height * width * 3;
        let rgb = (0..bytes.div_ceil(8)).flat_map(|_| random.bits().to_le_bytes()).take(bytes).collect();
        // The subject is the upper third.
        let tokens = self.focus * self.focus;
        let prior = (0..batch * tokens).map(|i| f32::from(u8::from(i % tokens < tokens / 3))).collect();
        let host = ctx.host;
        Ok((
            host.tensor_from_vec(x0_w, shapes.0),
            host.tensor_from_vec(x0_l, shapes.1),
            List(references.into_iter().map(|(values, shape)| host.tensor_from_vec(values, shape)).collect()),
            Timesteps::new(self.process, t),
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
        let Self { pairs: batch, channels, grid, focus, reference, text, pooled, process, .. } = *self;
        let latents = (batch, channels, grid, grid);
        Ok((
            latents,
            latents,
            ListShape(reference.map(|side| (batch, channels, side, side)).into_iter().collect()),
            TimeShape { batch, process },
            (batch, text.0, text.1),
            (batch, pooled),
            ImageShape { batch, height: CELL * grid, width: CELL * grid },
            ListShape(vec![(batch, Const, focus, focus)]),
        ))
    }

    fn forward(&self, ctx: &Ctx<'_>, (): ()) -> Result<(Self::Out, ()), OpError> {
        let batch = get_or_try_init(&self.drawn, || self.draw(ctx))?;
        Ok((batch.clone(), ()))
    }
}

/// What a U-Net with an IP-Adapter takes besides: sizes of pictures, and image tokens.
pub struct DrawImagePrompt {
    pairs: usize,
    tokens: usize,
    width: usize,
    pixels: usize,
    drawn: OnceLock<ImagePrompt>,
}

impl DrawImagePrompt {
    /// For targets of so many pixels a side.
    pub fn new(shape: &Shape, layout: &BackboneLayout, pixels: usize) -> Self {
        let (pairs, tokens, width) = (shape.pairs, shape.image_tokens, layout.text_width);
        Self { pairs, tokens, width, pixels, drawn: OnceLock::new() }
    }
}

impl Operator for DrawImagePrompt {
    const NAME: &'static str = "draw-image-prompt";
    const DOC: &'static str = "Random image tokens, the same in every step, and the sizes of the pictures.";
    const IN: [&'static str; 0] = [];
    const OUT: [&'static str; 2] = ["sizes", "image_prompt"];
    type Settings = Nothing;
    type In = ();
    type Out = (PictureSizes, ImagePrompt);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(_: Nothing) -> Result<Self, OpError> {
        Err(OpError::new("the program chooses the shape of the batch"))
    }

    fn shapes(&self, (): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok(((self.pairs, Const), (self.pairs, self.tokens, self.width)))
    }

    fn forward(&self, ctx: &Ctx<'_>, (): ()) -> Result<(Self::Out, ()), OpError> {
        let (sizes, tokens) = Operator::shapes(self, (), 0)?;
        let side = self.pixels as f32;
        let of_all = [side, side, 0.0, 0.0, side, side].repeat(self.pairs);
        let drawn = get_or_try_init(&self.drawn, || {
            let values = ctx.random_of_node("tokens").normals(tokens.0 * tokens.1 * tokens.2);
            Ok::<_, OpError>(ctx.host.tensor_from_vec(values, tokens).into())
        })?;
        Ok(((ctx.host.tensor_from_vec(of_all, sizes), drawn.clone()), ()))
    }
}
