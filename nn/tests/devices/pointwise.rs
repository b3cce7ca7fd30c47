//! Copies, sums, activation functions, gates, norms and scores.

use prefgraph_nn::device::{
    Activation::{Gelu, GeluErf, QuickGelu, Relu, Silu, Tanh},
    ConvWindow, CopyTokens, Device, GateGrad, GroupNorm, Kind, ModulationGrad, Norm, NormKind, NormModulate,
    NormModulateBackward, Precision, Queue, TokenRows, View, ViewMut, Windows,
};

use crate::{
    agree, devices,
    numbers::{activations, exact, numbers},
};

/// Sizes with and without rows of whole sixteen bytes, more columns than a block has threads, and more tokens than it has slices.
const ROWS: [TokenRows; 5] = [
    TokenRows { batch: 1, tokens: 1, width: 8 },
    TokenRows { batch: 2, tokens: 5, width: 48 },
    TokenRows { batch: 3, tokens: 7, width: 37 },
    TokenRows { batch: 1, tokens: 3, width: 2600 },
    TokenRows { batch: 2, tokens: 17, width: 40 },
];

fn read<D: Device>(queue: &D::Queue, buffers: &[(&D::Buffer, usize)]) -> Vec<Vec<f32>> {
    buffers.iter().map(|(b, len)| queue.download(b, 0, *len).unwrap()).collect()
}

fn copies<D: Device>(device: &D, precision: Precision, rows: TokenRows) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let TokenRows { batch, tokens, width } = rows;
    let (more, stride) = (tokens + 2, width + 8);
    let x = activations::<D>(&queue, batch * tokens * width, 1);
    let mut y = queue.zeros(batch * more * stride, Kind::Activation);
    queue.copy_tokens(CopyTokens {
        rows,
        from: (View::new(&x, width), tokens),
        to: (ViewMut::new(&mut y, stride).skip(stride), more),
    });
    let copied = queue.copy(View::new(&x, width).skip(1), rows.len() - 1, Kind::Activation);
    let as_exact = queue.copy(View::new(&x, width), rows.len(), Kind::Exact);
    let back = queue.copy(View::new(&as_exact, width), rows.len(), Kind::Activation);
    read::<D>(
        &queue,
        &[
            (&y, batch * more * stride),
            (&copied, rows.len() - 1),
            (&as_exact, rows.len()),
            (&back, rows.len()),
        ],
    )
}

#[test]
fn copies_are_exact() {
    let Some(devices) = devices() else { return };
    for rows in ROWS {
        agree!(devices, [0.0, 0.0], copies(rows));
    }
}

fn sums<D: Device>(device: &D, precision: Precision, len: usize) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let mut results = Vec::new();
    for kind in [Kind::Activation, Kind::Exact] {
        let x = queue.upload(&numbers(len + 3, 1), kind);
        let mut y = queue.upload(&numbers(len + 3, 2), kind);
        queue.add_scaled(0.75, View::new(&x, 1).skip(1), ViewMut::new(&mut y, 1).skip(2), len);
        queue.scale(-1.5, ViewMut::new(&mut y, 1).skip(1), len);
        results.extend(read::<D>(&queue, &[(&y, len + 3)]));
        // From the first value to the last one, sixteen bytes at a time.
        let x = queue.upload(&numbers(len, 3), kind);
        let mut y = queue.upload(&numbers(len, 4), kind);
        queue.add_scaled(0.75, View::new(&x, 1), ViewMut::new(&mut y, 1), len);
        queue.scale(-1.5, ViewMut::new(&mut y, 1), len);
        results.extend(read::<D>(&queue, &[(&y, len)]));
    }
    let zeros = queue.zeros(len, Kind::Exact);
    results.extend(read::<D>(&queue, &[(&zeros, len)]));
    results
}

#[test]
fn sums_and_factors_agree_and_touch_nothing_else() {
    let Some(devices) = devices() else { return };
    for len in [1, 16, 100, 1031] {
        agree!(devices, [1e-6, 6e-3], sums(len));
    }
}

fn functions<D: Device>(device: &D, precision: Precision, rows: usize, width: usize) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let stride = width + 16;
    let x = queue
        .upload(&numbers(rows * stride, 1).iter().map(|v| v * 8.0).collect::<Vec<_>>(), Kind::Activation);
    let dy = activations::<D>(&queue, rows * width, 2);
    let mut y = queue.zeros(rows * stride, Kind::Activation);
    let mut dx = queue.zeros(rows * width, Kind::Activation);

    let (x, dy) = (View::new(&x, stride), View::new(&dy, width));
    let mut results = Vec::new();
    for f in [Silu, Gelu, GeluErf, QuickGelu, Relu, Tanh] {
        queue.activate(f, (rows, width), x, ViewMut::new(&mut y, stride));
        results.extend(read::<D>(&queue, &[(&y, rows * stride)]));
    }
    queue.gelu_backward((rows, width), x, dy, ViewMut::new(&mut dx, width));
    queue.multiply((rows, width), x, ViewMut::new(&mut y, stride));
    results.extend(read::<D>(&queue, &[(&y, rows * stride), (&dx, rows * width)]));
    results
}

#[test]
fn activation_functions_agree() {
    let Some(devices) = devices() else { return };
    for (rows, width) in [(1, 8), (5, 33), (3, 520)] {
        agree!(devices, [2e-6, 6e-3], functions(rows, width));
    }
}

fn gates<D: Device>(device: &D, precision: Precision, rows: TokenRows) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let TokenRows { batch, width, .. } = rows;
    let mut x = activations::<D>(&queue, rows.len(), 1);
    let y = activations::<D>(&queue, rows.len(), 2);
    let gate = activations::<D>(&queue, batch * 3 * width, 3);
    let gate = View::new(&gate, 3 * width).skip(width);
    queue.gated_add(rows, ViewMut::new(&mut x, width), gate, View::new(&y, width));
    let mut dy = queue.zeros(rows.len(), Kind::Activation);
    let mut d_gate = queue.zeros(batch * 2 * width, Kind::Exact);
    let gate_grad =
        GateGrad { y: View::new(&y, width), d_gate: ViewMut::new(&mut d_gate, 2 * width).skip(width) };
    queue.gated_add_backward(rows, View::new(&x, width), gate, ViewMut::new(&mut dy, width), Some(gate_grad));
    read::<D>(&queue, &[(&x, rows.len()), (&dy, rows.len()), (&d_gate, batch * 2 * width)])
}

#[test]
fn gates_and_their_cotangents_agree() {
    let Some(devices) = devices() else { return };
    for rows in ROWS {
        agree!(devices, [2e-6, 1.2e-2], gates(rows));
    }
}

fn norms<D: Device>(device: &D, precision: Precision, rows: TokenRows, accumulate: bool) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let TokenRows { batch, tokens, width } = rows;
    let x = activations::<D>(&queue, rows.len(), 1);
    let modulation = activations::<D>(&queue, batch * 6 * width, 2);
    let part = |chunk: usize| View::new(&modulation, 6 * width).skip(chunk * width);
    let exact_zeros = |len| queue.zeros(len, Kind::Exact);
    let (mut mean, mut reciprocal) = (exact_zeros(batch * tokens + 1), exact_zeros(batch * tokens));
    let mut y = queue.zeros(rows.len(), Kind::Activation);
    queue.norm_modulate(NormModulate {
        rows,
        x: View::new(&x, width),
        shift: part(0),
        scale: part(1),
        y: ViewMut::new(&mut y, width),
        mean: ViewMut::new(&mut mean, 1).skip(1),
        reciprocal: ViewMut::new(&mut reciprocal, 1),
    });
    let dy = activations::<D>(&queue, rows.len(), 3);
    let mut dx = activations::<D>(&queue, rows.len(), 4);
    let (mut d_shift, mut d_scale) = (exact_zeros(batch * width), exact_zeros(batch * width));
    queue.norm_modulate_backward(NormModulateBackward {
        rows,
        x: View::new(&x, width),
        mean: View::new(&mean, 1).skip(1),
        reciprocal: View::new(&reciprocal, 1),
        scale: part(1),
        dy: View::new(&dy, width),
        dx: ViewMut::new(&mut dx, width),
        accumulate,
        modulation: Some(ModulationGrad {
            d_shift: ViewMut::new(&mut d_shift, width),
            d_scale: ViewMut::new(&mut d_scale, width),
        }),
    });
    read::<D>(
        &queue,
        &[
            (&y, rows.len()),
            (&mean, batch * tokens + 1),
            (&reciprocal, batch * tokens),
            (&dx, rows.len()),
            (&d_shift, batch * width),
            (&d_scale, batch * width),
        ],
    )
}

#[test]
fn modulated_norms_and_their_cotangents_agree() {
    let Some(devices) = devices() else { return };
    for rows in ROWS {
        for accumulate in [false, true] {
            agree!(devices, [2e-5, 1.5e-2], norms(rows, accumulate));
        }
    }
}

fn scores<D: Device>(
    device: &D,
    precision: Precision,
    width: usize,
    tokens: usize,
    count: usize,
) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let rows = activations::<D>(&queue, tokens * width, 1);
    let targets = activations::<D>(&queue, count * width, 2);
    let mask: Vec<f32> = numbers(tokens, 3).iter().map(|v| v.max(0.0)).collect();
    let mut out = exact::<D>(&queue, count + 1, 4);
    let (rows, targets) = (View::new(&rows, width), View::new(&targets, width));
    queue.scores(width, (rows, &mask), (targets, count), ViewMut::new(&mut out, count).skip(1));
    let mut nothing = exact::<D>(&queue, count, 4);
    queue.scores(width, (rows, &vec![0.0; tokens]), (targets, count), ViewMut::new(&mut nothing, count));
    read::<D>(&queue, &[(&out, count + 1), (&nothing, count)])
}

#[test]
fn cosine_scores_agree() {
    let Some(devices) = devices() else { return };
    for (width, tokens, count) in [(8, 1, 1), (48, 9, 5), (200, 33, 3)] {
        agree!(devices, [2e-6, 2e-6], scores(width, tokens, count));
    }
}

fn weighted_norms<D: Device>(
    device: &D,
    precision: Precision,
    rows: usize,
    width: usize,
    groups: usize,
) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let x = activations::<D>(&queue, rows * width, 1);
    let (weight, bias) = (exact::<D>(&queue, width, 2), exact::<D>(&queue, width, 3));
    let mut results = Vec::new();
    for (kind, bias) in [(NormKind::Layer, Some(&bias)), (NormKind::Layer, None), (NormKind::Rms, None)] {
        let mut y = queue.zeros(rows * width, Kind::Activation);
        let (x, to) = (View::new(&x, width), ViewMut::new(&mut y, width));
        queue.norm(Norm { rows, width, kind, eps: 1e-3, x, weight: &weight, bias, y: to });
        results.extend(read::<D>(&queue, &[(&y, rows * width)]));
    }
    for silu in [false, true] {
        let mut y = queue.zeros(rows * width, Kind::Activation);
        let (x, to) = (View::new(&x, width), ViewMut::new(&mut y, width));
        let (weight, bias) = (&weight, &bias);
        queue.group_norm(GroupNorm { rows, width, groups, eps: 1e-3, silu, x, weight, bias, y: to });
        results.extend(read::<D>(&queue, &[(&y, rows * width)]));
    }
    results
}

#[test]
fn norms_with_weights_of_their_own_agree() {
    let Some(devices) = devices() else { return };
    for (rows, width, groups) in [(1, 8, 2), (7, 48, 4), (5, 520, 8), (2100, 32, 8)] {
        agree!(devices, [2e-5, 1.5e-2], weighted_norms(rows, width, groups));
    }
}

fn windows<D: Device>(
    device: &D,
    precision: Precision,
    size: (usize, usize),
    channels: usize,
) -> Vec<Vec<f32>> {
    use ConvWindow::{One, Three, ThreeHalving, ThreeHalvingCentred, ThreeOfDoubled};
    let queue = device.queue(precision).unwrap();
    let x = activations::<D>(&queue, size.0 * size.1 * channels, 1);
    let mut results = Vec::new();
    for window in [One, Three, ThreeOfDoubled, ThreeHalving, ThreeHalvingCentred] {
        let all = window.output(size.0) * window.output(size.1);
        for pixels in [0..all, all / 3..all - 1] {
            let len = pixels.len() * window.side() * window.side() * channels;
            let mut out = queue.zeros(len, Kind::Activation);
            let (x, to) = (View::new(&x, channels), ViewMut::new(&mut out, 1));
            queue.windows(Windows { window, size, channels, pixels, x, out: to });
            results.extend(read::<D>(&queue, &[(&out, len)]));
        }
    }
    results
}

#[test]
fn windows_of_convolutions_are_exact() {
    let Some(devices) = devices() else { return };
    for (height, width, channels) in [(4, 6, 3), (7, 5, 8), (16, 16, 4)] {
        agree!(devices, [0.0, 0.0], windows((height, width), channels));
    }
}
