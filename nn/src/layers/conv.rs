//! Convolutions of pictures, channels last.
//!
//! ```text
//! H, W  rows and columns of pixels    I  input channels    O  output channels    S  side of a window
//! ```
//!
//! A convolution is a product of windows and the weight. The processor reads windows where the pictures are. Other devices copy
//! those of a block of output pixels into rows first: memory beside input and output is bounded whatever the pictures' size. Blocks
//! run through all pictures, so that small ones share a product.
//!
//! The backward by the input, for the weight is frozen, is a convolution, too, where windows are read and overlap by one pixel each; else it
//! takes the same way back. With factors it is that of `conv_trained`.

use std::ops::Range;

use super::{Context, Frozen, InputGrad, Linear, Loading, Map, Output, linears};
use crate::{
    device::{ConvWindow, Device, Kind, Left, Queue, View, ViewMut, WindowRows, Windows, WindowsBackward},
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
    pub(super) linear: Linear<D>,
    name: String,
    inputs: usize,
    pub(super) window: ConvWindow,
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
        let weight = Frozen::of_windows(device, weight, (outputs, inputs), window, loading)?;
        Ok(Self { linear: Linear::plain(device, weight, bias)?, name, inputs, window })
    }

    /// The same as the linear of this number among those that an adapter may have factors for.
    #[must_use]
    pub fn numbered(self, index: usize) -> Self {
        Self { linear: self.linear.numbered(index), ..self }
    }

    /// The product that its windows go through.
    pub fn linear(&self) -> &Linear<D> {
        &self.linear
    }

    /// The convolution of pictures.
    ///
    /// # Errors
    /// If they have other channels; if the device has no room for the weight.
    pub fn run(&self, queue: &D::Queue, x: &Map<D>) -> Result<Map<D>> {
        self.run_as(queue, x, Kind::Activation)
    }

    /// The same, with a result of this kind.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_as(&self, queue: &D::Queue, x: &Map<D>, kind: Kind) -> Result<Map<D>> {
        self.run_in(Context { queue, branches: None }, x, kind)
    }

    /// The same with its factors, if the adapter has some.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_in(&self, ctx: Context<'_, D>, x: &Map<D>, kind: Kind) -> Result<Map<D>> {
        let queue = ctx.queue;
        if x.channels != self.inputs {
            return Err(Error::shape(format!("channels for `{}`", self.name), self.inputs, x.channels));
        }
        let (window, outputs) = (self.window, self.linear.outputs());
        let (height, width) = (window.output(x.height), window.output(x.width));
        let rows = x.samples * height * width;
        let mut values = queue.take(rows * outputs, kind);
        if D::READS_WINDOWS && !self.is_plain() {
            let out = ViewMut::new(&mut values, outputs);
            linears(ctx, rows, Left::Windows(self.windows_of(x)), &mut [Output(&self.linear, out)])?;
            return Ok(Map { samples: x.samples, height, width, channels: outputs, values });
        }
        let terms = self.linear.inputs();
        let mut copied = self.block_buffer(queue, rows);
        for block in self.blocks(rows) {
            let windows = match &mut copied {
                None => x.view(),
                Some(copied) => {
                    self.copy_windows(queue, x, &block, copied);
                    View::new(copied, terms)
                }
            };
            let out = ViewMut::new(&mut values, outputs).skip(block.start * outputs);
            linears(ctx, block.len(), windows, &mut [Output(&self.linear, out)])?;
        }
        Ok(Map { samples: x.samples, height, width, channels: outputs, values })
    }

    /// What a product reads of pictures.
    pub(super) fn windows_of<'a>(&self, x: &'a Map<D>) -> WindowRows<'a, D> {
        WindowRows { window: self.window, size: (x.height, x.width), channels: x.channels, x: x.view() }
    }

    /// The output pixels of all pictures in blocks.
    pub(super) fn blocks(&self, rows: usize) -> impl Iterator<Item = Range<usize>> + use<D> {
        let most = if self.is_plain() { rows.max(1) } else { block_pixels(self.linear.inputs()) };
        (0..rows).step_by(most).map(move |first| first..rows.min(first + most))
    }

    /// Working memory for the windows of a block; nothing where a window is a pixel.
    pub(super) fn block_buffer(&self, queue: &D::Queue, rows: usize) -> Option<D::Buffer> {
        let terms = self.linear.inputs();
        let len = block_pixels(terms).min(rows) * terms;
        (!self.is_plain() && rows > 0).then(|| queue.take(len, Kind::Activation))
    }

    /// Copies the windows of a block of output pixels into rows.
    pub(super) fn copy_windows(
        &self,
        queue: &D::Queue,
        x: &Map<D>,
        block: &Range<usize>,
        to: &mut D::Buffer,
    ) {
        let (window, terms) = (self.window, self.linear.inputs());
        let outputs = window.output(x.height) * window.output(x.width);
        for (sample, pixels) in by_sample(block, outputs) {
            let at = sample * outputs + pixels.start - block.start;
            queue.windows(Windows {
                window,
                size: (x.height, x.width),
                channels: x.channels,
                pixels,
                x: x.view().skip(sample * x.pixels() * x.channels),
                out: ViewMut::new(to, terms).skip(at * terms),
            });
        }
    }

    /// Its backward: the cotangent of the input, pictures of `(height, width)` pixels, from that of the result.
    ///
    /// # Errors
    /// If the device has no room for the weight.
    pub fn backward(&self, queue: &D::Queue, (height, width): (usize, usize), dy: &Map<D>) -> Result<Map<D>> {
        let (window, terms, channels) = (self.window, self.linear.inputs(), self.inputs);
        let (samples, rows) = (dy.samples, dy.rows());
        let by_input = |block: &Range<usize>, to: ViewMut<'_, D>| {
            let dy = dy.view().skip(block.start * dy.channels);
            self.linear.backward(queue, block.len(), dy, InputGrad { values: to, accumulate: false })
        };
        let each = height * width * channels;
        let mut values = queue.take(samples * each, Kind::Activation);
        if window == ConvWindow::One {
            by_input(&(0..rows), ViewMut::new(&mut values, channels))?;
            return Ok(Map { samples, height, width, channels, values });
        }
        if self.linear.is_turned() {
            let dx = ViewMut::new(&mut values, channels);
            self.linear.backward_of_windows(queue, rows, self.windows_of(dy), dx)?;
            return Ok(Map { samples, height, width, channels, values });
        }
        let mut windows = queue.take(block_pixels(terms).min(rows) * terms, Kind::Activation);
        for block in self.blocks(rows) {
            by_input(&block, ViewMut::new(&mut windows, terms))?;
            for (sample, pixels) in by_sample(&block, dy.pixels()) {
                let at = sample * dy.pixels() + pixels.start - block.start;
                queue.windows_backward(WindowsBackward {
                    window,
                    size: (height, width),
                    channels,
                    accumulate: pixels.start > 0,
                    pixels,
                    dy: View::new(&windows, terms).skip(at * terms),
                    dx: ViewMut::new(&mut values, channels).skip(sample * each),
                });
            }
        }
        Ok(Map { samples, height, width, channels, values })
    }
}

/// The parts of a block that belong to one picture of so many output pixels: its number, and its pixels.
pub(super) fn by_sample(
    block: &Range<usize>,
    pixels: usize,
) -> impl Iterator<Item = (usize, Range<usize>)> + use<> {
    let Range { start, end } = *block;
    let samples = start / pixels.max(1)..end.div_ceil(pixels.max(1));
    samples.map(move |sample| {
        let first = sample * pixels;
        (sample, start.max(first) - first..end.min(first + pixels) - first)
    })
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
        Map { samples: 1, height, width, channels: outputs, values: Buffer::owned(values) }
    }

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1000) as f32 / 500.0 - 1.0).collect()
    }

    /// `<dy, conv(x) - bias> = <backward(dy), x>` for two pictures, whatever they are: so for the transpose alone.
    fn backward_is_the_adjoint(cpu: &Cpu, conv: &Conv<Cpu>, x: &Map<Cpu>, bias: &[f32], seed: usize) {
        let queue = cpu.queue(Precision::F32).unwrap();
        let pair = [&x.values[..], &numbers(x.len(), seed + 3)].concat();
        let x = Map { samples: 2, values: Buffer::owned(pair), ..x.with(x.channels, Buffer::owned(vec![])) };
        let y = conv.run(&queue, &x).unwrap();
        let dy = y.with(y.channels, Buffer::owned(numbers(y.len(), seed + 4)));
        let dx = conv.backward(&queue, (x.height, x.width), &dy).unwrap();
        let product = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let bias: f64 = dy
            .values
            .iter()
            .enumerate()
            .map(|(i, dy)| f64::from(*dy) * f64::from(bias[i % bias.len()]))
            .sum();
        let (by_output, by_input) = (product(&dy.values, &y.values) - bias, product(&dx.values, &x.values));
        assert!((by_output - by_input).abs() < 1e-3, "{:?}: {by_output} and {by_input}", conv.window);
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
                let x = Map { samples: 1, height, width, channels: inputs, values: Buffer::owned(numbers(height * width * inputs, seed + 2)) };
                let (cpu, view) = (Cpu::new(2).unwrap(), |name| TensorView::whole(&files, name).unwrap());
                let tensors = (view("w"), Some(view("b")));
                let conv = Conv::new(&cpu, tensors, (inputs, outputs), window, Loading::default()).unwrap();
                let found = conv.run(&cpu.queue(Precision::F32).unwrap(), &x).unwrap();
                let expected = by_definition(&x, &weight, &bias, window);
                prop_assert_eq!((found.height, found.width), (expected.height, expected.width));
                for (a, b) in found.values.iter().zip(&*expected.values) {
                    prop_assert!((a - b).abs() < 1e-5, "{:?}: {} and {}", window, a, b);
                }
                backward_is_the_adjoint(&cpu, &conv, &x, &bias, seed);
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
        let x = Map { samples: 1, height: 1, width: 1, channels: 3, values: Buffer::owned(vec![0.0; 3]) };
        let error = conv.run(&cpu.queue(Precision::F32).unwrap(), &x).unwrap_err().to_string();
        assert!(error.contains("`w`") && error.contains("expected 2, got 3"), "{error}");
    }
}
