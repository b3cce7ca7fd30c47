//! Heads and attention.

use prefgraph_nn::{
    device::{
        Attention, AttentionBackward, AttentionShape, HeadLayout, Kind, NormRotary, Queue, Scores,
        SplitHeads, SplitHeadsBackward, View, ViewMut,
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
    let x = [1, 2, 3].map(|seed| table.activations(rows * width, seed));
    let d_out = [4, 5, 6].map(|seed| table.activations(batch * tokens * width, seed));
    let (weight, angles) = (table.exact(dim, 7), table.exact(tokens * dim / 2, 8));
    let norm = NormRotary { weight: &weight, cos: &angles, sin: &angles };
    // Queries and keys have a norm, values none.
    let norm_of = |i: usize| (i < 2).then_some(norm);
    let mut out = [(); 3].map(|()| table.queue.zeros(batch * tokens * width, Kind::Activation));
    let mut dx = [(); 3].map(|()| table.queue.take(rows * width, Kind::Activation));
    let moved = |times: usize| Work { bytes: table.bytes(times * rows * width, 0), flops: 0 };
    for (name, operands, times) in [
        ("split_heads, values", 2..3, (2, 2)),
        ("split_heads, queries", 0..1, (2, 3)),
        ("split_heads, all", 0..3, (6, 8)),
    ] {
        table.row(name, &shape, moved(times.0), |queue| {
            let calls = operands.clone().zip(x.iter().zip(&mut out).skip(operands.start));
            let calls =
                calls.map(|(i, (x, out))| SplitHeads { x: View::new(x, width), norm: norm_of(i), out });
            queue.split_heads(&[layout], &mut calls.collect::<Vec<_>>());
        })?;
        table.row(&format!("{name}, backward"), &shape, moved(times.1), |queue| {
            let calls = operands.clone().zip(d_out.iter().zip(&x).zip(&mut dx).skip(operands.start));
            let calls = calls.map(|(i, ((d_out, x), dx))| SplitHeadsBackward {
                d_out,
                norm: norm_of(i).map(|norm| (View::new(x, width), norm)),
                dx: ViewMut::new(dx, width),
            });
            queue.split_heads_backward(&[layout], &mut calls.collect::<Vec<_>>());
        })?;
    }
    Ok(())
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
