//! A block of a transformer over the pixels.
//!
//! ```text
//! h += own(norm1(h))    h += cross(norm2(h), text, image)    h += mlp(norm3(h))        mlp(n) = down(a gelu(b)), where [a | b] = up(n)
//! ```
//!
//! Sums go into new buffers: what a backward needs of the stream is what a block has read, and nothing is copied to keep it.
//!
//! `N` batch, `T` pixels, `C` channels, `F = 4 C`, `M = N T` rows.

use std::sync::Arc;

use super::{
    attention::{self, AttentionSaved, Looked, Sizes},
    context::{Grads, Pass, Tokens},
    weights::Block,
};
use crate::{
    device::{Device, Queue, View, ViewMut},
    error::{Error, Result},
    layers::{InputGrad, Linear, Norm, Output, inner, linears, linears_backward},
};

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
    fresh: Fresh<D>,
}

/// What a backward makes from the rest where it was not kept.
struct Fresh<D: Device> {
    /// The stream before each of the three sums, normed: `[M, C]`.
    n: [Option<D::Buffer>; 3],
    /// `a gelu(b)`, `[M, F]`.
    gated: Option<D::Buffer>,
}

/// A block up to its last linear.
struct Inside<D: Device> {
    x: [Arc<D::Buffer>; 3],
    /// What the backwards of the attentions need, if it is kept.
    own: Option<AttentionSaved<D>>,
    cross: Option<AttentionSaved<D>>,
    up: D::Buffer,
    up_inner: Option<D::Buffer>,
    n: [Option<D::Buffer>; 3],
}

impl<D: Device> Inside<D> {
    /// What the backward of the block needs, if that of its attentions was kept.
    fn saved(self, down_inner: Option<D::Buffer>, gated: Option<D::Buffer>) -> Option<BlockSaved<D>> {
        let Self { x, own, cross, up, up_inner, n } = self;
        let fresh = Fresh { n, gated };
        let (own, cross) = own.zip(cross)?;
        Some(BlockSaved { x, own, cross, up, up_inner, down_inner, fresh })
    }
}

/// The stream after a block, what its backward needs, and what a probe looks at.
#[expect(clippy::type_complexity, reason = "the result, what is kept of it, and what is looked at")]
pub(super) fn forward<D: Device>(
    pass: Pass<'_, D>,
    block: &Block<D>,
    sizes: Sizes,
    x: Arc<D::Buffer>,
    look: bool,
) -> Result<(D::Buffer, Option<BlockSaved<D>>, Option<Looked<D>>)> {
    let (rows, channels, mlp) = (pass.batch * sizes.pixels, sizes.channels, block.mlp());
    let (inside, looked) = inside(pass, block, sizes, x, look)?;
    let gated = gated(pass, (rows, mlp), &inside.up);
    let mut y = pass.take(rows * channels);
    let output = Output(&block.down, ViewMut::new(&mut y, channels));
    let down_inner = linears(pass.ctx, rows, View::new(&gated, mlp), &mut [output])?;
    let gated = pass.fresh(gated, &[&block.down]);
    let y = plus(pass, rows * channels, y, &inside.x[2]);
    Ok((y, inside.saved(down_inner, gated), looked))
}

/// What the backward of [`forward`] needs, from the block's input: the result itself is not computed again.
pub(super) fn again<D: Device>(
    pass: Pass<'_, D>,
    block: &Block<D>,
    sizes: Sizes,
    x: Arc<D::Buffer>,
) -> Result<BlockSaved<D>> {
    let (rows, mlp) = (pass.batch * sizes.pixels, block.mlp());
    let (inside, _) = inside(pass.again(), block, sizes, x, false)?;
    let gated = pass.ctx.adapts(&block.down).then(|| gated(pass, (rows, mlp), &inside.up));
    let down_inner = gated.as_ref().and_then(|x| inner(pass.ctx, rows, View::new(x, mlp), [&block.down]));
    let gone = || Error::Internal("a block that ran for its backward kept nothing".into());
    inside.saved(down_inner, gated).ok_or_else(gone)
}

/// The block up to its last linear, and what a probe looks at.
fn inside<D: Device>(
    pass: Pass<'_, D>,
    block: &Block<D>,
    sizes: Sizes,
    x: Arc<D::Buffer>,
    look: bool,
) -> Result<(Inside<D>, Option<Looked<D>>)> {
    let (rows, channels, mlp) = (pass.batch * sizes.pixels, sizes.channels, block.mlp());
    let queue = pass.ctx.queue;
    let normed = |norm: usize, x: &D::Buffer| block.norms[norm].run(queue, rows, View::new(x, channels));

    let n = normed(0, &x);
    let n_rows = View::new(&n, channels);
    let own_tokens = Tokens { values: n_rows, count: sizes.pixels };
    let (y, own, _) = attention::forward(pass, &block.own, sizes, n_rows, own_tokens, false)?;
    let own_n = pass.fresh(n, &[&block.own.q, &block.own.k, &block.own.v]);
    let middle = Arc::new(plus(pass, rows * channels, y, &x));

    let n = normed(1, &middle);
    let n_rows = View::new(&n, channels);
    let (y, cross, looked) = attention::forward(pass, &block.cross, sizes, n_rows, pass.text, look)?;
    let cross_n = pass.fresh(n, &[&block.cross.q]);
    let crossed = Arc::new(plus(pass, rows * channels, y, &middle));

    let n = normed(2, &crossed);
    let mut up = pass.take(rows * 2 * mlp);
    let output = Output(&block.up, ViewMut::new(&mut up, 2 * mlp));
    let up_inner = linears(pass.ctx, rows, View::new(&n, channels), &mut [output])?;
    let n = [own_n, cross_n, pass.fresh(n, &[&block.up])];
    Ok((Inside { x: [x, middle, crossed], own, cross, up, up_inner, n }, looked))
}

/// `y + x`, in `y`.
fn plus<D: Device>(pass: Pass<'_, D>, len: usize, mut y: D::Buffer, x: &D::Buffer) -> D::Buffer {
    pass.ctx.queue.add_scaled(1.0, View::new(x, len), ViewMut::new(&mut y, len), len);
    y
}

/// `a gelu(b)`, `[M, F]`, of `[a | b] [M, 2 F]`.
fn gated<D: Device>(pass: Pass<'_, D>, size: (usize, usize), up: &D::Buffer) -> D::Buffer {
    let (rows, mlp) = size;
    let mut gated = pass.take(rows * mlp);
    pass.ctx.queue.gated_gelu(size, View::new(up, 2 * mlp), ViewMut::new(&mut gated, mlp));
    gated
}

/// Backward of [`forward`]: `dx [M, C]`, the cotangent of its result, becomes that of its input.
pub(super) fn backward<D: Device>(
    pass: Pass<'_, D>,
    block: &Block<D>,
    sizes: Sizes,
    saved: BlockSaved<D>,
    dx: &mut D::Buffer,
    grads: &mut Grads<D>,
) -> Result<()> {
    let (rows, channels, mlp) = (pass.batch * sizes.pixels, sizes.channels, block.mlp());
    let (ctx, queue) = (pass.ctx, pass.ctx.queue);
    let BlockSaved { x: [x, middle, crossed], own, cross, up, up_inner, down_inner, fresh } = saved;
    let Fresh { n: [own_n, cross_n, up_n], gated: known } = fresh;
    let [norm1, norm2, norm3] = &block.norms;
    // What linears have read, where one of them is adapted.
    let read = |known: Option<D::Buffer>, linears: &[&Linear<D>], norm: &Norm<D>, x: View<'_, D>| {
        known.or_else(|| pass.adapts(linears).then(|| norm.run(queue, rows, x)))
    };

    let active = known.or_else(|| ctx.adapts(&block.down).then(|| gated(pass, (rows, mlp), &up)));
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
    let n = read(up_n, &[&block.up], norm3, crossed);
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
    let n = read(cross_n, &[&block.cross.q], norm2, middle);
    let (n_rows, dy) = (n.as_ref().map(|n| View::new(n, channels)), View::new(dx, channels));
    attention::backward(pass, &block.cross, sizes, cross, n_rows, Some(pass.text), dy, &mut dn, grads)?;
    drop(n);
    norm2.backward(queue, rows, middle, View::new(&dn, channels), ViewMut::new(dx, channels));

    let x = View::new(&*x, channels);
    let n = read(own_n, &[&block.own.q, &block.own.k, &block.own.v], norm1, x);
    let (n_rows, dy) = (n.as_ref().map(|n| View::new(n, channels)), View::new(dx, channels));
    attention::backward(pass, &block.own, sizes, own, n_rows, None, dy, &mut dn, grads)?;
    norm1.backward(queue, rows, x, View::new(&dn, channels), ViewMut::new(dx, channels));
    Ok(())
}
