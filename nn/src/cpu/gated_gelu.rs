//! GEGLU (Shazeer 2020): values times the GELU of their gates, which stand beside them in one row.
//!
//! `GELU(x) = x F(x)`, where F is the share of a normal distribution that lies below x and f its density; its derivative is
//! `F(x) + x f(x)`. One exponential serves both.

use super::{
    Cpu, SubMatrix,
    check::check_matrix,
    machine::Machine,
    math::{self, Block},
    sweep::{Output, Pass, SweepInput, sweep},
};

/// `y = a gelu(b)`, where a row of `x` is the `width` values of a and then those of b. Strides are of the rows.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn gated_gelu(
    cpu: &Cpu,
    SubMatrix { rows, width }: SubMatrix,
    (x, x_stride): (&[f32], usize),
    (y, y_stride): (&mut [f32], usize),
) {
    check_matrix("x", x.len(), rows, 2 * width, x_stride);
    check_matrix("y", y.len(), rows, width, y_stride);
    if rows * width == 0 {
        return;
    }
    let inputs = [x, &x[width..]].map(|x| SweepInput::rows(x, x_stride));
    sweep(cpu, Gated, rows, width, inputs, [Output::rows(y, y_stride)]);
}

/// Backward of [`gated_gelu`]: `dx`, of rows as those of `x`, is overwritten.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn gated_gelu_backward(
    cpu: &Cpu,
    SubMatrix { rows, width }: SubMatrix,
    (x, x_stride): (&[f32], usize),
    (dy, dy_stride): (&[f32], usize),
    (dx, dx_stride): (&mut [f32], usize),
) {
    check_matrix("x", x.len(), rows, 2 * width, x_stride);
    check_matrix("dy", dy.len(), rows, width, dy_stride);
    check_matrix("dx", dx.len(), rows, 2 * width, dx_stride);
    if rows * width == 0 {
        return;
    }
    let [a, b] = [x, &x[width..]].map(|x| SweepInput::rows(x, x_stride));
    let inputs = [a, b, SweepInput::rows(dy, dy_stride)];
    sweep(cpu, GatedBackward, rows, width, inputs, Output::beside(dx, dx_stride, width));
}

#[derive(Clone, Copy)]
struct Gated;

impl Pass<2, 1> for Gated {
    #[inline(always)]
    fn block<M: Machine, const N: usize>(
        self,
        m: M,
        [a, b]: [Block<M, N>; 2],
        _: [Block<M, N>; 1],
    ) -> [Block<M, N>; 1] {
        let [_, share] = normal(m, b);
        [math::mul(m, math::mul(m, a, b), share)]
    }
}

#[derive(Clone, Copy)]
struct GatedBackward;

impl Pass<3, 2> for GatedBackward {
    #[inline(always)]
    fn block<M: Machine, const N: usize>(
        self,
        m: M,
        [a, b, dy]: [Block<M, N>; 3],
        _: [Block<M, N>; 2],
    ) -> [Block<M, N>; 2] {
        let [density, share] = normal(m, b);
        let slope = math::mul_add(m, b, density, share);
        [math::mul(m, math::mul(m, dy, b), share), math::mul(m, math::mul(m, dy, a), slope)]
    }
}

/// The density of a normal distribution, and its share that lies below.
///
/// The share below `-t` is `exp(-t^2 / 2) u p(u)` with `u = 1 / (1 + s t)`: p is the minimax polynomial of relative error
/// for t up to 14, 3e-8, fitted to Mills' ratio. In f32 the share is within 2e-7.
#[inline(always)]
fn normal<M: Machine, const N: usize>(m: M, x: Block<M, N>) -> [Block<M, N>; 2] {
    const SLOPE: f32 = 0.26;
    const COEFFICIENTS: [f32; 9] = [
        0.103_759_06,
        0.103_016_76,
        0.103_030_23,
        0.051_027_812,
        0.160_947_5,
        -0.150_948_39,
        0.251_490_7,
        -0.152_828_52,
        0.030_504_815,
    ];
    const ROOT: f32 = 0.398_942_3;
    let one = math::splat(m, 1.0);
    let t = math::max(m, math::sub(m, math::splat(m, 0.0), x), x);
    let e = math::exp(m, math::mul(m, math::mul(m, t, t), math::splat(m, -0.5)));
    let u = math::div(m, one, math::mul_add(m, t, math::splat(m, SLOPE), one));
    let below = math::mul(m, e, math::mul(m, u, math::polynomial(m, u, COEFFICIENTS)));
    let share = math::select_negative(m, x, below, math::sub(m, one, below));
    [math::mul(m, e, math::splat(m, ROOT)), share]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;

    #[test]
    fn the_gate_and_its_slope_are_those_of_a_normal_distribution_and_equal_on_all_instruction_sets() {
        let gates: Vec<f32> = (0..4001).map(|i| (i as f32 - 2000.0) / 160.0).collect();
        let width = gates.len();
        let x = [vec![1.0; width], gates.clone()].concat();
        let window = SubMatrix { rows: 1, width };
        let run = |isa| {
            let (cpu, mut y, mut dx) =
                (Cpu::with_isa(1, isa).unwrap(), vec![9.0; width], vec![9.0; 2 * width]);
            gated_gelu(&cpu, window, (&x, 2 * width), (&mut y, width));
            gated_gelu_backward(
                &cpu,
                window,
                (&x, 2 * width),
                (&vec![1.0; width], width),
                (&mut dx, 2 * width),
            );
            [y, dx].concat()
        };
        let found = run(Isa::Portable);
        for isa in Isa::available() {
            assert!(run(isa).iter().zip(&found).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa:?}");
        }
        for (i, x) in gates.iter().map(|x| f64::from(*x)).enumerate() {
            let share = 0.5 * libm::erfc(-x / 2f64.sqrt());
            let density = libm::exp(-x * x / 2.0) / (2.0 * std::f64::consts::PI).sqrt();
            let expected = [x * share, x * share, share + x * density];
            for (found, expected) in [found[i], found[width + i], found[2 * width + i]].iter().zip(expected) {
                let error = (f64::from(*found) - expected).abs();
                assert!(error < 4e-7 * x.abs().max(1.0), "{x}: {found} for {expected}");
            }
        }
    }

    #[test]
    fn a_gate_that_is_not_a_number_stays_so() {
        let mut y = [0.0];
        gated_gelu(
            &Cpu::new(1).unwrap(),
            SubMatrix { rows: 1, width: 1 },
            (&[1.0, f32::NAN], 2),
            (&mut y, 1),
        );
        assert!(y[0].is_nan());
    }
}
