//! A transformer over the pixels of a picture.
//!
//! ```text
//! h = proj_in(norm(x))        h = block(h), one after the other        y = x + proj_out(h)
//! ```
//!
//! `N` batch, `T` pixels, `C` channels, `M = N T` rows.

use std::sync::Arc;

use super::{
    attention::Sizes,
    block::{self, BlockSaved},
    context::{Grads, Pass, Route},
    probe::Asked,
    resnet::add,
    weights::Transformer,
};
use crate::{
    device::{Device, View, ViewMut},
    error::{Error, Result},
    layers::{InputGrad, Map, Output, linears, linears_backward},
    models::checkpointing::{Keep, Kept},
};

/// What the backward of a transformer needs.
pub(super) struct TransformerSaved<D: Device> {
    x: Arc<Map<D>>,
    /// What `proj_in` reads; the backward makes it where it was not kept.
    normed: Option<Map<D>>,
    in_inner: Option<D::Buffer>,
    /// From the first block that an adapter or a derivative reaches.
    blocks: Vec<Option<KeptBlock<D>>>,
    /// What `proj_out` reads, `[M, C]`, and what its adapter makes of it.
    last: Arc<D::Buffer>,
    out_inner: Option<D::Buffer>,
}

/// All that the backward of a block needs, or what the block has read.
type KeptBlock<D> = Kept<Arc<<D as Device>::Buffer>, BlockSaved<D>>;

/// Run the transformer, whose first unit is `unit`.
pub(super) fn forward<D: Device>(
    pass: Pass<'_, D>,
    route: &Route<'_, D>,
    transformer: &Transformer<D>,
    unit: usize,
    x: Arc<Map<D>>,
    asked: &mut Asked<'_, D>,
) -> Result<(Map<D>, Option<TransformerSaved<D>>)> {
    let queue = pass.ctx.queue;
    let (rows, channels) = (x.rows(), x.channels);
    let sizes = Sizes { heads: transformer.heads, pixels: x.pixels(), channels };
    route.approach(unit)?;
    let normed = transformer.norm.run(queue, &x, false);
    let mut h = pass.take(rows * channels);
    let output = Output(&transformer.proj_in, ViewMut::new(&mut h, channels));
    let in_inner = linears(pass.ctx, rows, normed.view(), &mut [output])?;
    let normed = pass.fresh(normed, &[&transformer.proj_in]);
    let mut h = Arc::new(h);
    let mut blocks = Vec::new();
    for (i, block) in transformer.blocks.iter().enumerate() {
        let number = unit + 1 + i;
        route.approach(number)?;
        let crossing = transformer.crossing + i;
        let keep = pass.keep.if_reached(number >= route.first);
        let input = Arc::clone(&h);
        let (next, saved, looked) =
            block::forward(Pass { keep: keep.inside(), ..pass }, block, sizes, h, asked.wants(crossing))?;
        if let Some(looked) = &looked {
            asked.block(pass, crossing, &x, looked)?;
        }
        blocks.push(match saved {
            Some(saved) => Some(Kept::Inside(saved)),
            None => (keep == Keep::Input).then_some(Kept::Input(input)),
        });
        h = Arc::new(next);
    }
    route.approach(unit + 1 + transformer.blocks.len())?;
    let mut y = pass.take(rows * channels);
    let output = Output(&transformer.proj_out, ViewMut::new(&mut y, channels));
    let out_inner = linears(pass.ctx, rows, View::new(&*h, channels), &mut [output])?;
    let mut y = x.with(channels, y);
    add(queue, &mut y, &x);
    Ok((
        y,
        pass.keep.is_some().then_some(TransformerSaved { x, normed, in_inner, blocks, last: h, out_inner }),
    ))
}

/// Backward of [`forward`]: the cotangent of `x`; nothing where the way ends in this transformer.
pub(super) fn backward<D: Device>(
    pass: Pass<'_, D>,
    route: &Route<'_, D>,
    transformer: &Transformer<D>,
    unit: usize,
    saved: TransformerSaved<D>,
    mut dy: Map<D>,
    grads: &mut Grads<D>,
) -> Result<Option<Map<D>>> {
    let queue = pass.ctx.queue;
    let TransformerSaved { x, normed, in_inner, mut blocks, last, out_inner } = saved;
    let (rows, channels) = (x.rows(), x.channels);
    let sizes = Sizes { heads: transformer.heads, pixels: x.pixels(), channels };
    let ends = unit + 1 + transformer.blocks.len();
    route.approach(ends)?;
    let mut dh = pass.take(rows * channels);
    linears_backward(
        pass.ctx,
        rows,
        Some(View::new(&*last, channels)),
        out_inner.as_ref(),
        &[(&transformer.proj_out, dy.view())],
        Some(InputGrad { values: ViewMut::new(&mut dh, channels), accumulate: false }),
        &mut grads.adapter,
    )?;
    drop(last);
    let gone = || Error::Internal("a block of a transformer kept nothing for its backward".into());
    for (i, block) in transformer.blocks.iter().enumerate().rev() {
        let number = unit + 1 + i;
        if number < route.first {
            return Ok(None);
        }
        route.approach(number)?;
        let kept = blocks.pop().flatten().ok_or_else(gone)?;
        let saved = kept.saved(|x| block::again(pass, block, sizes, x))?;
        block::backward(pass, block, sizes, saved, &mut dh, grads)?;
    }
    if unit < route.first {
        return Ok(None);
    }
    route.approach(unit)?;
    let make = || pass.ctx.adapts(&transformer.proj_in).then(|| transformer.norm.run(queue, &x, false));
    let normed = normed.or_else(make);
    let mut dn = pass.take(rows * channels);
    linears_backward(
        pass.ctx,
        rows,
        normed.as_ref().map(Map::view),
        in_inner.as_ref(),
        &[(&transformer.proj_in, View::new(&dh, channels))],
        Some(InputGrad { values: ViewMut::new(&mut dn, channels), accumulate: false }),
        &mut grads.adapter,
    )?;
    drop((normed, dh));
    let dn = x.with(channels, dn);
    add(queue, &mut dy, &transformer.norm.backward(queue, &x, false, &dn));
    Ok(Some(dy))
}
