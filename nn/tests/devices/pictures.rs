//! The windows of convolutions over pictures, and their backward.

use prefgraph_nn::device::{
    ConvWindow, Device, Kind, Precision, Queue, View, ViewMut, Windows, WindowsBackward,
};

use crate::{
    agree,
    cases::{Picture, SMALL, numbers::activations},
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
