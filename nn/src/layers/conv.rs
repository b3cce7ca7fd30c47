//! Convolutions of pictures, channels last.
//!
//! ```text
//! H, W  rows and columns of pixels    I  input channels    O  output channels    S  side of a window
//! ```
//!
//! A block of output pixels has its windows copied into rows, and one matrix product with the weight does the rest:
//! memory beside input and output is bounded whatever the picture's size.

use super::{Frozen, Linear, Loading, Map};
use crate::{
    device::{ConvWindow, Device, Kind, Queue, View, ViewMut, Windows},
    error::{Error, Result},
    files::TensorView,
};

/// Values of the windows that are copied at a time.
const WINDOWS: usize = 1 << 23;
/// Fewest pixels whose windows are copied at a time.
const BLOCK_PIXELS: usize = 64;

/// A frozen convolution, whose weight `[O, I, S, S]` is kept in the order of its windows.
#[derive(Debug)]
pub struct Conv<D: Device> {
    /// `[S S I, O]`.
    linear: Linear<D>,
    name: String,
    inputs: usize,
    window: ConvWindow,
}

impl<D: Device> Conv<D> {
    /// From its weight and its bias, if it has one.
    ///
    /// # Errors
    /// If one of them has another shape or, of what is read here, holds a value that is not finite; if the device has no
    /// room.
    pub fn new(
        device: &D,
        (weight, bias): (TensorView, Option<TensorView>),
        (inputs, outputs): (usize, usize),
        window: ConvWindow,
        loading: Loading,
    ) -> Result<Self> {
        let name = weight.name().to_owned();
        let weight = Frozen::of_windows(device, weight, (outputs, inputs), window.side(), loading)?;
        Ok(Self { linear: Linear::plain(device, weight, bias)?, name, inputs, window })
    }

    /// The convolution of a picture.
    ///
    /// # Errors
    /// If the picture has other channels; if the device has no room for the weight.
    pub fn run(&self, queue: &D::Queue, x: &Map<D>) -> Result<Map<D>> {
        if x.channels != self.inputs {
            return Err(Error::shape(format!("channels for `{}`", self.name), self.inputs, x.channels));
        }
        let (window, outputs) = (self.window, self.linear.outputs());
        let (height, width) = (window.output(x.height), window.output(x.width));
        let pixels = height * width;
        let mut values = queue.take(pixels * outputs, Kind::Activation);
        if window == ConvWindow::One {
            self.linear.write(queue, pixels, x.view(), ViewMut::new(&mut values, outputs))?;
            return Ok(Map { height, width, channels: outputs, values });
        }
        let terms = self.linear.inputs();
        let most = block_pixels(terms).min(pixels);
        let mut windows = queue.take(most * terms, Kind::Activation);
        for first in (0..pixels).step_by(most.max(1)) {
            let count = most.min(pixels - first);
            queue.windows(Windows {
                window,
                size: (x.height, x.width),
                channels: x.channels,
                pixels: first..first + count,
                x: x.view(),
                out: ViewMut::new(&mut windows, terms),
            });
            let out = ViewMut::new(&mut values, outputs).skip(first * outputs);
            self.linear.write(queue, count, View::new(&windows, terms), out)?;
        }
        Ok(Map { height, width, channels: outputs, values })
    }
}

/// Output pixels of a block whose windows have this many values each.
fn block_pixels(terms: usize) -> usize {
    (WINDOWS / terms.max(1)).max(BLOCK_PIXELS)
}

/// Floating-point operations of a convolution of a picture of `pixels` output pixels.
pub fn conv_flops(window: ConvWindow, (inputs, outputs): (usize, usize), pixels: f64) -> f64 {
    2.0 * (window.side().pow(2) * inputs * outputs) as f64 * pixels
}

/// Values of working memory that a convolution takes beside its input and its output: its windows.
pub fn conv_scratch(window: ConvWindow, inputs: usize, pixels: f64) -> f64 {
    let terms = window.side().pow(2) * inputs;
    if window == ConvWindow::One { 0.0 } else { (block_pixels(terms) as f64).min(pixels) * terms as f64 }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        Cpu,
        cpu::Buffer,
        device::Precision,
        files::{NamedTensor, TensorFiles, write_safetensors},
    };

    /// The definition, pixel by pixel, over a picture with its zeros written out.
    fn by_definition(x: &Map<Cpu>, weight: &[f32], bias: &[f32], window: ConvWindow) -> Map<Cpu> {
        let (side, outputs) = (window.side(), bias.len());
        let doubled = if window == ConvWindow::ThreeOfDoubled { 2 } else { 1 };
        let (stride, before) = match window {
            ConvWindow::One => (1, 0),
            ConvWindow::Three | ConvWindow::ThreeOfDoubled => (1, 1),
            ConvWindow::ThreeHalving => (2, 0),
            ConvWindow::ThreeHalvingCentred => (2, 1),
        };
        let padded = |y: usize, x_: usize, c: usize| -> f32 {
            let (y, x_) = (y as isize - before, x_ as isize - before);
            let inside =
                y >= 0 && x_ >= 0 && (y as usize) < doubled * x.height && (x_ as usize) < doubled * x.width;
            if !inside {
                return 0.0;
            }
            x.values[(y as usize / doubled * x.width + x_ as usize / doubled) * x.channels + c]
        };
        let (height, width) = (window.output(x.height), window.output(x.width));
        let mut values = Vec::new();
        for pixel in 0..height * width {
            for (o, bias) in bias.iter().enumerate() {
                let mut sum = f64::from(*bias);
                for c in 0..x.channels {
                    for tap in 0..side * side {
                        let (y, x_) =
                            (pixel / width * stride + tap / side, pixel % width * stride + tap % side);
                        let w = weight[(o * x.channels + c) * side * side + tap];
                        sum += f64::from(w) * f64::from(padded(y, x_, c));
                    }
                }
                values.push(sum as f32);
            }
        }
        Map { height, width, channels: outputs, values: Buffer::owned(values) }
    }

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1000) as f32 / 500.0 - 1.0).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn every_window_gives_the_sum_of_its_definition(
            height in 2usize..9, width in 2usize..9, inputs in 1usize..6, outputs in 1usize..5, seed in 0usize..50
        ) {
            let windows = [
                ConvWindow::One, ConvWindow::Three, ConvWindow::ThreeOfDoubled, ConvWindow::ThreeHalving,
                ConvWindow::ThreeHalvingCentred,
            ];
            let dir = tempfile::tempdir().unwrap();
            for window in windows {
                let side = window.side();
                let (weight, bias) = (numbers(outputs * inputs * side * side, seed), numbers(outputs, seed + 1));
                let path = dir.path().join("w.safetensors");
                let shape = vec![outputs, inputs, side, side];
                let tensors =
                    [NamedTensor::f32("w", shape, &weight), NamedTensor::f32("b", vec![outputs], &bias)];
                write_safetensors(&path, &tensors, &[]).unwrap();
                let files = Arc::new(TensorFiles::open(&path).unwrap());
                let x = Map { height, width, channels: inputs, values: Buffer::owned(numbers(height * width * inputs, seed + 2)) };
                let (cpu, view) = (Cpu::new(2).unwrap(), |name| TensorView::whole(&files, name).unwrap());
                let tensors = (view("w"), Some(view("b")));
                let conv = Conv::new(&cpu, tensors, (inputs, outputs), window, Loading::default()).unwrap();
                let found = conv.run(&cpu.queue(Precision::F32).unwrap(), &x).unwrap();
                let expected = by_definition(&x, &weight, &bias, window);
                prop_assert_eq!((found.height, found.width), (expected.height, expected.width));
                for (a, b) in found.values.iter().zip(&*expected.values) {
                    prop_assert!((a - b).abs() < 1e-5, "{:?}: {} and {}", window, a, b);
                }
            }
        }
    }

    #[test]
    fn other_channels_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        write_safetensors(&path, &[NamedTensor::f32("w", vec![1, 2, 1, 1], &[1.0, 2.0])], &[]).unwrap();
        let files = Arc::new(TensorFiles::open(&path).unwrap());
        let cpu = Cpu::new(1).unwrap();
        let tensors = (TensorView::whole(&files, "w").unwrap(), None);
        let conv = Conv::new(&cpu, tensors, (2, 1), ConvWindow::One, Loading::default()).unwrap();
        let x = Map { height: 1, width: 1, channels: 3, values: Buffer::owned(vec![0.0; 3]) };
        let error = conv.run(&cpu.queue(Precision::F32).unwrap(), &x).unwrap_err().to_string();
        assert!(error.contains("`w`") && error.contains("expected 2, got 3"), "{error}");
    }
}
