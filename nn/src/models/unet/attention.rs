//! Attention over pixels, text and image tokens, with its linears; forward, and backward into their adapters.
//!
//! ```text
//! a = softmax(q k^T / sqrt(d)) v + scale softmax(q k_ip^T / sqrt(d)) v_ip        y = out(a)
//! ```
//!
//! The second term is that of an IP-Adapter (Ye et al. 2023): the same queries over keys and values of image tokens.
//!
//! `N` batch, `T` pixels, `U` tokens with keys, `C` channels, `H` heads, `M = N T` rows.

use super::{
    context::{Grads, Pass, Tokens},
    weights::Attention,
};
use crate::{
    device::{
        self, AttentionBackward, AttentionShape, Device, HeadLayout, Kind, Queue, Scores, SplitHeads,
        SplitHeadsBackward, View, ViewMut,
    },
    error::{Error, Result},
    layers::{InputGrad, Linear, Output, linears, linears_backward},
};

/// The sizes of an attention, and what it runs in.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    /// H.
    pub heads: usize,
    /// T.
    pub pixels: usize,
    /// C.
    pub channels: usize,
}

impl Sizes {
    fn layout<D: Device>(self, pass: Pass<'_, D>, tokens: usize) -> HeadLayout {
        let (heads, dim) = (self.heads, self.channels / self.heads);
        HeadLayout { batch: pass.batch, heads, dim, stream_tokens: tokens, tokens, offset: 0 }
    }

    fn shape<D: Device>(self, pass: Pass<'_, D>, keys: usize) -> AttentionShape {
        let (heads, dim) = (self.heads, self.channels / self.heads);
        AttentionShape { batch: pass.batch, heads, tokens: self.pixels, keys, dim }
    }

    /// Rows `[N U, C]` by heads.
    fn split<D: Device>(self, pass: Pass<'_, D>, tokens: usize, rows: &D::Buffer) -> D::Buffer {
        let mut by_heads = pass.take(pass.batch * tokens * self.channels);
        let rows = View::new(rows, self.channels);
        let projection = SplitHeads { x: rows, norm: None, out: &mut by_heads };
        pass.ctx.queue.split_heads(&[self.layout(pass, tokens)], &mut [projection]);
        by_heads
    }

    /// Cotangents by heads as rows `[N U, C]`.
    fn join<D: Device>(self, pass: Pass<'_, D>, tokens: usize, by_heads: &D::Buffer) -> D::Buffer {
        let mut rows = pass.take(pass.batch * tokens * self.channels);
        let to =
            SplitHeadsBackward { d_out: by_heads, norm: None, dx: ViewMut::new(&mut rows, self.channels) };
        pass.ctx.queue.split_heads_backward(&[self.layout(pass, tokens)], &mut [to]);
        rows
    }
}

/// Keys and values by heads, and what came of them.
struct Attended<D: Device> {
    k: D::Buffer,
    v: D::Buffer,
    /// `x A^T` of the adapted linears.
    inner: Option<D::Buffer>,
    /// `[M, C]`.
    values: D::Buffer,
    /// `[N, H, T]`.
    lse: D::Buffer,
}

/// What the backward of an attention needs.
pub(super) struct AttentionSaved<D: Device> {
    /// Queries by heads, `[N, H, T, C / H]`.
    q: D::Buffer,
    q_inner: Option<D::Buffer>,
    own: Attended<D>,
    image: Option<Attended<D>>,
    out_inner: Option<D::Buffer>,
    /// What `out` has read, where it is a sum; the backward makes it where it was not kept.
    joined: Option<D::Buffer>,
}

/// What of an attention a probe may look at: queries, `[M, C]`, and the keys of image tokens, `[N U, C]`.
pub(super) struct Looked<D: Device> {
    pub q: D::Buffer,
    pub k_image: D::Buffer,
}

/// The result `[M, C]` for the normed rows `x [M, C]`, whose keys and values are of `tokens`; with `look`, what a probe may look at.
#[expect(clippy::type_complexity, reason = "the result, what is kept of it, and what is looked at")]
pub(super) fn forward<D: Device>(
    pass: Pass<'_, D>,
    attention: &Attention<D>,
    sizes: Sizes,
    x: View<'_, D>,
    tokens: Tokens<'_, D>,
    look: bool,
) -> Result<(D::Buffer, Option<AttentionSaved<D>>, Option<Looked<D>>)> {
    let (rows, channels) = (pass.batch * sizes.pixels, sizes.channels);
    let mut q_rows = pass.take(rows * channels);
    let output = Output(&attention.q, ViewMut::new(&mut q_rows, channels));
    let q_inner = linears(pass.ctx, rows, x, &mut [output])?;
    let q = sizes.split(pass, sizes.pixels, &q_rows);
    let (own, _) = attend(pass, sizes, &q, [&attention.k, &attention.v], tokens)?;
    let image = match (&attention.image, pass.image) {
        // At the scale 0 only a probe or a backward looks at it.
        (Some([k, v]), Some(tokens)) if pass.image_scale != 0.0 || pass.keep.is_some() || look => {
            Some(attend(pass, sizes, &q, [k, v], tokens)?)
        }
        _ => None,
    };
    let (image, k_image) = image.unzip();
    let joined = image.as_ref().map(|image| sum(pass, rows * channels, &own.values, &image.values));
    let all = View::new(joined.as_ref().unwrap_or(&own.values), channels);
    let mut y = pass.take(rows * channels);
    let output = Output(&attention.out, ViewMut::new(&mut y, channels));
    let out_inner = linears(pass.ctx, rows, all, &mut [output])?;
    let joined = joined.and_then(|joined| pass.fresh(joined, &[&attention.out]));
    let looked = k_image.filter(|_| look).map(|k_image| Looked { q: q_rows, k_image });
    let saved = pass.keep.is_some().then_some(AttentionSaved { q, q_inner, own, image, out_inner, joined });
    Ok((y, saved, looked))
}

/// Attention of queries by heads over the keys and values of some tokens; with it the keys as rows.
fn attend<D: Device>(
    pass: Pass<'_, D>,
    sizes: Sizes,
    q: &D::Buffer,
    [k_linear, v_linear]: [&Linear<D>; 2],
    tokens: Tokens<'_, D>,
) -> Result<(Attended<D>, D::Buffer)> {
    let (channels, keys) = (sizes.channels, pass.batch * tokens.count);
    let (mut k_rows, mut v_rows) = (pass.take(keys * channels), pass.take(keys * channels));
    let mut outputs = [
        Output(k_linear, ViewMut::new(&mut k_rows, channels)),
        Output(v_linear, ViewMut::new(&mut v_rows, channels)),
    ];
    let inner = linears(pass.ctx, keys, tokens.values, &mut outputs)?;
    let (k, v) = (sizes.split(pass, tokens.count, &k_rows), sizes.split(pass, tokens.count, &v_rows));
    drop(v_rows);
    let rows = pass.batch * sizes.pixels;
    let mut values = pass.take(rows * channels);
    let mut lse = pass.ctx.queue.take(rows * sizes.heads, Kind::Exact);
    pass.ctx.queue.attention(device::Attention {
        shape: sizes.shape(pass, tokens.count),
        query_rows: 0..sizes.pixels,
        scores: Scores::PLAIN,
        q,
        k: &k,
        v: &v,
        out: ViewMut::new(&mut values, channels),
        lse: &mut lse,
    });
    Ok((Attended { k, v, inner, values, lse }, k_rows))
}

/// `own + scale image`.
fn sum<D: Device>(pass: Pass<'_, D>, len: usize, own: &D::Buffer, image: &D::Buffer) -> D::Buffer {
    let queue = pass.ctx.queue;
    let mut all = queue.copy(View::new(own, len), len, Kind::Activation);
    queue.add_scaled(pass.image_scale, View::new(image, len), ViewMut::new(&mut all, len), len);
    all
}

/// Backward of [`forward`]: `dx [M, C]` is overwritten. `x` is read where a linear is adapted that has read it. Keys and values are of
/// `text` or else of `x` itself, and then their part of the cotangent is in it. That of image tokens is added to `grads` where it is
/// wanted; nothing that made the text's is trained.
#[expect(clippy::too_many_arguments, reason = "the operands of one layer")]
pub(super) fn backward<D: Device>(
    pass: Pass<'_, D>,
    attention: &Attention<D>,
    sizes: Sizes,
    saved: AttentionSaved<D>,
    x: Option<View<'_, D>>,
    text: Option<Tokens<'_, D>>,
    dy: View<'_, D>,
    dx: &mut D::Buffer,
    grads: &mut Grads<D>,
) -> Result<()> {
    let (rows, channels, ctx) = (pass.batch * sizes.pixels, sizes.channels, pass.ctx);
    let (queue, len) = (ctx.queue, rows * channels);
    let AttentionSaved { q, q_inner, own, image, out_inner, joined } = saved;
    let summed = || Some(sum(pass, len, &own.values, &image.as_ref()?.values));
    let joined = joined.or_else(|| ctx.adapts(&attention.out).then(summed).flatten());
    let mut d_out = pass.take(len);
    linears_backward(
        ctx,
        rows,
        Some(View::new(joined.as_ref().unwrap_or(&own.values), channels)),
        out_inner.as_ref(),
        &[(&attention.out, dy)],
        Some(InputGrad { values: ViewMut::new(&mut d_out, channels), accumulate: false }),
        &mut grads.adapter,
    )?;
    drop(joined);

    let count = text.map_or(sizes.pixels, |text| text.count);
    let of_own = Over { pass, sizes, q: &q, tokens: text.map_or(x, |text| Some(text.values)), count };
    let Cotangents { mut dq, dk, dv } = of_own.backward(&own, &d_out);
    if let Some(image) = image {
        let (Some(linears), Some(tokens)) = (&attention.image, pass.image) else {
            return Err(Error::Internal("image tokens of a pass are gone in its backward".into()));
        };
        queue.scale(pass.image_scale, ViewMut::new(&mut d_out, len), len);
        let over = Over { tokens: Some(tokens.values), count: tokens.count, ..of_own };
        let of_image = over.backward(&image, &d_out);
        queue.add_scaled(1.0, View::new(&of_image.dq, len), ViewMut::new(&mut dq, len), len);
        let [k, v] = linears;
        let width = k.inputs();
        let d_tokens = grads.image.as_mut();
        let d_tokens = d_tokens.map(|to| InputGrad { values: ViewMut::new(to, width), accumulate: true });
        let by_tokens = [of_image.dk, of_image.dv];
        over.linears_backward([k, v], &image, by_tokens, d_tokens, &mut grads.adapter)?;
    }
    drop(d_out);
    let dq = sizes.join(pass, sizes.pixels, &dq);
    linears_backward(
        ctx,
        rows,
        x,
        q_inner.as_ref(),
        &[(&attention.q, View::new(&dq, channels))],
        Some(InputGrad { values: ViewMut::new(dx, channels), accumulate: false }),
        &mut grads.adapter,
    )?;
    drop(dq);
    let of_itself = text.is_none();
    let dx = of_itself.then(|| InputGrad { values: ViewMut::new(dx, channels), accumulate: true });
    of_own.linears_backward([&attention.k, &attention.v], &own, [dk, dv], dx, &mut grads.adapter)
}

/// Cotangents by heads.
struct Cotangents<D: Device> {
    dq: D::Buffer,
    dk: D::Buffer,
    dv: D::Buffer,
}

/// An attention over some tokens, in its backward.
struct Over<'a, D: Device> {
    pass: Pass<'a, D>,
    sizes: Sizes,
    q: &'a D::Buffer,
    /// What linears of keys and values have read, where it is there.
    tokens: Option<View<'a, D>>,
    /// How many of them a sample has.
    count: usize,
}

impl<D: Device> Over<'_, D> {
    fn backward(&self, attended: &Attended<D>, d_out: &D::Buffer) -> Cotangents<D> {
        let Self { pass, sizes, q, count, .. } = *self;
        let channels = sizes.channels;
        let take = |tokens: usize| pass.take(pass.batch * tokens * channels);
        let (mut dq, mut dk, mut dv) = (take(sizes.pixels), take(count), take(count));
        pass.ctx.queue.attention_backward(AttentionBackward {
            shape: sizes.shape(pass, count),
            query_rows: 0..sizes.pixels,
            q,
            k: &attended.k,
            v: &attended.v,
            out: View::new(&attended.values, channels),
            lse: &attended.lse,
            d_out: View::new(d_out, channels),
            dq: &mut dq,
            dk: &mut dk,
            dv: &mut dv,
        });
        Cotangents { dq, dk, dv }
    }

    /// From the cotangents of keys and values to those of their linears' factors and, if it is wanted, of the tokens.
    fn linears_backward(
        &self,
        [k, v]: [&Linear<D>; 2],
        attended: &Attended<D>,
        [dk, dv]: [D::Buffer; 2],
        dx: Option<InputGrad<'_, D>>,
        grads: &mut D::Buffer,
    ) -> Result<()> {
        let Self { pass, sizes, tokens, count, .. } = *self;
        if dx.is_none() && !pass.ctx.adapts(k) && !pass.ctx.adapts(v) {
            return Ok(());
        }
        let (dk, dv) = (sizes.join(pass, count, &dk), sizes.join(pass, count, &dv));
        linears_backward(
            pass.ctx,
            pass.batch * count,
            tokens,
            attended.inner.as_ref(),
            &[(k, View::new(&dk, sizes.channels)), (v, View::new(&dv, sizes.channels))],
            dx,
            grads,
        )
    }
}
