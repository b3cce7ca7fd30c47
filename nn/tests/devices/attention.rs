//! Heads and attention.

#![allow(clippy::disallowed_methods, reason = "inputs of both devices: their last bits do not matter")]

use std::ops::Range;

use prefgraph_nn::{
    Cpu,
    cuda::Cuda,
    device::{
        Attention, AttentionBackward, AttentionShape, Device, HeadLayout, Kind, NormRotary, Precision, Queue,
        Scores, SplitHeads, SplitHeadsBackward, View, ViewMut,
    },
};

use crate::{
    agree,
    cases::{
        self, SMALL,
        numbers::{activations, exact, numbers},
    },
    devices, difference,
};

/// Queries and keys, each with a weight of its own, and values, of streams that follow one another; or one of them.
fn heads<D: Device>(
    device: &D,
    precision: Precision,
    streams: &[HeadLayout],
    operands: Range<usize>,
    gap: usize,
) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let HeadLayout { batch, heads, dim, tokens, .. } = streams[0];
    let (rows, width) = (streams.iter().map(|s| batch * s.stream_tokens).sum::<usize>(), heads * dim);
    let angles: Vec<f32> = numbers(tokens * dim / 2, 3);
    let table =
        |f: fn(f32) -> f32| queue.upload(&angles.iter().map(|a| f(3.0 * a)).collect::<Vec<_>>(), Kind::Exact);
    let (cos, sin) = (table(libm::cosf), table(libm::sinf));
    let all = batch * heads * tokens * dim;
    let weights = [0, 1].map(|i| exact::<D>(&queue, dim, 2 + 10 * i));
    let norm = |i: usize| weights.get(i).map(|weight| NormRotary { weight, cos: &cos, sin: &sin });
    let stride = |i: usize| width + gap * (i + 1);
    let of_each = |seed: u64, len: &dyn Fn(usize) -> usize| {
        operands.clone().map(|i| activations::<D>(&queue, len(i), seed + 10 * i as u64)).collect::<Vec<_>>()
    };
    let x = of_each(1, &|i| rows * stride(i));
    let mut out = of_each(4, &|_| all);
    let mut calls: Vec<_> = operands
        .clone()
        .zip(x.iter().zip(&mut out))
        .map(|(i, (x, out))| SplitHeads { x: View::new(x, stride(i)), norm: norm(i), out })
        .collect();
    queue.split_heads(streams, &mut calls);
    let d_out = of_each(5, &|_| all);
    let mut dx = of_each(6, &|i| rows * stride(i));
    let mut calls: Vec<_> = operands
        .clone()
        .zip(d_out.iter().zip(&x).zip(&mut dx))
        .map(|(i, ((d_out, x), dx))| SplitHeadsBackward {
            d_out,
            norm: norm(i).map(|norm| (View::new(x, stride(i)), norm)),
            dx: ViewMut::new(dx, stride(i)),
        })
        .collect();
    queue.split_heads_backward(streams, &mut calls);
    let all_of = |buffers: Vec<D::Buffer>, len: &dyn Fn(usize) -> usize| {
        let each = operands.clone().zip(buffers);
        each.map(|(i, buffer)| queue.download(&buffer, 0, len(i)).unwrap()).collect::<Vec<_>>()
    };
    [all_of(out, &|_| all), all_of(dx, &|i| rows * stride(i))].concat()
}

#[test]
fn heads_agree_with_and_without_norm_and_rotation() {
    let Some(devices) = devices() else { return };
    for &layout in SMALL.heads {
        // Rows of whole sixteen bytes, where heads are, and others.
        for gap in [8, 1] {
            for operand in 0..3 {
                agree!(devices, [2e-6, 1.2e-2], heads(&[layout], operand..operand + 1, gap));
            }
            agree!(devices, [2e-6, 1.2e-2], heads(&[layout], 0..3, gap));
            agree!(devices, [2e-6, 1.2e-2], heads(&cases::head_streams(layout)[..2], 1..3, gap));
            agree!(devices, [2e-6, 1.2e-2], heads(&cases::head_streams(layout), 0..3, gap));
        }
    }
}

/// Forward and backward for some samples of a larger batch: `out`, `lse`, `dq`, `dk`, `dv`. What must not be read is not a number,
/// and what must be left alone has values from before.
fn attention<D: Device>(
    device: &D,
    precision: Precision,
    (shape, first_sample): (AttentionShape, usize),
    query_rows: Range<usize>,
) -> Vec<Vec<f32>> {
    attention_of(device, precision, (shape, first_sample), query_rows, [8; 2], [|v| v; 2])
}

/// The same with gaps of at most eight values between rows of the result, and between those of its cotangent, of queries and keys
/// that are functions of the numbers.
fn attention_of<D: Device>(
    device: &D,
    precision: Precision,
    (shape, first_sample): (AttentionShape, usize),
    query_rows: Range<usize>,
    gaps: [usize; 2],
    functions: [impl Fn(f32) -> f32; 2],
) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let AttentionShape { batch, heads, tokens, keys, dim } = shape;
    let others = batch * heads * keys * dim;
    let (all, width, sums) = (batch * heads * tokens * dim, heads * dim, batch * heads * tokens);
    let of_samples =
        |seed, each: usize| numbers((first_sample + batch) * each, seed)[first_sample * each..].to_vec();
    let upload = |seed, rows: usize, f: &dyn Fn(f32) -> f32| {
        let values: Vec<f32> = of_samples(seed, heads * rows * dim).into_iter().map(f).collect();
        queue.upload(&values, Kind::Activation)
    };
    let [of_queries, of_keys] = &functions;
    let (q, k, v) = (upload(1, tokens, of_queries), upload(2, keys, of_keys), upload(3, keys, &|v| v));
    let [stride, d_stride] = gaps.map(|gap| width + gap);
    let with_gaps = |seed, stride: usize| -> Vec<f32> {
        let rows = of_samples(seed, tokens * (width + 8));
        rows.chunks_exact(width + 8).flat_map(|row| &row[..stride]).copied().collect()
    };
    let mut out = queue.upload(&with_gaps(4, stride), Kind::Activation);
    let mut lse = queue.upload(&of_samples(5, heads * tokens), Kind::Exact);
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
    let mut d_out = with_gaps(6, d_stride);
    for (row, values) in d_out.chunks_exact_mut(d_stride).enumerate() {
        let asked = query_rows.contains(&(row % tokens));
        values[if asked { width } else { 0 }..].fill(f32::NAN);
    }
    let d_out = queue.upload(&d_out, Kind::Activation);
    let mut dq = activations::<D>(&queue, all, 7);
    let [mut dk, mut dv] = [8, 9].map(|seed| activations::<D>(&queue, others, seed));
    queue.attention_backward(AttentionBackward {
        shape,
        query_rows,
        q: &q,
        k: &k,
        v: &v,
        out: View::new(&out, stride),
        lse: &lse,
        d_out: View::new(&d_out, d_stride),
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
    for &shape in SMALL.attention {
        let tokens = shape.tokens;
        agree!(devices, [2e-5, 2e-2], attention((shape, 0), 0..tokens));
        agree!(devices, [2e-5, 2e-2], attention((shape, 0), tokens / 3..tokens));
    }
}

/// On tensor cores, for all queries, for some and for none. The stand-in was off by at most 1.1e-3, 2.2e-7, 5.3e-3, 5.1e-3 and 3.7e-3:
/// probabilities and their cotangents are rounded to bf16, here and on the processor. A GPU has its own exponentials, too.
fn agrees_in_bf16(devices: &(Cpu, Cuda), shape: AttentionShape) {
    let (cpu, cuda) = devices;
    let tokens = shape.tokens;
    for rows in [0..tokens, tokens / 5..tokens - tokens / 4, tokens / 2..tokens / 2] {
        let expected = attention(cpu, Precision::Bf16, (shape, 0), rows.clone());
        let found = attention(cuda, Precision::Bf16, (shape, 0), rows.clone());
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            // Of a single token the scores have no cotangent but for roundings: small things are held against this.
            let with_one = |values: &[f32]| [values, &[0.01]].concat();
            let off = difference(&with_one(found), &with_one(expected));
            let bound = [8e-3, 1e-5, 2e-2, 2e-2, 2e-2][i];
            assert!(off <= bound, "{shape:?}, queries {rows:?}, result {i}: off by {off:e}");
        }
    }
}

/// With tiles that end where tokens do and elsewhere, and with more tiles than there are stages of them.
#[test]
fn attention_of_wide_heads_agrees_in_bf16() {
    let Some(devices) = devices() else { return };
    for (tokens, batch, heads) in
        [(1, 2, 3), (17, 1, 2), (63, 2, 1), (64, 1, 1), (65, 1, 2), (130, 2, 2), (200, 1, 1), (390, 1, 1)]
    {
        for dim in [64, 128] {
            agrees_in_bf16(&devices, AttentionShape { batch, heads, tokens, keys: tokens, dim });
        }
    }
}

/// Text and image tokens as keys, few queries over many as a resampler has them, and numbers on both sides of every tile and block. Where
/// queries are many and keys are few, parts of the queries are summed.
#[test]
fn attention_of_wide_heads_over_other_tokens_agrees_in_bf16() {
    let Some(devices) = devices() else { return };
    for (tokens, keys, batch, heads) in [
        (150, 77, 2, 2),
        (130, 16, 1, 3),
        (70, 1, 2, 1),
        (1, 77, 1, 2),
        (40, 200, 2, 1),
        (2, 7, 4, 1),
        (16, 273, 1, 1),
        (65, 31, 1, 2),
        (63, 33, 1, 1),
        (129, 63, 1, 1),
        (127, 65, 1, 1),
        (31, 127, 1, 1),
        (33, 129, 1, 2),
        (257, 64, 2, 1),
        (600, 77, 2, 2),
        (530, 129, 1, 1),
    ] {
        for dim in [64, 128] {
            agrees_in_bf16(&devices, AttentionShape { batch, heads, tokens, keys, dim });
        }
    }
}

/// Rows of an odd stride take the plain kernels, in which no probability is rounded: bits tell which kernels ran. Those of heads without
/// kernels for tensor cores are the same.
#[test]
fn attention_over_other_tokens_takes_tensor_cores_for_wide_heads_alone() {
    let Some((_, cuda)) = devices() else { return };
    for (tokens, keys) in [(150, 77), (300, 16), (40, 129)] {
        for dim in [40, 64, 128] {
            let shape = AttentionShape { batch: 1, heads: 2, tokens, keys, dim };
            let run = |gaps| {
                attention_of(&cuda, Precision::Bf16, (shape, 0), 0..tokens, gaps, [|v: f32| 4.0 * v; 2])
            };
            let [wide, odd_result, odd_cotangent] = [run([8, 8]), run([1, 8]), run([8, 1])];
            let without_gaps = |out: &[f32], gap: usize| -> Vec<f32> {
                let rows = out.chunks_exact(2 * dim + gap);
                rows.flat_map(|row| &row[..2 * dim]).copied().collect()
            };
            let out = [without_gaps(&wide[0], 8), without_gaps(&odd_result[0], 1)];
            // Forward with another result, backward with another cotangent.
            let mut pairs = vec![("out", &out[0], &out[1])];
            for (i, name) in [(2, "dq"), (3, "dk"), (4, "dv")] {
                pairs.push((name, &wide[i], &odd_cotangent[i]));
            }
            for (name, one, other) in pairs {
                let differ = one.iter().zip(other).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
                let share = differ as f32 / one.len() as f32;
                let is_right = if dim == 40 { differ == 0 } else { share > 0.05 };
                assert!(is_right, "{name} of {shape:?}: {share} of the values differ");
            }
        }
    }
}

/// The exponential of a score of zero, which what is beyond the end has, is infinite beside such scores.
#[test]
fn attention_with_scores_far_below_zero_agrees() {
    let Some((cpu, cuda)) = devices() else { return };
    let functions = || [8.0, -8.0].map(|factor| move |v: f32| factor * v.abs());
    for dim in [16, 64, 128] {
        for keys in [75, 41] {
            let shape = (AttentionShape { batch: 1, heads: 2, tokens: 75, keys, dim }, 0);
            let expected = attention_of(&cpu, Precision::Bf16, shape, 0..70, [8; 2], functions());
            let found = attention_of(&cuda, Precision::Bf16, shape, 0..70, [8; 2], functions());
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let off = difference(found, expected);
                assert!(off <= 2e-2, "{keys} keys, heads of {dim}, result {i}: off by {off:e}");
            }
        }
    }
}

/// Bits of a row of `out` or `dq` neither depend on the number of samples nor on which other rows there are.
#[test]
fn attention_has_the_same_bits_alone_and_among_others_and_twice() {
    let Some((_, cuda)) = devices() else { return };
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    for (precision, dim, tokens, keys) in [
        (Precision::F32, 12, 150, 150),
        (Precision::Bf16, 64, 150, 150),
        (Precision::Bf16, 128, 150, 150),
        (Precision::Bf16, 64, 150, 77),
        (Precision::Bf16, 64, 270, 16),
        (Precision::Bf16, 128, 270, 16),
    ] {
        let shape = AttentionShape { batch: 2, heads: 1, tokens, keys, dim };
        let run = |batch, first, rows| {
            attention(&cuda, precision, (AttentionShape { batch, ..shape }, first), rows)
        };
        let all = run(2, 0, 0..tokens);
        let again = run(2, 0, 0..tokens);
        for sample in 0..2 {
            let alone = run(1, sample, 0..tokens);
            let some = run(1, sample, 37..141);
            for (result, alone) in alone.iter().enumerate() {
                let part = sample * alone.len()..(sample + 1) * alone.len();
                let what = format!("result {result} of sample {sample}, {shape:?}, {precision:?}");
                assert!(bits(&all[result][part.clone()]) == bits(alone), "alone: {what}");
                assert!(bits(&all[result][part.clone()]) == bits(&again[result][part]), "twice: {what}");
            }
            let values = [dim + 8, 1, dim];
            for (result, values) in values.into_iter().enumerate() {
                let rows = |all: &[f32]| -> Vec<u32> {
                    let rows = all.chunks_exact(values).enumerate();
                    rows.filter(|(row, _)| (37..141).contains(&(row % tokens)))
                        .flat_map(|r| bits(r.1))
                        .collect()
                };
                let what = format!("result {result} of sample {sample}, {shape:?}, {precision:?}");
                assert!(rows(&alone[result]) == rows(&some[result]), "some rows: {what}");
            }
        }
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
