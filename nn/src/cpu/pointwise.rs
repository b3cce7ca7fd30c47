//! Element-wise passes: activations, gated residuals, sums.
//!
//! ```text
//! B  samples    T  tokens    D  width
//! ```

use super::{
    Cpu, TokenRows,
    check::check_matrix,
    machine::Machine,
    math::{self, Block},
    sweep::{Output, Pass, SweepInput, sweep, sweep_flat, sweep_sums},
};

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

/// A matrix `[rows, width]` inside wider rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubMatrix {
    /// Number of rows.
    pub rows: usize,
    /// Values used of each row.
    pub width: usize,
}

/// `y = gelu(x)`, the tanh form: `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`. Strides are of the rows.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn gelu(cpu: &Cpu, window: SubMatrix, x: &[f32], x_stride: usize, y: &mut [f32], y_stride: usize) {
    check_matrix("x", x.len(), window.rows, window.width, x_stride);
    check_matrix("y", y.len(), window.rows, window.width, y_stride);
    let (inputs, outputs) = ([SweepInput::rows(x, x_stride)], [Output::rows(y, y_stride)]);
    sweep(cpu, Gelu, window.rows, window.width, inputs, outputs);
}

/// Backward of [`gelu`]: `x` becomes `dx = dy * gelu'(x)`. Operands are values with the stride of their rows.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn gelu_backward(
    cpu: &Cpu,
    window: SubMatrix,
    (dy, dy_stride): (&[f32], usize),
    (x, x_stride): (&mut [f32], usize),
) {
    check_matrix("dy", dy.len(), window.rows, window.width, dy_stride);
    check_matrix("x", x.len(), window.rows, window.width, x_stride);
    let (inputs, outputs) = ([SweepInput::rows(dy, dy_stride)], [Output::rows(x, x_stride)]);
    sweep(cpu, GeluBackward, window.rows, window.width, inputs, outputs);
}

/// `y = x / (1 + exp(-x))`.
///
/// # Panics
/// If `x` and `y` differ in length.
pub fn silu(cpu: &Cpu, x: &[f32], y: &mut [f32]) {
    sweep_flat(cpu, Silu, [x], [y]);
}

/// Backward of [`silu`]: `dx = dy * silu'(x)`, overwritten.
///
/// # Panics
/// If the slices differ in length.
pub fn silu_backward(cpu: &Cpu, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    sweep_flat(cpu, SiluBackward, [x, dy], [dx]);
}

/// `y` becomes `x + gate[b] * y`; `x`, `y`: `[B, T, D]`, `gate`: `[B, D]` with the row stride `gate_stride`.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn gated_add(cpu: &Cpu, rows: TokenRows, x: &[f32], gate: &[f32], gate_stride: usize, y: &mut [f32]) {
    let (count, d) = (rows.batch * rows.tokens, rows.width);
    check_matrix("x", x.len(), count, d, d);
    check_matrix("y", y.len(), count, d, d);
    check_matrix("gate", gate.len(), rows.batch, d, gate_stride);
    let gate = SweepInput::Rows { values: gate, stride: gate_stride, each: rows.tokens };
    sweep(cpu, GatedAdd, count, d, [gate, SweepInput::rows(x, d)], [Output::rows(y, d)]);
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

/// Backward of [`gated_add`]: `dy = gate[b] * dx`, overwritten, where `dx` is the cotangent of the sum, and of `x`.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn gated_add_backward(
    cpu: &Cpu,
    rows: TokenRows,
    dx: &[f32],
    gate: &[f32],
    gate_stride: usize,
    dy: &mut [f32],
    gate_grad: Option<GateGrad<'_>>,
) {
    let (count, d) = (rows.batch * rows.tokens, rows.width);
    check_matrix("dx", dx.len(), count, d, d);
    check_matrix("dy", dy.len(), count, d, d);
    check_matrix("gate", gate.len(), rows.batch, d, gate_stride);
    let gate = SweepInput::Rows { values: gate, stride: gate_stride, each: rows.tokens };
    sweep(cpu, Product, count, d, [gate, SweepInput::rows(dx, d)], [Output::rows(dy, d)]);
    if let Some(GateGrad { y, d_gate, stride }) = gate_grad {
        check_matrix("y", y.len(), count, d, d);
        check_matrix("d_gate", d_gate.len(), rows.batch, d, stride);
        for b in 0..rows.batch {
            d_gate[b * stride..][..d].fill(0.0);
        }
        let (inputs, outputs) =
            ([SweepInput::rows(dx, d), SweepInput::rows(y, d)], [Output::sums(d_gate, stride, rows.tokens)]);
        sweep_sums(cpu, AddProduct, (rows.batch, rows.tokens), d, inputs, outputs);
    }
}

/// `y += a * x`.
///
/// # Panics
/// If `x` and `y` differ in length.
pub fn add_scaled(cpu: &Cpu, a: f32, x: &[f32], y: &mut [f32]) {
    sweep_flat(cpu, AddScaled(a), [x], [y]);
}

/// `x[b, t] += v[b]`; `x`: `[B, T, D]`, `v`: `[B, D]` with a row stride.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn add_to_tokens(cpu: &Cpu, rows: TokenRows, (v, stride): (&[f32], usize), x: &mut [f32]) {
    let (count, d) = (rows.batch * rows.tokens, rows.width);
    check_matrix("x", x.len(), count, d, d);
    check_matrix("v", v.len(), rows.batch, d, stride);
    let v = SweepInput::Rows { values: v, stride, each: rows.tokens };
    sweep(cpu, AddScaled(1.0), count, d, [v], [Output::rows(x, d)]);
}

/// `x *= a`.
pub fn scale(cpu: &Cpu, a: f32, x: &mut [f32]) {
    sweep_flat(cpu, Scale(a), [], [x]);
}

/// `e = exp(-2u)` and `1 / (1 + e)`, where u is the argument of gelu's tanh: gelu(x) is x times the second.
#[inline(always)]
fn gelu_parts<M: Machine, const N: usize>(m: M, x: Block<M, N>) -> [Block<M, N>; 2] {
    let cubic = math::mul_add(m, math::mul(m, x, x), math::splat(m, CUBIC), math::splat(m, 1.0));
    let u = math::mul(m, math::mul(m, x, cubic), math::splat(m, -2.0 * SQRT_2_OVER_PI));
    logistic_parts(m, u)
}

/// `e = exp(minus_x)` and `1 / (1 + e)`.
#[inline(always)]
pub(super) fn logistic_parts<M: Machine, const N: usize>(m: M, minus_x: Block<M, N>) -> [Block<M, N>; 2] {
    let one = math::splat(m, 1.0);
    let e = math::exp(m, minus_x);
    [e, math::div(m, one, math::add(m, one, e))]
}

#[derive(Clone, Copy)]
struct Gelu;

impl Pass<1, 1> for Gelu {
    #[inline(always)]
    fn block<M: Machine, const N: usize>(
        self,
        m: M,
        [x]: [Block<M, N>; 1],
        _: [Block<M, N>; 1],
    ) -> [Block<M, N>; 1] {
        let [_, s] = gelu_parts(m, x);
        [math::mul(m, x, s)]
    }
}

#[derive(Clone, Copy)]
struct GeluBackward;

impl Pass<1, 1> for GeluBackward {
    #[inline(always)]
    fn block<M: Machine, const N: usize>(
        self,
        m: M,
        [dy]: [Block<M, N>; 1],
        [x]: [Block<M, N>; 1],
    ) -> [Block<M, N>; 1] {
        let [e, s] = gelu_parts(m, x);
        // s + x s (1 - s) 2 u', and 1 - s = e s without cancellation.
        let slope = math::mul_add(
            m,
            math::mul(m, x, x),
            math::splat(m, 6.0 * SQRT_2_OVER_PI * CUBIC),
            math::splat(m, 2.0 * SQRT_2_OVER_PI),
        );
        let rest = math::mul(m, math::mul(m, e, s), s);
        [math::mul(m, dy, math::mul_add(m, math::mul(m, x, slope), rest, s))]
    }
}

#[derive(Clone, Copy)]
pub(super) struct Silu;

impl Pass<1, 1> for Silu {
    #[inline(always)]
    fn block<M: Machine, const N: usize>(
        self,
        m: M,
        [x]: [Block<M, N>; 1],
        _: [Block<M, N>; 1],
    ) -> [Block<M, N>; 1] {
        let [_, s] = logistic_parts(m, math::sub(m, math::splat(m, 0.0), x));
        [math::mul(m, x, s)]
    }
}

#[derive(Clone, Copy)]
struct SiluBackward;

impl Pass<2, 1> for SiluBackward {
    #[inline(always)]
    fn block<M: Machine, const N: usize>(
        self,
        m: M,
        [x, dy]: [Block<M, N>; 2],
        _: [Block<M, N>; 1],
    ) -> [Block<M, N>; 1] {
        let [e, s] = logistic_parts(m, math::sub(m, math::splat(m, 0.0), x));
        let rest = math::mul(m, math::mul(m, e, s), s);
        [math::mul(m, dy, math::mul_add(m, x, rest, s))]
    }
}

/// Multiplies by the first input and adds the second.
#[derive(Clone, Copy)]
struct GatedAdd;

impl Pass<2, 1> for GatedAdd {
    #[inline(always)]
    fn block<M: Machine, const N: usize>(
        self,
        m: M,
        [gate, x]: [Block<M, N>; 2],
        [y]: [Block<M, N>; 1],
    ) -> [Block<M, N>; 1] {
        [math::mul_add(m, gate, y, x)]
    }
}

/// Adds the product of two inputs.
#[derive(Clone, Copy)]
struct AddProduct;

impl Pass<2, 1> for AddProduct {
    #[inline(always)]
    fn block<M: Machine, const N: usize>(
        self,
        m: M,
        [a, b]: [Block<M, N>; 2],
        [sum]: [Block<M, N>; 1],
    ) -> [Block<M, N>; 1] {
        [math::mul_add(m, a, b, sum)]
    }
}

/// The product of two inputs.
#[derive(Clone, Copy)]
struct Product;

impl Pass<2, 1> for Product {
    #[inline(always)]
    fn block<M: Machine, const N: usize>(
        self,
        m: M,
        [a, b]: [Block<M, N>; 2],
        _: [Block<M, N>; 1],
    ) -> [Block<M, N>; 1] {
        [math::mul(m, a, b)]
    }
}

#[derive(Clone, Copy)]
struct AddScaled(f32);

impl Pass<1, 1> for AddScaled {
    #[inline(always)]
    fn block<M: Machine, const N: usize>(
        self,
        m: M,
        [x]: [Block<M, N>; 1],
        [y]: [Block<M, N>; 1],
    ) -> [Block<M, N>; 1] {
        [math::mul_add(m, math::splat(m, self.0), x, y)]
    }
}

#[derive(Clone, Copy)]
struct Scale(f32);

impl Pass<0, 1> for Scale {
    #[inline(always)]
    fn block<M: Machine, const N: usize>(
        self,
        m: M,
        []: [Block<M, N>; 0],
        [x]: [Block<M, N>; 1],
    ) -> [Block<M, N>; 1] {
        [math::mul(m, math::splat(m, self.0), x)]
    }
}
