//! Activations, and products of values.

use super::{
    Cpu, SubMatrix,
    check::check_matrix,
    gelu,
    machine::Machine,
    math::{self, BLOCK, Block},
    pointwise::{Silu, logistic_parts},
    sweep::{Output, Pass, SweepInput, sweep, sweep_flat},
};
use crate::device::Activation;

/// `y = f(x)`. Strides are of the rows.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn activate(
    cpu: &Cpu,
    f: Activation,
    window: SubMatrix,
    (x, x_stride): (&[f32], usize),
    (y, y_stride): (&mut [f32], usize),
) {
    match f {
        Activation::Gelu => gelu(cpu, window, x, x_stride, y, y_stride),
        Activation::Silu => by_rows(cpu, Silu, window, (x, x_stride), (y, y_stride)),
        Activation::QuickGelu => by_rows(cpu, QuickGelu, window, (x, x_stride), (y, y_stride)),
        Activation::Relu => by_rows(cpu, Relu, window, (x, x_stride), (y, y_stride)),
        Activation::GeluErf => by_rows(cpu, Each(gelu_erf), window, (x, x_stride), (y, y_stride)),
        Activation::Tanh => by_rows(cpu, Each(libm::tanhf), window, (x, x_stride), (y, y_stride)),
    }
}

/// `y *= x`. Strides are of the rows.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn multiply(
    cpu: &Cpu,
    window: SubMatrix,
    (x, x_stride): (&[f32], usize),
    (y, y_stride): (&mut [f32], usize),
) {
    by_rows(cpu, Multiply, window, (x, x_stride), (y, y_stride));
}

fn by_rows<P: Pass<1, 1>>(
    cpu: &Cpu,
    pass: P,
    SubMatrix { rows, width }: SubMatrix,
    (x, x_stride): (&[f32], usize),
    (y, y_stride): (&mut [f32], usize),
) {
    check_matrix("x", x.len(), rows, width, x_stride);
    check_matrix("y", y.len(), rows, width, y_stride);
    if x_stride == width && y_stride == width {
        return sweep_flat(cpu, pass, [&x[..rows * width]], [&mut y[..rows * width]]);
    }
    sweep(cpu, pass, rows, width, [SweepInput::rows(x, x_stride)], [Output::rows(y, y_stride)]);
}

/// `x / 2 (1 + erf(x / sqrt(2)))`.
fn gelu_erf(x: f32) -> f32 {
    0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// CLIP's slope of the sigmoid.
const SLOPE: f32 = 1.702;

#[derive(Clone, Copy)]
struct QuickGelu;

impl Pass<1, 1> for QuickGelu {
    #[inline(always)]
    fn block<M: Machine, const N: usize>(
        self,
        m: M,
        [x]: [Block<M, N>; 1],
        _: [Block<M, N>; 1],
    ) -> [Block<M, N>; 1] {
        let slope = math::splat(m, SLOPE);
        let steep = math::mul(m, x, slope);
        let [_, s] = logistic_parts(m, math::sub(m, math::splat(m, 0.0), steep));
        [math::div(m, math::mul(m, steep, s), slope)]
    }
}

#[derive(Clone, Copy)]
struct Relu;

impl Pass<1, 1> for Relu {
    #[inline(always)]
    fn block<M: Machine, const N: usize>(
        self,
        m: M,
        [x]: [Block<M, N>; 1],
        _: [Block<M, N>; 1],
    ) -> [Block<M, N>; 1] {
        [math::max(m, x, math::splat(m, 0.0))]
    }
}

/// The product of an input and what the result holds.
#[derive(Clone, Copy)]
struct Multiply;

impl Pass<1, 1> for Multiply {
    #[inline(always)]
    fn block<M: Machine, const N: usize>(
        self,
        m: M,
        [x]: [Block<M, N>; 1],
        [y]: [Block<M, N>; 1],
    ) -> [Block<M, N>; 1] {
        [math::mul(m, x, y)]
    }
}

/// A function that has no vectors.
#[derive(Clone, Copy)]
struct Each(fn(f32) -> f32);

impl Pass<1, 1> for Each {
    #[inline(always)]
    fn block<M: Machine, const N: usize>(
        self,
        m: M,
        [x]: [Block<M, N>; 1],
        _: [Block<M, N>; 1],
    ) -> [Block<M, N>; 1] {
        let mut values = [0.0; BLOCK];
        math::store::<M, N>(&mut values, x);
        values.iter_mut().for_each(|v| *v = self.0(*v));
        [math::load(m, &values)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;

    /// The definitions, in f64.
    fn expected(f: Activation, x: f64) -> f64 {
        match f {
            Activation::Silu => x / (1.0 + libm::exp(-x)),
            Activation::Gelu => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + libm::tanh(inner))
            }
            Activation::GeluErf => 0.5 * x * (1.0 + libm::erf(x / 2f64.sqrt())),
            Activation::QuickGelu => x / (1.0 + libm::exp(-1.702 * x)),
            Activation::Relu => x.max(0.0),
            Activation::Tanh => libm::tanh(x),
        }
    }

    #[test]
    fn every_activation_is_its_definition_in_rows_with_and_without_gaps_and_on_every_instruction_set() {
        use Activation::{Gelu, GeluErf, QuickGelu, Relu, Silu, Tanh};
        let (rows, width, stride) = (3, 21, 25);
        let x: Vec<f32> = (0..rows * stride).map(|i| ((i * 37 % 101) as f32 - 50.0) / 9.0).collect();
        for f in [Silu, Gelu, GeluErf, QuickGelu, Relu, Tanh] {
            for (window, stride) in
                [(SubMatrix { rows, width }, stride), (SubMatrix { rows, width: stride }, stride)]
            {
                let of = |isa| {
                    let mut y = vec![9.0; x.len()];
                    let cpu = Cpu::with_isa(2, isa).unwrap();
                    activate(&cpu, f, window, (&x, stride), (&mut y, stride));
                    y
                };
                let y = of(Isa::Portable);
                for isa in Isa::available() {
                    assert_eq!(of(isa), y, "{f:?} {isa:?}");
                }
                for (i, (y, x)) in y.iter().zip(&x).enumerate() {
                    let inside = i % stride < window.width;
                    let expected = if inside { expected(f, f64::from(*x)) } else { 9.0 };
                    assert!((f64::from(*y) - expected).abs() < 1e-6 * expected.abs().max(1.0), "{f:?} {x}");
                }
            }
        }
    }

    #[test]
    fn a_product_leaves_what_stands_between_rows_alone() {
        let mut y = [1.0, 2.0, 9.0, 3.0, 4.0, 9.0];
        let window = SubMatrix { rows: 2, width: 2 };
        multiply(&Cpu::new(1).unwrap(), window, (&[2.0, 3.0, 4.0, 5.0], 2), (&mut y, 3));
        assert_eq!(y, [2.0, 6.0, 9.0, 12.0, 20.0, 9.0]);
    }
}
