//! Norms and scores.

use prefgraph_nn::device::{
    Device, GroupNorm, GroupNormBackward, Kind, ModulationGrad, Norm, NormBackward, NormKind, NormModulate,
    NormModulateBackward, Precision, Queue, TokenRows, View, ViewMut,
};

use crate::{
    agree,
    cases::{
        self, Groups, SMALL, Scored,
        numbers::{activations, exact, numbers},
    },
    devices, read,
};

fn norms<D: Device>(device: &D, precision: Precision, rows: &[TokenRows], accumulate: bool) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let (batch, width, count) =
        (rows[0].batch, rows[0].width, rows.iter().map(TokenRows::count).sum::<usize>());
    let len = count * width;
    let x = activations::<D>(&queue, len, 1);
    let modulation = activations::<D>(&queue, batch * 6 * width, 2);
    let part = |chunk: usize| View::new(&modulation, 6 * width).skip(chunk * width);
    let exact_zeros = |len| queue.zeros(len, Kind::Exact);
    let (mut mean, mut reciprocal) = (exact_zeros(count + 1), exact_zeros(count));
    let mut y = queue.zeros(len, Kind::Activation);
    queue.norm_modulate(NormModulate {
        rows,
        x: View::new(&x, width),
        shift: part(0),
        scale: part(1),
        y: ViewMut::new(&mut y, width),
        mean: ViewMut::new(&mut mean, 1).skip(1),
        reciprocal: ViewMut::new(&mut reciprocal, 1),
    });
    let dy = activations::<D>(&queue, len, 3);
    let mut dx = activations::<D>(&queue, len, 4);
    let (mut d_shift, mut d_scale) = (exact_zeros(batch * width), exact_zeros(batch * width));
    // The modulation's cotangent is that of one stream.
    let modulation = (rows.len() == 1).then(|| ModulationGrad {
        d_shift: ViewMut::new(&mut d_shift, width),
        d_scale: ViewMut::new(&mut d_scale, width),
    });
    queue.norm_modulate_backward(NormModulateBackward {
        rows,
        x: View::new(&x, width),
        mean: View::new(&mean, 1).skip(1),
        reciprocal: View::new(&reciprocal, 1),
        scale: part(1),
        dy: View::new(&dy, width),
        dx: ViewMut::new(&mut dx, width),
        accumulate,
        modulation,
    });
    read::<D>(
        &queue,
        &[
            (&y, len),
            (&mean, count + 1),
            (&reciprocal, count),
            (&dx, len),
            (&d_shift, batch * width),
            (&d_scale, batch * width),
        ],
    )
}

#[test]
fn modulated_norms_and_their_cotangents_agree() {
    let Some(devices) = devices() else { return };
    for &rows in SMALL.rows {
        for accumulate in [false, true] {
            agree!(devices, [2e-5, 1.5e-2], norms(&[rows], accumulate));
            agree!(devices, [2e-5, 1.5e-2], norms(&cases::streams(rows)[..2], accumulate));
            agree!(devices, [2e-5, 1.5e-2], norms(&cases::streams(rows), accumulate));
        }
    }
}

fn scores<D: Device>(
    device: &D,
    precision: Precision,
    Scored { width, tokens, count }: Scored,
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
    for &case in SMALL.scores {
        agree!(devices, [2e-6, 2e-6], scores(case));
    }
}

fn weighted_norms<D: Device>(
    device: &D,
    precision: Precision,
    Groups { rows, width, groups }: Groups,
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
    for &case in SMALL.norms {
        agree!(devices, [2e-5, 1.5e-2], weighted_norms(case));
    }
}

fn weighted_norms_backward<D: Device>(
    device: &D,
    precision: Precision,
    Groups { rows, width, groups }: Groups,
) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let len = rows * width;
    let (x, dy) = (activations::<D>(&queue, len, 1), activations::<D>(&queue, len, 2));
    let (x, dy) = (View::new(&x, width), View::new(&dy, width));
    let (weight, bias) = (&exact::<D>(&queue, width, 3), &exact::<D>(&queue, width, 4));
    let eps = 1e-3;
    let mut results = Vec::new();
    for kind in [NormKind::Layer, NormKind::Rms] {
        let mut dx = activations::<D>(&queue, len, 5);
        let to = ViewMut::new(&mut dx, width);
        queue.norm_backward(NormBackward { rows, width, kind, eps, x, weight, dy, dx: to });
        results.extend(read::<D>(&queue, &[(&dx, len)]));
    }
    for silu in [false, true] {
        let mut dx = queue.zeros(len, Kind::Activation);
        let to = ViewMut::new(&mut dx, width);
        let call = GroupNormBackward { rows, width, groups, eps, silu, x, weight, bias, dy, dx: to };
        queue.group_norm_backward(call);
        results.extend(read::<D>(&queue, &[(&dx, len)]));
    }
    results
}

#[test]
fn cotangents_of_norms_with_weights_of_their_own_agree() {
    let Some(devices) = devices() else { return };
    for &case in SMALL.norms {
        agree!(devices, [2e-5, 1.5e-2], weighted_norms_backward(case));
    }
}
