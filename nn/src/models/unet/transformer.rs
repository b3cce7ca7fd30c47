//! A transformer over the pixels of a picture.
//!
//! ```text
//! h = proj_in(norm(x))        for every block:  h += own(norm1(h))    h += cross(norm2(h), text, image)    h += mlp(norm3(h))
//! y = x + proj_out(h)         mlp(n) = down(a gelu(b)), where [a | b] = up(n)
//! ```
//!
//! Sums go into new buffers: what a backward needs of the stream is what a block has read, and nothing is copied to keep it.
//!
//! `N` batch, `T` pixels, `C` channels, `F = 4 C`, `M = N T` rows.

use std::sync::Arc;

use super::{
    attention::{self, AttentionSaved, Looked, Sizes},
    context::{Grads, Pass, Route, Tokens},
    probe::Asked,
    resnet::add,
    weights::{Block, Transformer},
};
use crate::{
    device::{Device, Queue, View, ViewMut},
    error::{Error, Result},
    layers::{InputGrad, Map, Output, linears, linears_backward},
    models::checkpointing::{Checkpointing, Kept},
};

/// What the backward of a transformer needs.
pub(super) struct TransformerSaved<D: Device> {
    x: Arc<Map<D>>,
    in_inner: Option<D::Buffer>,
    /// From the first block that an adapter or a derivative reaches.
    blocks: Vec<Option<KeptBlock<D>>>,
    /// What `proj_out` reads, `[M, C]`, and what its adapter makes of it.
    last: Arc<D::Buffer>,
    out_inner: Option<D::Buffer>,
}

/// All that the backward of a block needs, or what the block has read.
type KeptBlock<D> = Kept<Arc<<D as Device>::Buffer>, BlockSaved<D>>;

/// What the backward of a block needs.
pub(super) struct BlockSaved<D: Device> {
    /// The stream before each of the three sums, `[M, C]`.
    x: [Arc<D::Buffer>; 3],
    own: AttentionSaved<D>,
    cross: AttentionSaved<D>,
    /// The MLP before its gate, `[M, 2 F]`.
    up: D::Buffer,
    up_inner: Option<D::Buffer>,
    down_inner: Option<D::Buffer>,
}

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
    drop(normed);
    let mut h = Arc::new(h);
    let mut blocks = Vec::new();
    for (i, block) in transformer.blocks.iter().enumerate() {
        let number = unit + 1 + i;
        route.approach(number)?;
        let crossing = transformer.crossing + i;
        let saving = pass.saving && number >= route.first;
        let input = Arc::clone(&h);
        let inside = saving && pass.checkpointing == Checkpointing::None;
        let (next, saved, looked) =
            run_block(Pass { saving: inside, ..pass }, block, sizes, h, asked.wants(crossing))?;
        if let Some(looked) = &looked {
            asked.block(pass, crossing, &x, looked)?;
        }
        blocks.push(match saved {
            Some(saved) => Some(Kept::All(saved)),
            None => saving.then_some(Kept::Input(input)),
        });
        h = Arc::new(next);
    }
    route.approach(unit + 1 + transformer.blocks.len())?;
    let mut y = pass.take(rows * channels);
    let output = Output(&transformer.proj_out, ViewMut::new(&mut y, channels));
    let out_inner = linears(pass.ctx, rows, View::new(&*h, channels), &mut [output])?;
    let mut y = x.with(channels, y);
    add(queue, &mut y, &x);
    Ok((y, pass.saving.then_some(TransformerSaved { x, in_inner, blocks, last: h, out_inner })))
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
    let TransformerSaved { x, in_inner, mut blocks, last, out_inner } = saved;
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
        let saving = Pass { saving: true, ..pass };
        let again = |x: Arc<D::Buffer>| run_block(saving, block, sizes, x, false)?.1.ok_or_else(gone);
        let saved = kept.saved(again)?;
        block_backward(pass, block, sizes, saved, &mut dh, grads)?;
    }
    if unit < route.first {
        return Ok(None);
    }
    route.approach(unit)?;
    let normed = pass.ctx.adapts(&transformer.proj_in).then(|| transformer.norm.run(queue, &x, false));
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

/// The stream after a block, what its backward needs, and what a probe looks at.
#[expect(clippy::type_complexity, reason = "the result, what is kept of it, and what is looked at")]
fn run_block<D: Device>(
    pass: Pass<'_, D>,
    block: &Block<D>,
    sizes: Sizes,
    x: Arc<D::Buffer>,
    look: bool,
) -> Result<(D::Buffer, Option<BlockSaved<D>>, Option<Looked<D>>)> {
    let (rows, channels, mlp) = (pass.batch * sizes.pixels, sizes.channels, block.mlp());
    let queue = pass.ctx.queue;
    let normed = |norm: usize, x: &D::Buffer| block.norms[norm].run(queue, rows, View::new(x, channels));
    let plus = |mut y: D::Buffer, x: &D::Buffer| {
        let (x, to) = (View::new(x, channels), ViewMut::new(&mut y, channels));
        queue.add_scaled(1.0, x, to, rows * channels);
        y
    };

    let n = normed(0, &x);
    let n_rows = View::new(&n, channels);
    let own_tokens = Tokens { values: n_rows, count: sizes.pixels };
    let (y, own, _) = attention::forward(pass, &block.own, sizes, n_rows, own_tokens, false)?;
    drop(n);
    let middle = Arc::new(plus(y, &x));

    let n = normed(1, &middle);
    let n_rows = View::new(&n, channels);
    let (y, cross, looked) = attention::forward(pass, &block.cross, sizes, n_rows, pass.text, look)?;
    drop(n);
    let crossed = Arc::new(plus(y, &middle));

    let n = normed(2, &crossed);
    let mut up = pass.take(rows * 2 * mlp);
    let output = Output(&block.up, ViewMut::new(&mut up, 2 * mlp));
    let up_inner = linears(pass.ctx, rows, View::new(&n, channels), &mut [output])?;
    drop(n);
    let gated = gated(pass, (rows, mlp), &up);
    let mut y = pass.take(rows * channels);
    let output = Output(&block.down, ViewMut::new(&mut y, channels));
    let down_inner = linears(pass.ctx, rows, View::new(&gated, mlp), &mut [output])?;
    drop(gated);
    let y = plus(y, &crossed);

    let x = [x, middle, crossed];
    let saved = own.zip(cross).map(|(own, cross)| BlockSaved { x, own, cross, up, up_inner, down_inner });
    Ok((y, saved, looked))
}

/// `a gelu(b)`, `[M, F]`, of `[a | b] [M, 2 F]`.
fn gated<D: Device>(pass: Pass<'_, D>, size: (usize, usize), up: &D::Buffer) -> D::Buffer {
    let (rows, mlp) = size;
    let mut gated = pass.take(rows * mlp);
    pass.ctx.queue.gated_gelu(size, View::new(up, 2 * mlp), ViewMut::new(&mut gated, mlp));
    gated
}

/// Backward of [`run_block`]: `dx [M, C]`, the cotangent of its result, becomes that of its input.
fn block_backward<D: Device>(
    pass: Pass<'_, D>,
    block: &Block<D>,
    sizes: Sizes,
    saved: BlockSaved<D>,
    dx: &mut D::Buffer,
    grads: &mut Grads<D>,
) -> Result<()> {
    let (rows, channels, mlp) = (pass.batch * sizes.pixels, sizes.channels, block.mlp());
    let (ctx, queue) = (pass.ctx, pass.ctx.queue);
    let BlockSaved { x: [x, middle, crossed], own, cross, up, up_inner, down_inner } = saved;
    let [norm1, norm2, norm3] = &block.norms;

    let active = ctx.adapts(&block.down).then(|| gated(pass, (rows, mlp), &up));
    let mut d_active = pass.take(rows * mlp);
    linears_backward(
        ctx,
        rows,
        active.as_ref().map(|x| View::new(x, mlp)),
        down_inner.as_ref(),
        &[(&block.down, View::new(dx, channels))],
        Some(InputGrad { values: ViewMut::new(&mut d_active, mlp), accumulate: false }),
        &mut grads.adapter,
    )?;
    drop(active);
    let mut d_up = pass.take(rows * 2 * mlp);
    let (d_rows, to) = (View::new(&d_active, mlp), ViewMut::new(&mut d_up, 2 * mlp));
    queue.gated_gelu_backward((rows, mlp), View::new(&up, 2 * mlp), d_rows, to);
    drop((d_active, up));
    let crossed = View::new(&*crossed, channels);
    let n = ctx.adapts(&block.up).then(|| norm3.run(queue, rows, crossed));
    let mut dn = pass.take(rows * channels);
    linears_backward(
        ctx,
        rows,
        n.as_ref().map(|n| View::new(n, channels)),
        up_inner.as_ref(),
        &[(&block.up, View::new(&d_up, 2 * mlp))],
        Some(InputGrad { values: ViewMut::new(&mut dn, channels), accumulate: false }),
        &mut grads.adapter,
    )?;
    drop((n, d_up));
    norm3.backward(queue, rows, crossed, View::new(&dn, channels), ViewMut::new(dx, channels));

    let middle = View::new(&*middle, channels);
    let n = norm2.run(queue, rows, middle);
    let (n_rows, dy) = (View::new(&n, channels), View::new(dx, channels));
    attention::backward(pass, &block.cross, sizes, cross, n_rows, pass.text, false, dy, &mut dn, grads)?;
    norm2.backward(queue, rows, middle, View::new(&dn, channels), ViewMut::new(dx, channels));

    let x = View::new(&*x, channels);
    let n = norm1.run(queue, rows, x);
    let (n_rows, dy) = (View::new(&n, channels), View::new(dx, channels));
    let tokens = Tokens { values: n_rows, count: sizes.pixels };
    attention::backward(pass, &block.own, sizes, own, n_rows, tokens, true, dy, &mut dn, grads)?;
    norm1.backward(queue, rows, x, View::new(&dn, channels), ViewMut::new(dx, channels));
    Ok(())
}
