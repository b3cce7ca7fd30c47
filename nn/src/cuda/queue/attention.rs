//! Heads and attention.
//!
//! `B` samples, `H` heads, `S` tokens of one stream, `T` tokens of the attention, `D` width of a head.

use super::{CudaQueue, Rows};
use crate::{
    cuda::{
        Cuda,
        launch::{Argument, Grid, flag, float, int, pointer},
        modules::Source,
        values::CudaBuffer,
    },
    device::{
        Attention, AttentionBackward, AttentionShape, HeadLayout, Kind, NormRotary, Queue, View, ViewMut,
    },
};

/// Warps of a block: each has one head of one token.
const WARPS: usize = 8;
/// Rows of a block of the plain attention, and rows of a tile (`attention_plain.cu`).
const ROWS: usize = 4;
const TILE: usize = 32;

fn heads_grid(layout: HeadLayout) -> Grid {
    let count = layout.batch * layout.stream_tokens * layout.heads;
    Grid { blocks: (count.div_ceil(WARPS), 1), threads: 256, shared: 0 }
}

/// Rows of the stream, heads, width of a head, tokens of the stream and of the attention, and where the stream begins.
fn head_sizes(layout: HeadLayout) -> [Argument; 6] {
    let HeadLayout { batch, heads, dim, stream_tokens, tokens, offset } = layout;
    [batch * stream_tokens, heads, dim, stream_tokens, tokens, offset].map(int)
}

/// A block for four rows of every head.
fn plain_grid(shape: AttentionShape, rows: usize) -> Grid {
    let shared = (TILE * (shape.dim + 1) + 2 * ROWS * shape.dim + ROWS * TILE) * 4;
    Grid { blocks: (rows.div_ceil(ROWS), shape.batch * shape.heads), threads: 128, shared }
}

impl AttentionShape {
    /// Numbers of the queries.
    fn query_values(&self) -> usize {
        self.batch * self.heads * self.tokens * self.dim
    }

    /// Numbers of the keys, and of the values.
    fn values(&self) -> usize {
        self.batch * self.heads * self.keys * self.dim
    }

    /// Rows of the result, and values of each.
    fn result(&self) -> (usize, usize) {
        (self.batch * self.tokens, self.heads * self.dim)
    }

    fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }
}

impl CudaQueue {
    fn rotary(layout: HeadLayout, norm: NormRotary<'_, Cuda>) -> [Argument; 3] {
        let angles = layout.tokens * layout.dim / 2;
        [
            Rows::flat(norm.weight, layout.dim).argument(),
            Rows::flat(norm.cos, angles).argument(),
            Rows::flat(norm.sin, angles).argument(),
        ]
    }

    pub(super) fn heads_from_tokens(
        &self,
        layout: HeadLayout,
        x: View<'_, Cuda>,
        norm_rotary: Option<NormRotary<'_, Cuda>>,
        out: &CudaBuffer,
    ) {
        let x = Rows::of(x, layout.batch * layout.stream_tokens, layout.heads * layout.dim);
        let out = Rows::flat(out, layout.batch * layout.heads * layout.tokens * layout.dim);
        self.expect_activations("split_heads", [x, out]);
        let (name, rotary) = match norm_rotary {
            Some(norm) => ("split_heads", Self::rotary(layout, norm).to_vec()),
            None => ("split_values", Vec::new()),
        };
        let arguments =
            [&[x.argument()], rotary.as_slice(), &[out.argument()], &head_sizes(layout), &[int(x.stride)]]
                .concat();
        self.launch(Source::Heads, name, heads_grid(layout), &arguments);
    }

    pub(super) fn tokens_from_heads(
        &self,
        layout: HeadLayout,
        d_out: &CudaBuffer,
        x: Option<(View<'_, Cuda>, NormRotary<'_, Cuda>)>,
        dx: &ViewMut<'_, Cuda>,
    ) {
        let (rows, width) = (layout.batch * layout.stream_tokens, layout.heads * layout.dim);
        let dx = Rows::of_mut(dx, rows, width);
        let d_out = Rows::flat(d_out, layout.batch * layout.heads * layout.tokens * layout.dim);
        self.expect_activations("split_heads_backward", [d_out, dx]);
        let Some((x, norm)) = x else {
            let arguments =
                [&[d_out.argument(), dx.argument()][..], &head_sizes(layout), &[int(dx.stride)]].concat();
            return self.launch(Source::Heads, "split_values_backward", heads_grid(layout), &arguments);
        };
        let x = Rows::of(x, rows, width);
        self.expect_activations("split_heads_backward", [x]);
        let arguments = [
            &[d_out.argument(), x.argument()][..],
            &Self::rotary(layout, norm),
            &[dx.argument()],
            &head_sizes(layout),
            &[int(x.stride), int(dx.stride)],
        ]
        .concat();
        self.launch(Source::Heads, "split_heads_backward", heads_grid(layout), &arguments);
    }

    pub(super) fn attend(&self, call: Attention<'_, Cuda>) {
        let Attention { shape, query_rows, scores, q, k, v, out, lse } = call;
        let q = Rows::flat(q, shape.query_values());
        let [k, v] = [k, v].map(|b| Rows::flat(b, shape.values()));
        let (rows, width) = shape.result();
        let out = Rows::of_mut(&out, rows, width);
        let lse = Rows::flat(lse, shape.batch * shape.heads * shape.tokens);
        let (tokens, keys) = (shape.heads * shape.tokens, shape.keys);
        let bias = scores.bias.map_or(pointer(0), |bias| Rows::flat(bias, tokens * keys).argument());
        self.expect_activations("attention", [q, k, v, out]);
        self.launch(
            Source::AttentionPlain,
            "attention_plain",
            plain_grid(shape, query_rows.len()),
            &[
                q.argument(),
                k.argument(),
                v.argument(),
                out.argument(),
                lse.argument(),
                int(shape.heads),
                int(shape.tokens),
                int(shape.keys),
                int(shape.dim),
                int(query_rows.start),
                int(query_rows.len()),
                int(out.stride),
                float(scores.scale.unwrap_or(shape.scale())),
                bias,
                flag(scores.causal),
            ],
        );
    }

    pub(super) fn attend_backward(&self, call: AttentionBackward<'_, Cuda>) {
        let AttentionBackward { shape, query_rows, q, k, v, out, lse, d_out, dq, dk, dv } = call;
        let [q, dq] = [q, &*dq].map(|b| Rows::flat(b, shape.query_values()));
        let [k, v, dk, dv] = [k, v, &*dk, &*dv].map(|b| Rows::flat(b, shape.values()));
        let (rows, width) = shape.result();
        let (out, d_out) = (Rows::of(out, rows, width), Rows::of(d_out, rows, width));
        let sums = shape.batch * shape.heads * shape.tokens;
        let lse = Rows::flat(lse, sums);
        self.expect_activations("attention_backward", [q, k, v, out, d_out, dq, dk, dv]);
        let delta = self.take(sums, Kind::Exact);
        let delta = Rows::flat(&delta, sums);
        let sizes = [shape.heads, shape.tokens, shape.dim, query_rows.start, query_rows.len()].map(int);
        let delta_grid = Grid { shared: 0, ..plain_grid(shape, query_rows.len()) };
        let arguments = [
            &[out.argument(), d_out.argument(), delta.argument()][..],
            &sizes,
            &[int(out.stride), int(d_out.stride)],
        ];
        self.launch(Source::AttentionPlain, "attention_delta", delta_grid, &arguments.concat());
        let inputs = [q, k, v, d_out, lse, delta].map(Rows::argument);
        let end = [int(d_out.stride), float(shape.scale())];
        let sizes =
            [shape.heads, shape.tokens, shape.keys, shape.dim, query_rows.start, query_rows.len()].map(int);
        let arguments = [&inputs[..], &[dq.argument()], &sizes, &end].concat();
        let grid = plain_grid(shape, shape.tokens);
        self.launch(Source::AttentionPlain, "attention_plain_queries", grid, &arguments);
        let arguments = [&inputs[..], &[dk.argument(), dv.argument()], &sizes, &end].concat();
        let grid = plain_grid(shape, shape.keys);
        self.launch(Source::AttentionPlain, "attention_plain_keys", grid, &arguments);
    }
}
