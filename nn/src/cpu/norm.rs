//! Layer norm without weights, followed by the modulation of a diffusion transformer.
//!
//! ```text
//! B  samples    T  tokens    D  width
//! ```

use super::Cpu;

const EPS: f32 = 1e-6;

/// The sizes of `[B, T, D]` rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Samples B.
    pub batch: usize,
    /// Tokens T of each sample.
    pub tokens: usize,
    /// Width D.
    pub width: usize,
}

impl Rows {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.batch * self.tokens * self.width
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// `y = norm(x) * (1 + scale[b]) + shift[b]`; the mean and 1 / deviation of each row are saved for the backward pass.
///
/// `x`, `y`: `[B, T, D]`; `shift`, `scale`: `[B, D]` with the row stride `modulation_stride`; `mean`, `rstd`: `[B * T]`.
/// eps is 1e-6.
///
/// # Panics
/// If a slice is too short for its shape.
#[expect(clippy::too_many_arguments, reason = "operands of one kernel, each named in the docs")]
pub fn norm_modulate(
    _cpu: &Cpu,
    rows: Rows,
    x: &[f32],
    shift: &[f32],
    scale: &[f32],
    modulation_stride: usize,
    y: &mut [f32],
    mean: &mut [f32],
    rstd: &mut [f32],
) {
    let d = rows.width;
    for r in 0..rows.batch * rows.tokens {
        let b = r / rows.tokens;
        let x = &x[r * d..][..d];
        let mu = x.iter().sum::<f32>() / d as f32;
        let var = x.iter().map(|x| (x - mu) * (x - mu)).sum::<f32>() / d as f32;
        mean[r] = mu;
        rstd[r] = 1.0 / (var + EPS).sqrt();
        for i in 0..d {
            let n = (x[i] - mu) * rstd[r];
            y[r * d + i] = n * (1.0 + scale[b * modulation_stride + i]) + shift[b * modulation_stride + i];
        }
    }
}

/// Where the sums of the modulation's cotangents go: `[B, D]` each, with a row stride; overwritten.
#[derive(Debug)]
pub struct ModulationGrad<'a> {
    /// Sum over tokens of the cotangent of `y`.
    pub d_shift: &'a mut [f32],
    /// Sum over tokens of the cotangent of `y` times the normed value.
    pub d_scale: &'a mut [f32],
    /// Stride of the rows of both.
    pub stride: usize,
}

/// Backward of [`norm_modulate`]: `dx` is overwritten, or added to with `accumulate`.
///
/// # Panics
/// If a slice is too short for its shape.
#[expect(clippy::too_many_arguments, reason = "operands of one kernel, each named in the docs")]
pub fn norm_modulate_backward(
    _cpu: &Cpu,
    rows: Rows,
    x: &[f32],
    mean: &[f32],
    rstd: &[f32],
    scale: &[f32],
    modulation_stride: usize,
    dy: &[f32],
    dx: &mut [f32],
    accumulate: bool,
    mut modulation: Option<ModulationGrad<'_>>,
) {
    let d = rows.width;
    if let Some(g) = &mut modulation {
        for b in 0..rows.batch {
            g.d_shift[b * g.stride..][..d].fill(0.0);
            g.d_scale[b * g.stride..][..d].fill(0.0);
        }
    }
    for r in 0..rows.batch * rows.tokens {
        let b = r / rows.tokens;
        let normed = |i: usize| (x[r * d + i] - mean[r]) * rstd[r];
        let dn = |i: usize| dy[r * d + i] * (1.0 + scale[b * modulation_stride + i]);
        let m1 = (0..d).map(dn).sum::<f32>() / d as f32;
        let m2 = (0..d).map(|i| dn(i) * normed(i)).sum::<f32>() / d as f32;
        for i in 0..d {
            let v = rstd[r] * (dn(i) - m1 - normed(i) * m2);
            dx[r * d + i] = if accumulate { dx[r * d + i] + v } else { v };
            if let Some(g) = &mut modulation {
                g.d_shift[b * g.stride + i] += dy[r * d + i];
                g.d_scale[b * g.stride + i] += dy[r * d + i] * normed(i);
            }
        }
    }
}
