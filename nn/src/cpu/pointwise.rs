//! Passes over values one by one: activations, gated residuals, sums.
//!
//! ```text
//! B  samples    T  tokens    D  width
//! ```

use super::{Cpu, Rows};

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

/// A matrix `[rows, width]` inside wider rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Number of rows.
    pub rows: usize,
    /// Values used of each row.
    pub width: usize,
}

/// `y = gelu(x)`, the tanh form: `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`. Strides are of the rows.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn gelu(_cpu: &Cpu, window: Window, x: &[f32], x_stride: usize, y: &mut [f32], y_stride: usize) {
    for r in 0..window.rows {
        for i in 0..window.width {
            let x = x[r * x_stride + i];
            let t = (SQRT_2_OVER_PI * (x + CUBIC * x * x * x)).tanh();
            y[r * y_stride + i] = 0.5 * x * (1.0 + t);
        }
    }
}

/// Backward of [`gelu`]: `dx = dy * gelu'(x)`, overwritten.
///
/// # Panics
/// If a slice is too short for its shape.
#[expect(clippy::too_many_arguments, reason = "operands of one kernel, each named in the docs")]
pub fn gelu_backward(
    _cpu: &Cpu,
    window: Window,
    x: &[f32],
    x_stride: usize,
    dy: &[f32],
    dy_stride: usize,
    dx: &mut [f32],
    dx_stride: usize,
) {
    for r in 0..window.rows {
        for i in 0..window.width {
            let x = x[r * x_stride + i];
            let t = (SQRT_2_OVER_PI * (x + CUBIC * x * x * x)).tanh();
            let dt = (1.0 - t * t) * SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * x * x);
            dx[r * dx_stride + i] = dy[r * dy_stride + i] * (0.5 * (1.0 + t) + 0.5 * x * dt);
        }
    }
}

/// `y = x / (1 + exp(-x))`.
///
/// # Panics
/// If `x` and `y` differ in length.
pub fn silu(_cpu: &Cpu, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "values of silu's result");
    for (y, x) in y.iter_mut().zip(x) {
        *y = x / (1.0 + (-x).exp());
    }
}

/// Backward of [`silu`]: `dx = dy * silu'(x)`, overwritten.
///
/// # Panics
/// If the slices differ in length.
pub fn silu_backward(_cpu: &Cpu, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    assert!(x.len() == dy.len() && x.len() == dx.len(), "values of silu's cotangents");
    for ((dx, dy), x) in dx.iter_mut().zip(dy).zip(x) {
        let s = 1.0 / (1.0 + (-x).exp());
        *dx = dy * s * (1.0 + x * (1.0 - s));
    }
}

/// `x += gate[b] * y`; `x`, `y`: `[B, T, D]`, `gate`: `[B, D]` with the row stride `gate_stride`.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn gated_add(_cpu: &Cpu, rows: Rows, x: &mut [f32], gate: &[f32], gate_stride: usize, y: &[f32]) {
    let d = rows.width;
    for r in 0..rows.batch * rows.tokens {
        let gate = &gate[r / rows.tokens * gate_stride..][..d];
        for i in 0..d {
            x[r * d + i] = gate[i].mul_add(y[r * d + i], x[r * d + i]);
        }
    }
}

/// The gate's own cotangent, where it is wanted.
#[derive(Debug)]
pub struct GateGrad<'a> {
    /// The forward `y`, `[B, T, D]`.
    pub y: &'a [f32],
    /// Sum over tokens of `dx * y`, `[B, D]` with a row stride; overwritten.
    pub d_gate: &'a mut [f32],
    /// Stride of the rows of `d_gate`.
    pub stride: usize,
}

/// Backward of [`gated_add`]: `dy = gate[b] * dx`, overwritten (the cotangent of the old `x` is `dx` itself).
///
/// # Panics
/// If a slice is too short for its shape.
pub fn gated_add_backward(
    _cpu: &Cpu,
    rows: Rows,
    dx: &[f32],
    gate: &[f32],
    gate_stride: usize,
    dy: &mut [f32],
    mut gate_grad: Option<GateGrad<'_>>,
) {
    let d = rows.width;
    if let Some(g) = &mut gate_grad {
        for b in 0..rows.batch {
            g.d_gate[b * g.stride..][..d].fill(0.0);
        }
    }
    for r in 0..rows.batch * rows.tokens {
        let b = r / rows.tokens;
        for i in 0..d {
            dy[r * d + i] = gate[b * gate_stride + i] * dx[r * d + i];
            if let Some(g) = &mut gate_grad {
                g.d_gate[b * g.stride + i] += dx[r * d + i] * g.y[r * d + i];
            }
        }
    }
}

/// `y += a * x`.
///
/// # Panics
/// If `x` and `y` differ in length.
pub fn add_scaled(_cpu: &Cpu, a: f32, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "values of two summands");
    for (y, x) in y.iter_mut().zip(x) {
        *y = a.mul_add(*x, *y);
    }
}

/// `x *= a`.
pub fn scale(_cpu: &Cpu, a: f32, x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x *= a);
}
