//! Convolutions of pictures, channels last, with the weights of a mapped file.
//!
//! ```text
//! H, W  rows and columns of pixels    I  input channels    O  output channels
//! ```
//!
//! A block of output pixels has its windows copied into rows, and one matrix product with the weight does the rest:
//! memory beside input and output is bounded whatever the picture's size.

use std::sync::Arc;

use rayon::{
    iter::{IndexedParallelIterator, ParallelIterator},
    slice::ParallelSliceMut,
};

use super::{Weight, dense, product_transposed};
use crate::{
    cpu::Cpu,
    error::{Error, Result},
    files::TensorFiles,
};

/// Values of the windows that are copied at a time.
const WINDOWS: usize = 1 << 23;
/// Pixels whose windows one task copies.
const TASK_PIXELS: usize = 64;

/// One picture inside a network, `[H, W, channels]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Map {
    /// H.
    pub height: usize,
    /// W.
    pub width: usize,
    /// Values of a pixel.
    pub channels: usize,
    /// Row-major, channels last.
    pub values: Vec<f32>,
}

impl Map {
    /// From planes `[channels, H, W]`.
    ///
    /// # Panics
    /// If the number of values is another.
    pub fn from_planes(planes: &[f32], (channels, height, width): (usize, usize, usize)) -> Self {
        assert_eq!(planes.len(), channels * height * width, "values of {channels} planes");
        let mut values = vec![0.0; planes.len()];
        for (channel, plane) in planes.chunks_exact((height * width).max(1)).enumerate() {
            for (to, from) in values[channel..].iter_mut().step_by(channels).zip(plane) {
                *to = *from;
            }
        }
        Self { height, width, channels, values }
    }

    /// Write the planes `[channels, H, W]`.
    ///
    /// # Panics
    /// If `planes` has another number of values.
    pub fn write_planes(&self, planes: &mut [f32]) {
        assert_eq!(planes.len(), self.values.len(), "values of {} planes", self.channels);
        for (channel, plane) in planes.chunks_exact_mut(self.pixels().max(1)).enumerate() {
            for (to, from) in plane.iter_mut().zip(self.values[channel..].iter().step_by(self.channels)) {
                *to = *from;
            }
        }
    }

    /// H * W.
    pub fn pixels(&self) -> usize {
        self.height * self.width
    }
}

/// Which input pixels an output pixel sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConvWindow {
    /// The pixel itself.
    One,
    /// The pixel and its eight neighbours; zeros outside the picture.
    Three,
    /// The same after every pixel has become 2x2 of its kind.
    ThreeOfDoubled,
    /// 3x3 at every second pixel, from that pixel on: zeros stand right and below only.
    ThreeHalving,
    /// 3x3 around every second pixel.
    ThreeHalvingCentred,
}

impl ConvWindow {
    /// Pixels along each side of what is seen.
    pub fn side(self) -> usize {
        if self == Self::One { 1 } else { 3 }
    }

    /// Extent of the output for an extent of the input.
    pub fn output(self, side: usize) -> usize {
        match self {
            Self::One | Self::Three => side,
            Self::ThreeOfDoubled => 2 * side,
            // With one row of zeros below, the last window begins two rows above the end.
            Self::ThreeHalving => side / 2,
            Self::ThreeHalvingCentred => side.div_ceil(2),
        }
    }

    /// The input pixel at place `tap` of the window of output pixel `at`, along one axis of `side` pixels.
    fn source(self, at: usize, tap: usize, side: usize) -> Option<usize> {
        match self {
            Self::One => Some(at),
            Self::Three => (at + tap).checked_sub(1).filter(|p| *p < side),
            Self::ThreeOfDoubled => (at + tap).checked_sub(1).map(|p| p / 2).filter(|p| *p < side),
            Self::ThreeHalving => Some(2 * at + tap).filter(|p| *p < side),
            Self::ThreeHalvingCentred => (2 * at + tap).checked_sub(1).filter(|p| *p < side),
        }
    }
}

/// A convolution: where its weight `[O, I, side, side]` and its bias `[O]` stand in a file.
#[derive(Clone, Debug)]
pub struct Conv<'a> {
    /// The file.
    pub files: &'a Arc<TensorFiles>,
    /// Name of the weight.
    pub weight: &'a str,
    /// Name of the bias, if there is one.
    pub bias: Option<&'a str>,
    /// I.
    pub inputs: usize,
    /// O.
    pub outputs: usize,
    /// What an output pixel sees.
    pub window: ConvWindow,
}

impl Conv<'_> {
    /// The convolution of a picture.
    ///
    /// # Errors
    /// If the picture has other channels, or the weights cannot be read.
    pub fn run(&self, device: &Cpu, x: &Map) -> Result<Map> {
        if x.channels != self.inputs {
            return Err(Error::shape(format!("channels for `{}`", self.weight), self.inputs, x.channels));
        }
        let bias = self.bias.map(|name| self.files.read_finite(name, &[self.outputs])).transpose()?;
        let (height, width) = (self.window.output(x.height), self.window.output(x.width));
        let mut out =
            Map { height, width, channels: self.outputs, values: vec![0.0; height * width * self.outputs] };
        if self.window == ConvWindow::One {
            let weight = Weight::locate(self.files, self.weight, self.outputs, self.inputs)?;
            let (x, out_values) = ((&x.values[..], self.inputs), (&mut out.values[..], self.outputs));
            dense(device, height * width, x, &weight, bias.as_deref(), out_values)?;
            return Ok(out);
        }
        let weight = self.taps_first()?;
        let terms = self.window.side().pow(2) * self.inputs;
        let pixels = block_pixels(terms);
        let mut windows = vec![0.0; pixels.min(height * width) * terms];
        for (block, out) in out.values.chunks_mut(pixels * self.outputs).enumerate() {
            let count = out.len() / self.outputs;
            let windows = &mut windows[..count * terms];
            self.copy_windows(device, x, block * pixels, width, windows);
            product_transposed(device, (count, self.outputs, terms), windows, &weight, out);
            if let Some(bias) = &bias {
                for row in out.chunks_exact_mut(self.outputs) {
                    row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
                }
            }
        }
        Ok(out)
    }

    /// The weight as `[O, side, side, I]`, so that a window is whole pixels.
    fn taps_first(&self) -> Result<Vec<f32>> {
        let side = self.window.side();
        let stored = self.files.read_finite(self.weight, &[self.outputs, self.inputs, side, side])?;
        let taps = side * side;
        let mut weight = vec![0.0; stored.len()];
        let filters = weight.chunks_exact_mut(taps * self.inputs);
        for (to, from) in filters.zip(stored.chunks_exact(taps * self.inputs)) {
            for (input, from) in from.chunks_exact(taps).enumerate() {
                for (tap, value) in from.iter().enumerate() {
                    to[tap * self.inputs + input] = *value;
                }
            }
        }
        Ok(weight)
    }

    /// The windows of output pixels from `first` on, one a row.
    fn copy_windows(&self, device: &Cpu, x: &Map, first: usize, out_width: usize, windows: &mut [f32]) {
        let (side, channels) = (self.window.side(), x.channels);
        let terms = side * side * channels;
        let copy = |pixel: usize, row: &mut [f32]| {
            let (y, column) = (pixel / out_width, pixel % out_width);
            for (tap, to) in row.chunks_exact_mut(channels).enumerate() {
                let from = self.window.source(y, tap / side, x.height);
                match from.zip(self.window.source(column, tap % side, x.width)) {
                    Some((y, column)) => {
                        to.copy_from_slice(&x.values[(y * x.width + column) * channels..][..channels]);
                    }
                    None => to.fill(0.0),
                }
            }
        };
        device.pool().install(|| {
            windows.par_chunks_mut(TASK_PIXELS * terms).enumerate().for_each(|(task, rows)| {
                for (row, pixel) in rows.chunks_exact_mut(terms).zip(first + task * TASK_PIXELS..) {
                    copy(pixel, row);
                }
            });
        });
    }
}

/// Output pixels of a block whose windows have this many values each.
fn block_pixels(terms: usize) -> usize {
    (WINDOWS / terms.max(1)).max(TASK_PIXELS)
}

/// Floating-point operations of a convolution of a picture of `pixels` output pixels.
pub fn conv_flops(window: ConvWindow, (inputs, outputs): (usize, usize), pixels: f64) -> f64 {
    2.0 * (window.side().pow(2) * inputs * outputs) as f64 * pixels
}

/// Values of working memory that a convolution takes beside its input and its output: windows, and the weight three
/// times (as it is stored, in the order of the windows, and packed).
pub fn conv_scratch(window: ConvWindow, (inputs, outputs): (usize, usize), pixels: f64) -> f64 {
    let terms = window.side().pow(2) * inputs;
    let windows =
        if window == ConvWindow::One { 0.0 } else { (block_pixels(terms) as f64).min(pixels) * terms as f64 };
    windows + (3 * terms * outputs) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::files::{NamedTensor, write_safetensors};

    /// The definition, pixel by pixel, over a picture with its zeros written out.
    fn by_definition(x: &Map, weight: &[f32], bias: &[f32], window: ConvWindow) -> Map {
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
        Map { height, width, channels: outputs, values }
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
                let x = Map { height, width, channels: inputs, values: numbers(height * width * inputs, seed + 2) };
                let conv = Conv { files: &files, weight: "w", bias: Some("b"), inputs, outputs, window };
                let found = conv.run(&Cpu::new(2).unwrap(), &x).unwrap();
                let expected = by_definition(&x, &weight, &bias, window);
                prop_assert_eq!((found.height, found.width), (expected.height, expected.width));
                for (a, b) in found.values.iter().zip(&expected.values) {
                    prop_assert!((a - b).abs() < 1e-5, "{:?}: {} and {}", window, a, b);
                }
            }
        }
    }

    #[test]
    fn planes_become_pixels_and_planes_again() {
        let planes = numbers(3 * 4 * 5, 3);
        let map = Map::from_planes(&planes, (3, 4, 5));
        assert_eq!(map.values[..3], [planes[0], planes[20], planes[40]]);
        let mut back = vec![0.0; planes.len()];
        map.write_planes(&mut back);
        assert_eq!(back, planes);
    }

    #[test]
    fn other_channels_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        write_safetensors(&path, &[NamedTensor::f32("w", vec![1, 2, 1, 1], &[1.0, 2.0])], &[]).unwrap();
        let files = Arc::new(TensorFiles::open(&path).unwrap());
        let conv =
            Conv { files: &files, weight: "w", bias: None, inputs: 2, outputs: 1, window: ConvWindow::One };
        let x = Map { height: 1, width: 1, channels: 3, values: vec![0.0; 3] };
        let error = conv.run(&Cpu::new(1).unwrap(), &x).unwrap_err().to_string();
        assert!(error.contains("`w`") && error.contains("expected 2, got 3"), "{error}");
    }
}
