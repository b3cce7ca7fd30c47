//! Heads and attention.

use prefgraph_nn::{
    device::{
        Attention, AttentionBackward, AttentionShape, HeadLayout, Kind, NormRotary, Queue, Scores, View,
        ViewMut,
    },
    error::Result,
};

use crate::{
    cases::Shapes,
    place::Place,
    table::{Table, Work},
};

pub fn run<D: Place>(table: &Table<D>, shapes: &Shapes) -> Result<()> {
    for &layout in shapes.heads {
        heads(table, layout)?;
    }
    for &shape in shapes.attention {
        attention(table, shape)?;
    }
    Ok(())
}

fn heads<D: Place>(table: &Table<D>, layout: HeadLayout) -> Result<()> {
    let HeadLayout { batch, heads, dim, stream_tokens, tokens, .. } = layout;
    let (rows, width) = (batch * stream_tokens, heads * dim);
    let shape = format!("{batch}x{stream_tokens} of {tokens}, {heads}x{dim}");
    let x = table.activations(rows * width, 1);
    let d_out = table.activations(batch * tokens * width, 2);
    let (weight, angles) = (table.exact(dim, 3), table.exact(tokens * dim / 2, 4));
    let normed = Some(NormRotary { weight: &weight, cos: &angles, sin: &angles });
    let (x, mut out) = (View::new(&x, width), table.queue.zeros(batch * tokens * width, Kind::Activation));
    let mut dx = table.queue.take(rows * width, Kind::Activation);
    let moved = |times: usize| Work { bytes: table.bytes(times * rows * width, 0), flops: 0 };
    table.row("split_heads", &shape, moved(2), |queue| queue.split_heads(layout, x, None, &mut out))?;
    table.row("split_heads, norm and rotary", &shape, moved(2), |queue| {
        queue.split_heads(layout, x, normed, &mut out);
    })?;
    table.row("split_heads_backward", &shape, moved(2), |queue| {
        queue.split_heads_backward(layout, &d_out, None, ViewMut::new(&mut dx, width));
    })?;
    table.row("split_heads_backward, norm", &shape, moved(3), |queue| {
        queue.split_heads_backward(layout, &d_out, normed.map(|n| (x, n)), ViewMut::new(&mut dx, width));
    })
}

fn attention<D: Place>(table: &Table<D>, shape: AttentionShape) -> Result<()> {
    let AttentionShape { batch, heads, tokens, keys, dim } = shape;
    let (own, others, width) = (batch * heads * tokens * dim, batch * heads * keys * dim, heads * dim);
    let name = format!("{batch}x{heads}x{tokens}x{keys}x{dim}");
    let q = table.activations(own, 1);
    let [k, v] = [2, 3].map(|seed| table.activations(others, seed));
    let mut out = table.queue.take(own, Kind::Activation);
    let mut lse = table.queue.take(batch * heads * tokens, Kind::Exact);
    let product = 2 * own * keys;
    let work = Work { bytes: table.bytes(2 * own + 2 * others, 0), flops: 2 * product };
    let bias = table.exact(heads * tokens * keys, 4);
    let biased = Scores { scale: None, bias: Some(&bias), causal: true };
    for (what, scores) in [("attention, bias and causal", biased), ("attention", Scores::PLAIN)] {
        // The half that a causal one needs not is left out by no device.
        let bytes = if scores.are_plain() { 0 } else { table.bytes(0, heads * tokens * keys) };
        table.row(what, &name, Work { bytes: work.bytes + bytes, ..work }, |queue| {
            queue.attention(Attention {
                shape,
                query_rows: 0..tokens,
                scores,
                q: &q,
                k: &k,
                v: &v,
                out: ViewMut::new(&mut out, width),
                lse: &mut lse,
            });
        })?;
    }
    let d_out = table.activations(own, 5);
    let mut dq = table.queue.take(own, Kind::Activation);
    let [mut dk, mut dv] = [(); 2].map(|()| table.queue.take(others, Kind::Activation));
    // Five products are needed; a device that sums without atomics does more.
    let work = Work { bytes: table.bytes(4 * own + 4 * others, 0), flops: 5 * product };
    table.row("attention_backward", &name, work, |queue| {
        queue.attention_backward(AttentionBackward {
            shape,
            query_rows: 0..tokens,
            q: &q,
            k: &k,
            v: &v,
            out: View::new(&out, width),
            lse: &lse,
            d_out: View::new(&d_out, width),
            dq: &mut dq,
            dk: &mut dk,
            dv: &mut dv,
        });
    })
}
