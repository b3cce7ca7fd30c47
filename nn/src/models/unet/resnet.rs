//! Residual blocks, halvings and doublings.
//!
//! ```text
//! h = conv1(silu(norm1(x))) + time(silu(temb))        y = shortcut(x) + conv2(silu(norm2(h)))
//! ```
//!
//! `x` is what the step before gives, and behind it in the channels what was kept on the way down.
//!
//! `N` batch, `H` `W` rows and columns, `C` channels.

use std::sync::Arc;

use super::{
    context::{Grads, Pass},
    weights::Resnet,
};
use crate::{
    device::{CopyTokens, Device, Kind, Queue, View, ViewMut},
    error::{Error, Result},
    layers::{Conv, GroupNorm, Map},
    models::checkpointing::Keep,
};

/// What a residual block reads: what comes from the step before, and what was kept on the way down.
#[derive(Debug)]
pub(super) struct Inputs<D: Device> {
    pub x: Arc<Map<D>>,
    pub skip: Option<Arc<Map<D>>>,
}

impl<D: Device> Clone for Inputs<D> {
    fn clone(&self) -> Self {
        Self { x: Arc::clone(&self.x), skip: self.skip.clone() }
    }
}

impl<D: Device> Inputs<D> {
    /// Both as the channels of one picture.
    fn joined(&self, queue: &D::Queue) -> Arc<Map<D>> {
        let Some(skip) = &self.skip else { return Arc::clone(&self.x) };
        let width = self.x.channels + skip.channels;
        let mut values = queue.take(self.x.rows() * width, Kind::Activation);
        let mut at = 0;
        for part in [&self.x, skip] {
            queue.copy_tokens(CopyTokens {
                rows: part.token_rows(),
                from: (part.view(), part.pixels()),
                to: (ViewMut::new(&mut values, width).skip(at), part.pixels()),
            });
            at += part.channels;
        }
        Arc::new(self.x.with(width, values))
    }

    /// The cotangents of both from that of [`joined`](Self::joined).
    fn parted(&self, queue: &D::Queue, dx: Map<D>) -> (Map<D>, Option<Map<D>>) {
        let Some(skip) = &self.skip else { return (dx, None) };
        let part = |of: &Map<D>, at: usize| {
            let mut values = queue.take(of.len(), Kind::Activation);
            queue.copy_tokens(CopyTokens {
                rows: of.token_rows(),
                from: (dx.view().skip(at), of.pixels()),
                to: (ViewMut::new(&mut values, of.channels), of.pixels()),
            });
            of.with(of.channels, values)
        };
        (part(&self.x, 0), Some(part(skip, self.x.channels)))
    }
}

/// What the backward of a residual block needs.
#[derive(Debug)]
pub(super) struct ResnetSaved<D: Device> {
    inputs: Inputs<D>,
    /// `h`, `[N, H, W, C]`.
    middle: Map<D>,
    fresh: Fresh<D>,
}

/// What a backward makes from the rest where it was not kept.
#[derive(Debug)]
struct Fresh<D: Device> {
    /// Both inputs as the channels of one picture.
    x: Option<Arc<Map<D>>>,
    /// What the convolutions have read.
    n: [Option<Map<D>>; 2],
}

/// Run the block.
pub(super) fn forward<D: Device>(
    pass: Pass<'_, D>,
    block: &Resnet<D>,
    inputs: Inputs<D>,
) -> Result<(Map<D>, Option<ResnetSaved<D>>)> {
    let queue = pass.ctx.queue;
    let x = inputs.joined(queue);
    let [conv1, conv2] = &block.convs;
    let (middle, n) = middle(pass, block, &x)?;
    let n1 = pass.fresh(n, &[conv1.linear()]);
    let n = block.norms[1].run(queue, &middle, true);
    let mut y = conv2.run_in(pass.ctx, &n, Kind::Activation)?;
    let n = [n1, pass.fresh(n, &[conv2.linear()])];
    match &block.shortcut {
        Some(shortcut) => add(queue, &mut y, &shortcut.run_in(pass.ctx, &x, Kind::Activation)?),
        None => add(queue, &mut y, &x),
    }
    let x = Some(x).filter(|_| pass.keep == Keep::All);
    let fresh = Fresh { x, n };
    Ok((y, pass.keep.is_some().then_some(ResnetSaved { inputs, middle, fresh })))
}

/// What the backward of [`forward`] needs, from the block's inputs: nothing behind `h` is computed again, because no backward of a
/// convolution or a sum reads its result.
pub(super) fn again<D: Device>(
    pass: Pass<'_, D>,
    block: &Resnet<D>,
    inputs: Inputs<D>,
) -> Result<ResnetSaved<D>> {
    let pass = pass.again();
    let x = inputs.joined(pass.ctx.queue);
    let (middle, n) = middle(pass, block, &x)?;
    let n = [pass.fresh(n, &[block.convs[0].linear()]), None];
    Ok(ResnetSaved { inputs, middle, fresh: Fresh { x: Some(x), n } })
}

/// `h`, and what the first convolution has read.
fn middle<D: Device>(pass: Pass<'_, D>, block: &Resnet<D>, x: &Map<D>) -> Result<(Map<D>, Map<D>)> {
    let queue = pass.ctx.queue;
    let n = block.norms[0].run(queue, x, true);
    let mut middle = block.convs[0].run_in(pass.ctx, &n, Kind::Activation)?;
    let time = block.time.run(queue, pass.batch, View::new(pass.condition, block.time.inputs()))?;
    let (rows, channels) = (middle.token_rows(), middle.channels);
    queue.add_to_tokens(rows, View::new(&time, channels), ViewMut::new(&mut middle.values, channels));
    Ok((middle, n))
}

/// Backward of [`forward`]: the cotangents of what the step before gives and of what was kept on the way down.
pub(super) fn backward<D: Device>(
    pass: Pass<'_, D>,
    block: &Resnet<D>,
    saved: ResnetSaved<D>,
    dy: &Map<D>,
    grads: &mut Grads<D>,
) -> Result<(Map<D>, Option<Map<D>>)> {
    let queue = pass.ctx.queue;
    let ResnetSaved { inputs, middle, fresh: Fresh { x, n: [n1, n2] } } = saved;
    let [norm1, norm2] = &block.norms;
    let [conv1, conv2] = &block.convs;
    let (size, ctx) = ((dy.height, dy.width), pass.ctx);
    let mut by = |conv: &Conv<D>, x: Option<&Map<D>>, dy: &Map<D>| {
        let dx = conv.backward_in(ctx, x, size, dy, true, &mut grads.adapter)?;
        dx.ok_or_else(|| Error::Internal("a convolution gave no derivative by its input".into()))
    };
    // What a convolution has read, where it is adapted.
    let read = |known: Option<Map<D>>, conv: &Conv<D>, norm: &GroupNorm<D>, x: &Map<D>| {
        known.or_else(|| ctx.adapts(conv.linear()).then(|| norm.run(queue, x, true)))
    };
    let mut d = by(conv2, read(n2, conv2, norm2, &middle).as_ref(), dy)?;
    d = norm2.backward(queue, &middle, true, &d);
    drop(middle);
    let x = x.unwrap_or_else(|| inputs.joined(queue));
    let n = read(n1, conv1, norm1, &x);
    d = by(conv1, n.as_ref(), &d)?;
    drop(n);
    let mut dx = norm1.backward(queue, &x, true, &d);
    drop(d);
    match &block.shortcut {
        Some(shortcut) => add(queue, &mut dx, &by(shortcut, Some(&*x), dy)?),
        None => add(queue, &mut dx, dy),
    }
    drop(x);
    Ok(inputs.parted(queue, dx))
}

/// `x += y`.
pub(super) fn add<D: Device>(queue: &D::Queue, x: &mut Map<D>, y: &Map<D>) {
    let (width, len) = (x.channels, x.len());
    queue.add_scaled(1.0, y.view(), ViewMut::new(&mut x.values, width), len);
}
