//! The windows of convolutions over pictures, and their backward.

use prefgraph_nn::device::{
    ConvWindow, Device, Direction, Gemm, Kind, Left, Matrix, Precision, Queue, View, ViewMut, WindowRows,
    Windows, WindowsBackward,
};

use crate::{
    agree,
    cases::{
        Picture, SMALL,
        numbers::{activations, numbers},
    },
    devices, read,
};

fn windows<D: Device>(device: &D, precision: Precision, picture: Picture) -> Vec<Vec<f32>> {
    use ConvWindow::{One, Three, ThreeHalving, ThreeHalvingCentred, ThreeOfDoubled};
    let queue = device.queue(precision).unwrap();
    let Picture { height, width, channels } = picture;
    let size = (height, width);
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

fn windows_in_a_product<D: Device>(device: &D, precision: Precision, picture: Picture) -> Vec<Vec<f32>> {
    use ConvWindow::{Three, ThreeHalvingCentred, ThreeOfDoubled};
    let queue = device.queue(precision).unwrap();
    let Picture { height, width, channels } = picture;
    let (size, n, direction) = ((height, width), 24, Direction::Forward);
    let x = activations::<D>(&queue, 2 * height * width * channels, 1);
    let mut results = Vec::new();
    for window in [Three, ThreeOfDoubled, ThreeHalvingCentred] {
        let m = 2 * window.output(size.0) * window.output(size.1);
        let k = window.side() * window.side() * channels;
        let weight = numbers(n * k, 2);
        let weight = device.frozen(&Matrix::of(&weight, n, k), None, direction, precision, false).unwrap();
        let mut out = queue.zeros(m * n, Kind::Activation);
        let x = Left::Windows(WindowRows { window, size, channels, x: View::new(&x, channels) });
        let (weight, out_rows) = (&weight, ViewMut::new(&mut out, n));
        queue.gemm(Gemm {
            m,
            x,
            weight,
            direction,
            extra: None,
            bias: None,
            accumulate: false,
            out: out_rows,
        });
        results.extend(read::<D>(&queue, &[(&out, m * n)]));
    }
    results
}

#[test]
fn products_with_windows_agree() {
    let Some(devices) = devices() else { return };
    for &picture in SMALL.pictures {
        agree!(devices, [1e-5, 2e-2], windows_in_a_product(picture));
    }
}

#[test]
fn windows_of_convolutions_are_exact() {
    let Some(devices) = devices() else { return };
    for &picture in SMALL.pictures {
        agree!(devices, [0.0, 0.0], windows(picture));
    }
}

fn windows_backward<D: Device>(device: &D, precision: Precision, picture: Picture) -> Vec<Vec<f32>> {
    use ConvWindow::{One, Three, ThreeHalving, ThreeHalvingCentred, ThreeOfDoubled};
    let queue = device.queue(precision).unwrap();
    let Picture { height, width, channels } = picture;
    let size = (height, width);
    let len = height * width * channels;
    let mut results = Vec::new();
    for window in [One, Three, ThreeOfDoubled, ThreeHalving, ThreeHalvingCentred] {
        let all = window.output(size.0) * window.output(size.1);
        let terms = window.side() * window.side() * channels;
        let mut dx = activations::<D>(&queue, len, 1);
        // All at once, and then in two blocks, of which the second adds to the first.
        for (pixels, accumulate) in [(0..all, false), (0..all / 3, false), (all / 3..all, true)] {
            let dy = activations::<D>(&queue, pixels.len() * terms, 2);
            let (dy, to) = (View::new(&dy, terms), ViewMut::new(&mut dx, channels));
            let call = WindowsBackward { window, size, channels, pixels, dy, dx: to, accumulate };
            queue.windows_backward(call);
            results.extend(read::<D>(&queue, &[(&dx, len)]));
        }
    }
    results
}

#[test]
fn cotangents_of_windows_agree() {
    let Some(devices) = devices() else { return };
    for &picture in SMALL.pictures {
        agree!(devices, [0.0, 1e-2], windows_backward(picture));
    }
}
