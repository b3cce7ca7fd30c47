//! The conditioning vector of a pass: time, guidance and pooled text, one vector per sample.
//!
//! `N` batch, `D` width.

use super::{config::SINUSOID, weights::Embedder};
use crate::{
    device::{Activation, Device, Kind, Queue, View, ViewMut},
    error::Result,
    layers::{Context, Output, linears},
};

/// Times in [0, 1] and guidance are multiplied by this before the sinusoid.
const TIME_SCALE: f32 = 1000.0;
/// The longest period of the sinusoid.
const LONGEST_PERIOD: f32 = 10_000.0;

/// `[N, 256]`: cosines, then sines, of the scaled value by falling frequencies, in f32 as published models have it.
pub(super) fn sinusoid(values: &[f32]) -> Vec<f32> {
    const HALF: usize = SINUSOID / 2;
    let mut out = vec![0.0; values.len() * SINUSOID];
    for (row, value) in out.chunks_exact_mut(SINUSOID).zip(values) {
        for i in 0..HALF {
            let exponent = -libm::logf(LONGEST_PERIOD) * i as f32 / HALF as f32;
            // Exponent, frequency and angle are rounded to f32, since published models were trained so: at the
            // highest angles, thousands, a frequency that is off by one bit is seen in the prediction.
            let frequency = libm::exp(f64::from(exponent)) as f32;
            let angle = f64::from(value * TIME_SCALE * frequency);
            row[i] = libm::cos(angle) as f32;
            row[HALF + i] = libm::sin(angle) as f32;
        }
    }
    out
}

/// `second(silu(first(x)))`, `[N, D]`.
pub(super) fn embed<D: Device>(
    ctx: Context<'_, D>,
    embedder: &Embedder<D>,
    rows: usize,
    x: &[f32],
) -> Result<D::Buffer> {
    let queue = ctx.queue;
    let width = embedder.first.outputs();
    let take = |width: usize| queue.take(rows * width, Kind::Activation);
    let (mut hidden, mut active) = (take(width), take(width));
    let inputs = queue.upload(x, Kind::Activation);
    let output = ViewMut::new(&mut hidden, width);
    linears(ctx, rows, View::new(&inputs, x.len() / rows), &mut [Output(&embedder.first, output)])?;
    let (from, to) = (View::new(&hidden, width), ViewMut::new(&mut active, width));
    queue.activate(Activation::Silu, (rows, width), from, to);
    let width_out = embedder.second.outputs();
    let mut out = take(width_out);
    let output = ViewMut::new(&mut out, width_out);
    linears(ctx, rows, View::new(&active, width), &mut [Output(&embedder.second, output)])?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sinusoid_is_cosines_then_sines_of_a_thousandfold_value() {
        let row = sinusoid(&[0.25]);
        assert!((f64::from(row[0]) - libm::cos(250.0)).abs() < 1e-6);
        assert!((f64::from(row[128]) - libm::sin(250.0)).abs() < 1e-6);
        let slow = 250.0 * libm::exp(-libm::log(10_000.0) * 127.0 / 128.0);
        assert!((f64::from(row[255]) - libm::sin(slow)).abs() < 1e-6);
    }
}
