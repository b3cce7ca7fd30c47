//! Heads and attention.

#![allow(clippy::disallowed_methods, reason = "inputs of both devices: their last bits do not matter")]

use std::ops::Range;

use prefgraph_nn::device::{
    Attention, AttentionBackward, AttentionShape, Device, HeadLayout, Kind, NormRotary, Precision, Queue,
    Scores, View, ViewMut,
};

use crate::{
    agree, devices,
    numbers::{activations, exact, numbers},
};

fn heads<D: Device>(device: &D, precision: Precision, layout: HeadLayout, normed: bool) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let HeadLayout { batch, heads, dim, stream_tokens, tokens, .. } = layout;
    let (rows, width) = (batch * stream_tokens, heads * dim);
    let x = activations::<D>(&queue, rows * (width + 8), 1);
    let x = View::new(&x, width + 8);
    let weight = exact::<D>(&queue, dim, 2);
    let angles: Vec<f32> = numbers(tokens * dim / 2, 3);
    let table =
        |f: fn(f32) -> f32| queue.upload(&angles.iter().map(|a| f(3.0 * a)).collect::<Vec<_>>(), Kind::Exact);
    let (cos, sin) = (table(f32::cos), table(f32::sin));
    let norm = normed.then_some(NormRotary { weight: &weight, cos: &cos, sin: &sin });
    let all = batch * heads * tokens * dim;
    let mut out = activations::<D>(&queue, all, 4);
    queue.split_heads(layout, x, norm, &mut out);
    let d_out = activations::<D>(&queue, all, 5);
    let mut dx = activations::<D>(&queue, rows * (width + 2), 6);
    queue.split_heads_backward(layout, &d_out, norm.map(|n| (x, n)), ViewMut::new(&mut dx, width + 2));
    vec![queue.download(&out, 0, all).unwrap(), queue.download(&dx, 0, rows * (width + 2)).unwrap()]
}

#[test]
fn heads_agree_with_and_without_norm_and_rotation() {
    let Some(devices) = devices() else { return };
    for (batch, heads_, dim, stream_tokens, tokens, offset) in
        [(1, 1, 2, 1, 1, 0), (2, 3, 16, 5, 9, 4), (2, 2, 64, 7, 7, 0), (1, 2, 130, 3, 8, 2)]
    {
        let layout = HeadLayout { batch, heads: heads_, dim, stream_tokens, tokens, offset };
        for normed in [false, true] {
            agree!(devices, [2e-6, 1.2e-2], heads(layout, normed));
        }
    }
}

fn attention<D: Device>(
    device: &D,
    precision: Precision,
    shape: AttentionShape,
    query_rows: Range<usize>,
) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let AttentionShape { batch, heads, tokens, keys, dim } = shape;
    let others = batch * heads * keys * dim;
    let (all, width, sums) = (batch * heads * tokens * dim, heads * dim, batch * heads * tokens);
    let q = activations::<D>(&queue, all, 1);
    let [k, v] = [2, 3].map(|seed| activations::<D>(&queue, others, seed));
    let stride = width + 8;
    let mut out = queue.zeros(batch * tokens * stride, Kind::Activation);
    let mut lse = queue.zeros(sums, Kind::Exact);
    queue.attention(Attention {
        shape,
        query_rows: query_rows.clone(),
        scores: Scores::PLAIN,
        q: &q,
        k: &k,
        v: &v,
        out: ViewMut::new(&mut out, stride),
        lse: &mut lse,
    });
    let d_out = activations::<D>(&queue, batch * tokens * width, 4);
    let mut dq = activations::<D>(&queue, all, 5);
    let [mut dk, mut dv] = [6, 7].map(|seed| activations::<D>(&queue, others, seed));
    queue.attention_backward(AttentionBackward {
        shape,
        query_rows,
        q: &q,
        k: &k,
        v: &v,
        out: View::new(&out, stride),
        lse: &lse,
        d_out: View::new(&d_out, width),
        dq: &mut dq,
        dk: &mut dk,
        dv: &mut dv,
    });
    let read = |buffer, len| queue.download(buffer, 0, len).unwrap();
    vec![
        read(&out, batch * tokens * stride),
        read(&lse, sums),
        read(&dq, all),
        read(&dk, others),
        read(&dv, others),
    ]
}

#[test]
fn attention_and_its_cotangents_agree() {
    let Some(devices) = devices() else { return };
    for (batch, heads, tokens, dim) in
        [(1, 1, 1, 8), (2, 2, 5, 12), (1, 3, 33, 16), (2, 2, 70, 64), (1, 2, 130, 128), (1, 1, 40, 160)]
    {
        let shape = AttentionShape { batch, heads, tokens, keys: tokens, dim };
        let across = AttentionShape { keys: tokens + 5, ..shape };
        agree!(devices, [2e-5, 2e-2], attention(across, 0..tokens));
        agree!(devices, [2e-5, 2e-2], attention(shape, 0..tokens));
        agree!(devices, [2e-5, 2e-2], attention(shape, tokens / 3..tokens));
    }
}

/// As text encoders have it: with a scale and a bias, or causal. One head of the autoencoder's width.
fn scored<D: Device>(
    device: &D,
    precision: Precision,
    shape: AttentionShape,
    biased: bool,
    causal: bool,
) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let AttentionShape { batch, heads, tokens, keys, dim } = shape;
    let q = activations::<D>(&queue, batch * heads * tokens * dim, 1);
    let [k, v] = [2, 3].map(|seed| activations::<D>(&queue, batch * heads * keys * dim, seed));
    let bias = exact::<D>(&queue, heads * tokens * keys, 4);
    let scores = Scores { scale: biased.then_some(0.5), bias: biased.then_some(&bias), causal };
    let (width, sums) = (heads * dim, batch * heads * tokens);
    let mut out = queue.zeros(batch * tokens * width, Kind::Activation);
    let mut lse = queue.zeros(sums, Kind::Exact);
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
    vec![queue.download(&out, 0, batch * tokens * width).unwrap()]
}

#[test]
fn attention_with_a_bias_or_causal_agrees() {
    let Some(devices) = devices() else { return };
    for (batch, heads, tokens, dim) in [(2, 3, 9, 8), (1, 2, 77, 64), (1, 1, 40, 512)] {
        let shape = AttentionShape { batch, heads, tokens, keys: tokens, dim };
        for (biased, causal) in [(true, false), (false, true), (true, true), (false, false)] {
            agree!(devices, [2e-5, 2e-2], scored(shape, biased, causal));
        }
    }
}
