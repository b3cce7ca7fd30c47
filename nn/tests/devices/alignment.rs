//! Operations on rows that begin and end anywhere have the bits that they have on whole sixteen bytes.

use half::bf16;
use prefgraph_nn::{
    cuda::Cuda,
    device::{
        ConvWindow, Device, Direction, Gemm, GroupNorm, Kind, Norm, NormKind, Precision, Queue, View,
        ViewMut, Windows,
    },
};

use crate::{
    agree,
    cases::{
        Groups, SMALL,
        numbers::{exact, numbers},
    },
    devices, read,
};

/// Where rows begin: at a multiple of sixteen bytes, at one of f32 values alone, and elsewhere.
const OFFSETS: [usize; 4] = [0, 1, 4, 7];

/// Asserts that the results of a case on the GPU have the same bits wherever its rows begin.
fn assert_same_at_every_offset(what: &str, run: impl Fn(Precision, usize) -> Vec<Vec<f32>>) {
    for precision in crate::PRECISIONS {
        let aligned = run(precision, 0);
        for offset in OFFSETS {
            let found = run(precision, offset);
            for (i, (found, aligned)) in found.iter().zip(&aligned).enumerate() {
                let same = found.iter().zip(aligned).all(|(f, a)| f.to_bits() == a.to_bits());
                assert!(
                    same && found.len() == aligned.len(),
                    "{what} at {offset} in {precision:?}, result {i}"
                );
            }
        }
    }
}

/// The results, after a check that nothing else was written: `offset` values before and three behind.
fn inside<D: Device>(queue: &D::Queue, buffer: &D::Buffer, offset: usize, len: usize) -> Vec<f32> {
    let all = queue.download(buffer, 0, offset + len + 3).unwrap();
    let (before, rest) = all.split_at(offset);
    let (values, behind) = rest.split_at(len);
    assert!(before.iter().chain(behind).all(|v| *v == 9.0), "values around the result were written");
    values.to_vec()
}

/// A buffer for `len` values from `offset` on.
fn around<D: Device>(queue: &D::Queue, offset: usize, len: usize, kind: Kind) -> D::Buffer {
    queue.upload(&vec![9.0; offset + len + 3], kind)
}

/// The numbers of `seed` from `offset` on.
fn shifted<D: Device>(queue: &D::Queue, offset: usize, len: usize, seed: u64, kind: Kind) -> D::Buffer {
    queue.upload(&[vec![f32::NAN; offset], numbers(len, seed)].concat(), kind)
}

/// Copies between both kinds, multiples, sums and factors of neighbouring values.
fn flat<D: Device>(device: &D, precision: Precision, offset: usize, len: usize) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let mut results = Vec::new();
    for from in [Kind::Activation, Kind::Exact] {
        let x = shifted::<D>(&queue, offset, len, 1, from);
        let x = View::new(&x, len).skip(offset);
        for to in [Kind::Activation, Kind::Exact] {
            let mut y = around::<D>(&queue, offset, len, to);
            queue.copy_to(x, len, ViewMut::new(&mut y, len).skip(offset));
            results.push(inside::<D>(&queue, &y, offset, len));
        }
        let mut y = around::<D>(&queue, offset, len, from);
        queue.copy_to(x, len, ViewMut::new(&mut y, len).skip(offset));
        queue.add_scaled(0.75, x, ViewMut::new(&mut y, len).skip(offset), len);
        queue.scale(-1.5, ViewMut::new(&mut y, len).skip(offset), len);
        results.push(inside::<D>(&queue, &y, offset, len));
    }
    results
}

/// A product with a factor of values that begin anywhere, and with inputs that have to be converted.
fn product<D: Device>(device: &D, precision: Precision, offset: usize, width: usize) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let (m, n) = (3, 5);
    let values = shifted::<D>(&queue, offset, n * width, 1, Kind::Exact);
    let values = View::new(&values, 0).skip(offset);
    let factor = queue.factor(&[values], n, width, 0.5, Direction::Forward);
    let x = shifted::<D>(&queue, offset, m * width, 2, Kind::Exact);
    let mut out = queue.zeros(m * n, Kind::Exact);
    queue.gemm(Gemm {
        m,
        x: View::new(&x, width).skip(offset).into(),
        weight: &factor,
        direction: Direction::Forward,
        extra: None,
        bias: None,
        accumulate: false,
        out: ViewMut::new(&mut out, n),
    });
    read::<D>(&queue, &[(&out, m * n)])
}

/// Norms with weights of their own.
fn norms<D: Device>(
    device: &D,
    precision: Precision,
    offset: usize,
    Groups { rows, width, groups }: Groups,
) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let len = rows * width;
    // Of a single row the stride means nothing.
    let stride = if rows == 1 { 8 } else { width };
    let x = shifted::<D>(&queue, offset, len, 1, Kind::Activation);
    let x = View::new(&x, stride).skip(offset);
    let (weight, bias) = (exact::<D>(&queue, width, 2), exact::<D>(&queue, width, 3));
    let mut y = around::<D>(&queue, offset, len, Kind::Activation);
    let to = ViewMut::new(&mut y, stride).skip(offset);
    queue.norm(Norm {
        rows,
        width,
        kind: NormKind::Layer,
        eps: 1e-3,
        x,
        weight: &weight,
        bias: Some(&bias),
        y: to,
    });
    let of_rows = inside::<D>(&queue, &y, offset, len);
    let to = ViewMut::new(&mut y, stride).skip(offset);
    let (weight, bias) = (&weight, &bias);
    queue.group_norm(GroupNorm { rows, width, groups, eps: 1e-3, silu: true, x, weight, bias, y: to });
    vec![of_rows, inside::<D>(&queue, &y, offset, len)]
}

fn windows<D: Device>(device: &D, precision: Precision, offset: usize, channels: usize) -> Vec<Vec<f32>> {
    let queue = device.queue(precision).unwrap();
    let (size, pixels) = ((3, 5), 2..13);
    let x = shifted::<D>(&queue, offset, 15 * channels, 1, Kind::Activation);
    let len = pixels.len() * 9 * channels;
    let mut out = around::<D>(&queue, offset, len, Kind::Activation);
    queue.windows(Windows {
        window: ConvWindow::Three,
        size,
        channels,
        pixels,
        x: View::new(&x, channels).skip(offset),
        out: ViewMut::new(&mut out, 1).skip(offset),
    });
    vec![inside::<D>(&queue, &out, offset, len)]
}

#[test]
fn neighbouring_values_have_the_same_bits_wherever_they_begin() {
    let Some(devices) = devices() else { return };
    for len in [1, 8, 37, 2056] {
        assert_same_at_every_offset("flat", |precision, offset| flat(&devices.1, precision, offset, len));
        agree!(devices, [1e-6, 6e-3], flat(3, len));
    }
}

#[test]
fn conversions_round_to_the_nearest_wherever_they_begin() {
    let Some((_, cuda)) = devices() else { return };
    let queue = cuda.queue(Precision::Bf16).unwrap();
    // Halfway between two values of bf16: the even one.
    let half = 1.0 / 256.0;
    let mut values = vec![1.0 + half, 1.0 + 3.0 * half, -1.0 - half, -1.0 - 3.0 * half];
    values.extend(numbers(37, 1).iter().map(|v| v * 1.002));
    let expected: Vec<f32> = values.iter().map(|v| bf16::from_f32(*v).to_f32()).collect();
    for offset in OFFSETS {
        let x = queue.upload(&[&vec![0.0; offset][..], &values].concat(), Kind::Exact);
        let mut y = around::<Cuda>(&queue, offset, values.len(), Kind::Activation);
        let to = ViewMut::new(&mut y, values.len()).skip(offset);
        queue.copy_to(View::new(&x, values.len()).skip(offset), values.len(), to);
        assert_eq!(inside::<Cuda>(&queue, &y, offset, values.len()), expected, "from {offset} on");
    }
}

#[test]
fn converted_operands_have_the_same_bits_wherever_they_begin() {
    let Some(devices) = devices() else { return };
    for width in [1, 8, 37, 64] {
        assert_same_at_every_offset("product", |precision, offset| {
            product(&devices.1, precision, offset, width)
        });
        agree!(devices, [5e-6, 1.2e-2], product(3, width));
    }
}

#[test]
fn norms_have_the_same_bits_wherever_rows_begin() {
    let Some(devices) = devices() else { return };
    for &case in SMALL.norms {
        assert_same_at_every_offset("norms", |precision, offset| norms(&devices.1, precision, offset, case));
    }
}

#[test]
fn windows_have_the_same_bits_wherever_the_picture_begins() {
    let Some(devices) = devices() else { return };
    for channels in [3, 8, 20, 64] {
        assert_same_at_every_offset("windows", |precision, offset| {
            windows(&devices.1, precision, offset, channels)
        });
        agree!(devices, [0.0, 0.0], windows(5, channels));
    }
}
