//! The backward of a convolution with factors.
//!
//! ```text
//! y = W w + s B A w        for the window w of every pixel        dB = s dy^T h    h = w A^T    dA = (s dy B)^T w    dw = dy W + (s dy B) A
//! ```
//!
//! Windows are made again, block by block, and the blocks of dA are added in their order. Where `dy W` is a convolution, what the factors
//! add to it is not: it goes the way of the blocks.
//!
//! `P` pixels of all results, `S` side of a window, `I` channels, `O` output channels, `R` rank.

use super::{
    Branches, Context, InputGrad, Map,
    conv::{Conv, by_sample},
    linear::{by_input, product},
};
use crate::{
    device::{ConvWindow, Device, Direction, Extra, GemmTn, Kind, Queue, View, ViewMut, WindowsBackward},
    error::{Error, Result},
};

impl<D: Device> Conv<D> {
    /// The cotangent of the input, pictures of `(height, width)` pixels, where `wanted`, from that of the result. If the convolution has
    /// factors, their derivative goes into `grads`, for which `x`, the forward's input, is needed.
    ///
    /// # Errors
    /// If `x` is missing although there are factors; if the device has no room for the weight.
    pub fn backward_in(
        &self,
        ctx: Context<'_, D>,
        x: Option<&Map<D>>,
        (height, width): (usize, usize),
        dy: &Map<D>,
        wanted: bool,
        grads: &mut D::Buffer,
    ) -> Result<Option<Map<D>>> {
        match ctx.branches.filter(|branches| branches.adapts(&self.linear)) {
            None if wanted => self.backward(ctx.queue, (height, width), dy).map(Some),
            None => Ok(None),
            Some(branches) => {
                let x = x.ok_or_else(|| {
                    Error::Internal("the input of an adapted convolution was not kept".into())
                })?;
                self.with_factors(ctx.queue, branches, x, dy, wanted, grads)
            }
        }
    }

    fn with_factors(
        &self,
        queue: &D::Queue,
        branches: &Branches<D>,
        x: &Map<D>,
        dy: &Map<D>,
        wanted: bool,
        grads: &mut D::Buffer,
    ) -> Result<Option<Map<D>>> {
        let (rows, terms, rank, outputs) = (dy.rows(), self.linear.inputs(), branches.rank, dy.channels);
        let linear = || std::iter::once(&self.linear);
        let gone = || Error::Internal("a convolution has lost its factors".into());
        let (a_place, b_place) = branches.place(&self.linear).ok_or_else(gone)?;
        let (a, _) = branches.stacked_a(queue, linear(), Direction::Forward).ok_or_else(gone)?;
        let (a_back, _) = branches.stacked_a(queue, linear(), Direction::Backward).ok_or_else(gone)?;
        let b = branches.scaled_b(queue, &self.linear, Direction::Backward).ok_or_else(gone)?;

        let [mut h, mut dh] = [(); 2].map(|()| queue.take(rows * rank, Kind::Activation));
        product(queue, rows, dy.view(), (&b, Direction::Backward), false, ViewMut::new(&mut dh, rank));
        let turned = self.linear.is_turned();
        let mut dx = match wanted {
            true if turned => Some(self.backward(queue, (x.height, x.width), dy)?.values),
            true => Some(queue.take(x.len(), Kind::Activation)),
            false => None,
        };
        let [mut da, mut part] = [(); 2].map(|()| queue.take(rank * terms, Kind::Exact));
        let mut copied = self.block_buffer(queue, rows);
        let mut by_windows = self.block_buffer(queue, if wanted { rows } else { 0 });
        for block in self.blocks(rows) {
            let (m, first) = (block.len(), block.start == 0);
            let windows = match &mut copied {
                None => x.view(),
                Some(copied) => {
                    self.copy_windows(queue, x, &block, copied);
                    View::new(copied, terms)
                }
            };
            let to = ViewMut::new(&mut h, rank).skip(block.start * rank);
            product(queue, m, windows, (&a, Direction::Forward), false, to);
            let dh = View::new(&dh, rank).skip(block.start * rank);
            let out = ViewMut::new(if first { &mut da } else { &mut part }, terms);
            queue.gemm_tn(GemmTn { m, p: rank, q: terms, a: dh, b: windows, scale: 1.0, out });
            if !first {
                let (from, to) = (View::new(&part, terms), ViewMut::new(&mut da, terms));
                queue.add_scaled(1.0, from, to, rank * terms);
            }
            let Some(dx) = &mut dx else { continue };
            let trained = Extra { x: dh.into(), weight: &a_back, direction: Direction::Backward };
            let outputs = [(&self.linear, dy.view().skip(block.start * outputs))];
            let mut to = match &mut by_windows {
                None => ViewMut::new(dx, x.channels),
                Some(windows) => ViewMut::new(windows, terms),
            };
            if turned {
                product(queue, m, dh, (&a_back, Direction::Backward), false, to.again());
            } else {
                let to = InputGrad { values: to, accumulate: false };
                by_input(queue, m, &outputs, Some(trained), to)?;
            }
            let Some(windows) = &by_windows else { continue };
            for (sample, pixels) in by_sample(&block, dy.pixels()) {
                let at = sample * dy.pixels() + pixels.start - block.start;
                queue.windows_backward(WindowsBackward {
                    window: self.window,
                    size: (x.height, x.width),
                    channels: x.channels,
                    accumulate: turned || pixels.start > 0,
                    pixels,
                    dy: View::new(windows, terms).skip(at * terms),
                    dx: ViewMut::new(dx, x.channels).skip(sample * x.pixels() * x.channels),
                });
            }
        }
        let out = ViewMut::new(grads, rank).skip(b_place.start);
        let (a, b, scale) = (dy.view(), View::new(&h, rank), branches.scale);
        queue.gemm_tn(GemmTn { m: rows, p: outputs, q: rank, a, b, scale, out });
        let taps = self.window.side().pow(2);
        branches.channels_first(queue, &da, (rank, taps, terms / taps), grads, a_place.start);
        Ok(dx.map(|values| x.with(x.channels, values)))
    }

    /// Is it a product with the pixels as they are?
    pub(super) fn is_plain(&self) -> bool {
        self.window == ConvWindow::One
    }
}
