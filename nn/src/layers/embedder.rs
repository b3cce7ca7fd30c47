//! The embedding of a number or a vector for a whole sample, e.g. the time of a pass: a sinusoid, and two linears with a SiLU between.
//!
//! `N` batch, `K` width of the sinusoid, `D` width.

use super::{Context, Linear, Output, linears_of_samples};
use crate::{
    device::{Activation, Device, Kind, Queue, View, ViewMut},
    error::Result,
};

/// The longest period of the sinusoid.
const LONGEST_PERIOD: f32 = 10_000.0;

/// `[N, K]`: cosines, then sines, of each value by falling frequencies, in f32 as published models have it.
pub fn sinusoid(values: &[f32], width: usize) -> Vec<f32> {
    let half = width / 2;
    let mut out = vec![0.0; values.len() * width];
    for (row, value) in out.chunks_exact_mut(width).zip(values) {
        for i in 0..half {
            let exponent = -libm::logf(LONGEST_PERIOD) * i as f32 / half as f32;
            // Exponent, frequency and angle are rounded to f32, since published models were trained so: at the
            // highest angles, thousands, a frequency that is off by one bit is seen in the prediction.
            let frequency = libm::exp(f64::from(exponent)) as f32;
            let angle = f64::from(value * frequency);
            row[i] = libm::cos(angle) as f32;
            row[half + i] = libm::sin(angle) as f32;
        }
    }
    out
}

/// Two linears with a SiLU between.
#[derive(Debug)]
pub struct Embedder<D: Device> {
    /// `[K, D]`.
    pub first: Linear<D>,
    /// `[D, D]`.
    pub second: Linear<D>,
}

impl<D: Device> Embedder<D> {
    /// `second(silu(first(x)))`, `[N, D]`, of `x [N, K]` from the host.
    ///
    /// # Errors
    /// If the device has no room for a weight.
    pub fn run(&self, ctx: Context<'_, D>, rows: usize, x: &[f32]) -> Result<D::Buffer> {
        let queue = ctx.queue;
        let width = self.first.outputs();
        let take = |width: usize| queue.take(rows * width, Kind::Activation);
        let (mut hidden, mut active) = (take(width), take(width));
        let inputs = queue.upload(x, Kind::Activation);
        let output = ViewMut::new(&mut hidden, width);
        linears_of_samples(
            ctx,
            rows,
            View::new(&inputs, x.len() / rows),
            &mut [Output(&self.first, output)],
        )?;
        let (from, to) = (View::new(&hidden, width), ViewMut::new(&mut active, width));
        queue.activate(Activation::Silu, (rows, width), from, to);
        let width_out = self.second.outputs();
        let mut out = take(width_out);
        let output = ViewMut::new(&mut out, width_out);
        linears_of_samples(ctx, rows, View::new(&active, width), &mut [Output(&self.second, output)])?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sinusoid_is_cosines_then_sines_by_falling_frequencies() {
        let row = sinusoid(&[250.0], 256);
        assert!((f64::from(row[0]) - libm::cos(250.0)).abs() < 1e-6);
        assert!((f64::from(row[128]) - libm::sin(250.0)).abs() < 1e-6);
        let slow = 250.0 * libm::exp(-libm::log(10_000.0) * 127.0 / 128.0);
        assert!((f64::from(row[255]) - libm::sin(slow)).abs() < 1e-6);
    }
}
