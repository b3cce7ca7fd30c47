//! A pass of a resampler, forward, and backward into the factors of its linears.
//!
//! ```text
//! x = first(tokens)        for every layer:  n = norm(q)    q += attention(n; norm(x), n)    q += down(gelu(up(norm(q))))
//! y = norm(last(q))
//! ```
//!
//! The letters are those of the module above; `R = B Q` rows of queries, `U = T + Q` tokens that queries look at.

use super::network::{Layer, ResamplerNetwork};
use crate::{
    cpu::map::check_lengths,
    device::{
        self, Activation, AttentionBackward, AttentionShape, CopyTokens, Device, HeadLayout, Kind, Queue,
        Scores, SplitHeads, SplitHeadsBackward, TokenRows, View, ViewMut,
    },
    error::Result,
    layers::{Context, InputGrad, Linear, Output, linears, linears_backward},
};

/// What the backward of a pass needs.
pub(crate) struct ResamplerSaved<D: Device> {
    /// B and T.
    sizes: (usize, usize),
    /// The encoder's tokens, `[B T, I]`.
    tokens: D::Buffer,
    first_inner: Option<D::Buffer>,
    /// `[B T, E]`.
    x: D::Buffer,
    layers: Vec<LayerSaved<D>>,
    /// The queries behind the last layer, `[R, E]`, and what `last` makes of them, `[R, W]`.
    queries: D::Buffer,
    last_inner: Option<D::Buffer>,
    last: D::Buffer,
}

/// What the backward of a layer needs.
struct LayerSaved<D: Device> {
    /// The queries before each of the two sums, `[R, E]`.
    before: [D::Buffer; 2],
    /// By heads: `[B, H, Q, D]`, and twice `[B, H, U, D]`.
    heads: [D::Buffer; 3],
    q_inner: Option<D::Buffer>,
    kv_inner: Option<D::Buffer>,
    /// `[R, H D]`.
    values: D::Buffer,
    /// `[B, H, Q]`.
    lse: D::Buffer,
    out_inner: Option<D::Buffer>,
    /// The MLP before its activation, `[R, M]`.
    up: D::Buffer,
    up_inner: Option<D::Buffer>,
    down_inner: Option<D::Buffer>,
}

/// The sizes of a pass: B, T and Q.
#[derive(Clone, Copy)]
struct Sizes {
    pictures: usize,
    tokens: usize,
    queries: usize,
}

impl Sizes {
    fn keys(self) -> usize {
        self.tokens + self.queries
    }

    /// Rows of queries.
    fn rows(self) -> usize {
        self.pictures * self.queries
    }
}

impl<D: Device> ResamplerNetwork<D> {
    /// The prompts `[B, Q, W]` of pictures from the tokens of their encoder, `[B, T, I]`; with `saving`, what the backward needs.
    ///
    /// # Errors
    /// If the device has no room for a weight.
    pub fn forward(
        &self,
        ctx: Context<'_, D>,
        (pictures, count): (usize, usize),
        tokens: D::Buffer,
        saving: bool,
    ) -> Result<(D::Buffer, Option<ResamplerSaved<D>>)> {
        let (queue, s) = (ctx.queue, &self.sizes);
        let sizes = Sizes { pictures, tokens: count, queries: s.queries };
        let (x, first_inner) = apply(ctx, &self.first, pictures * count, &tokens)?;
        let rows = sizes.rows();
        let mut queries = queue.fill(rows * s.width, Kind::Activation, |all| {
            all.chunks_exact_mut(s.queries * s.width).for_each(|of| of.copy_from_slice(&self.queries));
        });
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            check_lengths()?;
            layers.extend(layer.forward(ctx, sizes, &x, &mut queries, saving)?);
        }
        let (last, last_inner) = apply(ctx, &self.last, rows, &queries)?;
        let y = self.norm.run(queue, rows, View::new(&last, s.output));
        let saved = saving.then_some(ResamplerSaved {
            sizes: (pictures, count),
            tokens,
            first_inner,
            x,
            layers,
            queries,
            last_inner,
            last,
        });
        Ok((y, saved))
    }

    /// Backward of [`forward`](Self::forward), from the cotangent of the prompts, `[B, Q, W]`: the derivative by the factors of its
    /// linears goes into `grads`.
    ///
    /// # Errors
    /// As there.
    pub fn backward(
        &self,
        ctx: Context<'_, D>,
        saved: ResamplerSaved<D>,
        dy: &D::Buffer,
        grads: &mut D::Buffer,
    ) -> Result<()> {
        let (queue, s) = (ctx.queue, &self.sizes);
        let ResamplerSaved { sizes: (pictures, count), tokens, first_inner, x, layers, .. } = saved;
        let sizes = Sizes { pictures, tokens: count, queries: s.queries };
        let (rows, e, w) = (sizes.rows(), s.width, s.output);
        let mut d_last = queue.zeros(rows * w, Kind::Activation);
        let last = View::new(&saved.last, w);
        self.norm.backward(queue, rows, last, View::new(dy, w), ViewMut::new(&mut d_last, w));
        let mut d_queries = queue.take(rows * e, Kind::Activation);
        linears_backward(
            ctx,
            rows,
            Some(View::new(&saved.queries, e)),
            saved.last_inner.as_ref(),
            &[(&self.last, View::new(&d_last, w))],
            Some(InputGrad { values: ViewMut::new(&mut d_queries, e), accumulate: false }),
            grads,
        )?;
        drop(d_last);
        // Of the tokens, only where something is trained that made them.
        let mut dx = ctx.adapts(&self.first).then(|| queue.zeros(pictures * count * e, Kind::Activation));
        for (layer, saved) in self.layers.iter().zip(layers).rev() {
            layer.backward(ctx, sizes, saved, &x, (&mut d_queries, dx.as_mut()), grads)?;
        }
        let Some(dx) = dx else { return Ok(()) };
        let tokens = Some(View::new(&tokens, s.input));
        let outputs = [(&self.first, View::new(&dx, e))];
        linears_backward(ctx, pictures * count, tokens, first_inner.as_ref(), &outputs, None, grads)
    }
}

/// The result of a linear for `rows` rows without gaps, and what its factor A makes of them.
fn apply<D: Device>(
    ctx: Context<'_, D>,
    linear: &Linear<D>,
    rows: usize,
    x: &D::Buffer,
) -> Result<(D::Buffer, Option<D::Buffer>)> {
    let width = linear.outputs();
    let mut y = ctx.queue.take(rows * width, Kind::Activation);
    let output = Output(linear, ViewMut::new(&mut y, width));
    let inner = linears(ctx, rows, View::new(x, linear.inputs()), &mut [output])?;
    Ok((y, inner))
}

impl<D: Device> Layer<D> {
    /// Add attention and MLP to the queries `[R, E]`, which look at the tokens `x [B T, E]` and at themselves.
    fn forward(
        &self,
        ctx: Context<'_, D>,
        sizes: Sizes,
        x: &D::Buffer,
        queries: &mut D::Buffer,
        saving: bool,
    ) -> Result<Option<LayerSaved<D>>> {
        let queue = ctx.queue;
        let (e, m, rows) = (self.down.outputs(), self.up.outputs(), sizes.rows());
        let keep = |of: &D::Buffer| saving.then(|| queue.copy(View::new(of, e), rows * e, Kind::Activation));
        let first = keep(queries);
        let normed = self.query_norm.run(queue, rows, View::new(queries, e));
        let seen = self.seen(queue, sizes, x, &normed);
        let (q, q_inner) = apply(ctx, &self.attention.q, rows, &normed)?;
        let q = self.split(queue, (sizes.pictures, sizes.queries), q);
        let (keys, inner) = (sizes.pictures * sizes.keys(), self.attention.k.outputs());
        let mut projected = [(); 2].map(|()| queue.take(keys * inner, Kind::Activation));
        let [k, v] = &mut projected;
        let mut outputs = [
            Output(&self.attention.k, ViewMut::new(k, inner)),
            Output(&self.attention.v, ViewMut::new(v, inner)),
        ];
        let kv_inner = linears(ctx, keys, View::new(&seen, e), &mut outputs)?;
        let [k, v] = projected.map(|of| self.split(queue, (sizes.pictures, sizes.keys()), of));
        drop((normed, seen));
        let mut values = queue.take(rows * inner, Kind::Activation);
        let mut lse = queue.take(rows * self.attention.heads, Kind::Exact);
        // Published code scales queries and keys by the fourth root each, which keeps f16 in range and is the same in f32.
        queue.attention(device::Attention {
            shape: self.shape(sizes),
            query_rows: 0..sizes.queries,
            scores: Scores::PLAIN,
            q: &q,
            k: &k,
            v: &v,
            out: ViewMut::new(&mut values, inner),
            lse: &mut lse,
        });
        let (out, out_inner) = apply(ctx, &self.attention.out, rows, &values)?;
        queue.add_scaled(1.0, View::new(&out, e), ViewMut::new(queries, e), rows * e);
        drop(out);

        let second = keep(queries);
        let normed = self.mlp_norm.run(queue, rows, View::new(queries, e));
        let (up, up_inner) = apply(ctx, &self.up, rows, &normed)?;
        drop(normed);
        let active = active::<D>(queue, (rows, m), &up);
        let (out, down_inner) = apply(ctx, &self.down, rows, &active)?;
        queue.add_scaled(1.0, View::new(&out, e), ViewMut::new(queries, e), rows * e);
        Ok(first.zip(second).map(|(first, second)| LayerSaved {
            before: [first, second],
            heads: [q, k, v],
            q_inner,
            kv_inner,
            values,
            lse,
            out_inner,
            up,
            up_inner,
            down_inner,
        }))
    }

    /// Backward of [`forward`](Self::forward): `d [R, E]`, the cotangent of the queries behind the layer, becomes that of those before
    /// it; the part of the tokens is added to `dx [B T, E]`, where it is wanted.
    fn backward(
        &self,
        ctx: Context<'_, D>,
        sizes: Sizes,
        saved: LayerSaved<D>,
        x: &D::Buffer,
        (d, dx): (&mut D::Buffer, Option<&mut D::Buffer>),
        grads: &mut D::Buffer,
    ) -> Result<()> {
        let (queue, rows, e) = (ctx.queue, sizes.rows(), self.down.outputs());
        let LayerSaved { before: [first, second], up, .. } = &saved;
        self.mlp_backward(ctx, rows, (up, second), &saved, d, grads)?;

        let inner = self.attention.q.outputs();
        let mut d_values = queue.take(rows * inner, Kind::Activation);
        linears_backward(
            ctx,
            rows,
            Some(View::new(&saved.values, inner)),
            saved.out_inner.as_ref(),
            &[(&self.attention.out, View::new(d, e))],
            Some(InputGrad { values: ViewMut::new(&mut d_values, inner), accumulate: false }),
            grads,
        )?;
        let [dq, dk, dv] = self.attention_backward(queue, sizes, &saved, &d_values);
        drop(d_values);
        let normed = self.query_norm.run(queue, rows, View::new(first, e));
        let mut dn = queue.take(rows * e, Kind::Activation);
        linears_backward(
            ctx,
            rows,
            Some(View::new(&normed, e)),
            saved.q_inner.as_ref(),
            &[(&self.attention.q, View::new(&dq, inner))],
            Some(InputGrad { values: ViewMut::new(&mut dn, e), accumulate: false }),
            grads,
        )?;
        let seen = self.seen(queue, sizes, x, &normed);
        let keys = sizes.pictures * sizes.keys();
        let mut d_seen = queue.take(keys * e, Kind::Activation);
        linears_backward(
            ctx,
            keys,
            Some(View::new(&seen, e)),
            saved.kv_inner.as_ref(),
            &[(&self.attention.k, View::new(&dk, inner)), (&self.attention.v, View::new(&dv, inner))],
            Some(InputGrad { values: ViewMut::new(&mut d_seen, e), accumulate: false }),
            grads,
        )?;
        drop((normed, seen, dq, dk, dv));
        let part = |count: usize, at: usize| {
            let mut part = queue.take(sizes.pictures * count * e, Kind::Activation);
            queue.copy_tokens(CopyTokens {
                rows: TokenRows { batch: sizes.pictures, tokens: count, width: e },
                from: (View::new(&d_seen, e).skip(at * e), sizes.keys()),
                to: (ViewMut::new(&mut part, e), count),
            });
            part
        };
        let own = part(sizes.queries, sizes.tokens);
        queue.add_scaled(1.0, View::new(&own, e), ViewMut::new(&mut dn, e), rows * e);
        self.query_norm.backward(queue, rows, View::new(first, e), View::new(&dn, e), ViewMut::new(d, e));
        if let Some(dx) = dx {
            let of_tokens = part(sizes.tokens, 0);
            let (x, dn) = (View::new(x, e), View::new(&of_tokens, e));
            let count = sizes.pictures * sizes.tokens;
            self.picture_norm.backward(queue, count, x, dn, ViewMut::new(dx, e));
        }
        Ok(())
    }

    /// Adds the MLP's part to the cotangent `d [R, E]`.
    fn mlp_backward(
        &self,
        ctx: Context<'_, D>,
        rows: usize,
        (up, before): (&D::Buffer, &D::Buffer),
        saved: &LayerSaved<D>,
        d: &mut D::Buffer,
        grads: &mut D::Buffer,
    ) -> Result<()> {
        let (queue, e, m) = (ctx.queue, self.down.outputs(), self.up.outputs());
        let active = ctx.adapts(&self.down).then(|| active::<D>(queue, (rows, m), up));
        let mut d_active = queue.take(rows * m, Kind::Activation);
        linears_backward(
            ctx,
            rows,
            active.as_ref().map(|x| View::new(x, m)),
            saved.down_inner.as_ref(),
            &[(&self.down, View::new(d, e))],
            Some(InputGrad { values: ViewMut::new(&mut d_active, m), accumulate: false }),
            grads,
        )?;
        drop(active);
        let d_up = gelu_backward::<D>(queue, (rows, m), up, &d_active);
        drop(d_active);
        let before = View::new(before, e);
        let normed = ctx.adapts(&self.up).then(|| self.mlp_norm.run(queue, rows, before));
        let mut dn = queue.take(rows * e, Kind::Activation);
        linears_backward(
            ctx,
            rows,
            normed.as_ref().map(|n| View::new(n, e)),
            saved.up_inner.as_ref(),
            &[(&self.up, View::new(&d_up, m))],
            Some(InputGrad { values: ViewMut::new(&mut dn, e), accumulate: false }),
            grads,
        )?;
        self.mlp_norm.backward(queue, rows, before, View::new(&dn, e), ViewMut::new(d, e));
        Ok(())
    }

    /// The cotangents of queries, keys and values as rows, `[R, H D]` and twice `[B U, H D]`.
    fn attention_backward(
        &self,
        queue: &D::Queue,
        sizes: Sizes,
        saved: &LayerSaved<D>,
        d_values: &D::Buffer,
    ) -> [D::Buffer; 3] {
        let (inner, counts) = (self.attention.q.outputs(), [sizes.queries, sizes.keys(), sizes.keys()]);
        let mut by_heads = counts.map(|count| queue.take(sizes.pictures * count * inner, Kind::Activation));
        let ([q, k, v], [dq, dk, dv]) = (&saved.heads, &mut by_heads);
        queue.attention_backward(AttentionBackward {
            shape: self.shape(sizes),
            query_rows: 0..sizes.queries,
            q,
            k,
            v,
            out: View::new(&saved.values, inner),
            lse: &saved.lse,
            d_out: View::new(d_values, inner),
            dq,
            dk,
            dv,
        });
        let mut counts = counts.into_iter();
        by_heads.map(|by_heads| {
            let count = counts.next().unwrap_or(0);
            let mut rows = queue.take(sizes.pictures * count * inner, Kind::Activation);
            let to = SplitHeadsBackward { d_out: &by_heads, norm: None, dx: ViewMut::new(&mut rows, inner) };
            queue.split_heads_backward(&[self.layout((sizes.pictures, count))], &mut [to]);
            rows
        })
    }

    /// What queries look at, `[B U, E]`: the normed tokens of their picture, and then themselves.
    fn seen(&self, queue: &D::Queue, sizes: Sizes, x: &D::Buffer, normed: &D::Buffer) -> D::Buffer {
        let (e, Sizes { pictures, tokens, queries }) = (self.down.outputs(), sizes);
        let mut seen = queue.take(pictures * sizes.keys() * e, Kind::Activation);
        let mut place = |from: &D::Buffer, count: usize, first: usize| {
            queue.copy_tokens(CopyTokens {
                rows: TokenRows { batch: pictures, tokens: count, width: e },
                from: (View::new(from, e), count),
                to: (ViewMut::new(&mut seen, e).skip(first * e), sizes.keys()),
            });
        };
        place(&self.picture_norm.run(queue, pictures * tokens, View::new(x, e)), tokens, 0);
        place(normed, queries, tokens);
        seen
    }

    fn layout(&self, (batch, tokens): (usize, usize)) -> HeadLayout {
        let heads = self.attention.heads;
        let dim = self.attention.q.outputs() / heads;
        HeadLayout { batch, heads, dim, stream_tokens: tokens, tokens, offset: 0 }
    }

    fn shape(&self, sizes: Sizes) -> AttentionShape {
        let HeadLayout { batch, heads, dim, .. } = self.layout((sizes.pictures, sizes.queries));
        AttentionShape { batch, heads, tokens: sizes.queries, keys: sizes.keys(), dim }
    }

    /// Rows of `tokens` tokens a picture by heads.
    fn split(&self, queue: &D::Queue, (batch, tokens): (usize, usize), rows: D::Buffer) -> D::Buffer {
        let width = self.attention.q.outputs();
        let mut by_heads = queue.take(batch * tokens * width, Kind::Activation);
        let projection = SplitHeads { x: View::new(&rows, width), norm: None, out: &mut by_heads };
        queue.split_heads(&[self.layout((batch, tokens))], &mut [projection]);
        by_heads
    }
}

/// `gelu(x)` for `[rows, width]`.
fn active<D: Device>(queue: &D::Queue, size: (usize, usize), x: &D::Buffer) -> D::Buffer {
    let (rows, width) = size;
    let mut active = queue.take(rows * width, Kind::Activation);
    queue.activate(Activation::GeluErf, size, View::new(x, width), ViewMut::new(&mut active, width));
    active
}

/// `dy gelu'(x)` for `[rows, width]`, as the gated GELU has it whose gate is one.
fn gelu_backward<D: Device>(
    queue: &D::Queue,
    (rows, width): (usize, usize),
    x: &D::Buffer,
    dy: &D::Buffer,
) -> D::Buffer {
    let mut gated = queue.fill(2 * rows * width, Kind::Activation, |all| all.fill(1.0));
    let of_rows = TokenRows { batch: 1, tokens: rows, width };
    queue.copy_tokens(CopyTokens {
        rows: of_rows,
        from: (View::new(x, width), rows),
        to: (ViewMut::new(&mut gated, 2 * width).skip(width), rows),
    });
    let mut both = queue.take(2 * rows * width, Kind::Activation);
    let (gated, to) = (View::new(&gated, 2 * width), ViewMut::new(&mut both, 2 * width));
    queue.gated_gelu_backward((rows, width), gated, View::new(dy, width), to);
    let mut dx = queue.take(rows * width, Kind::Activation);
    queue.copy_tokens(CopyTokens {
        rows: of_rows,
        from: (View::new(&both, 2 * width).skip(width), rows),
        to: (ViewMut::new(&mut dx, width), rows),
    });
    dx
}
