//! Softmax of the rows of a matrix.
#![allow(unsafe_code, reason = "tasks write disjoint rows of the result")]

use super::{
    Cpu,
    machine::{Kernel, Machine},
    math::{self, BLOCK, Block},
    parallel::{self, Shared},
};

/// `x = exp(x) / sum of exp(x)`, row by row, in place; minus infinity becomes exactly zero. A row in which nothing is above
/// minus infinity becomes NaN.
///
/// # Panics
/// If `x` is not whole rows of `width` values.
pub fn softmax(cpu: &Cpu, width: usize, x: &mut [f32]) {
    assert!(width > 0 && x.len().is_multiple_of(width), "{} values in rows of {width}", x.len());
    let rows = x.len() / width;
    let each = ((1 << 14) / width).max(1);
    let operations = COST * x.len();
    let x = Shared::new(x);
    parallel::for_each(cpu, operations, rows.div_ceil(each), |task| {
        let first = task * each;
        let count = each.min(rows - first);
        // SAFETY: a row belongs to one task.
        let rows = unsafe { x.part(first * width, count * width) };
        cpu.run(Softmax { width, rows });
    });
}

/// What a value costs, in operations of a matrix product.
const COST: usize = 64;
/// What lies so far below the largest value of its row is zero: beside one it is below the last bit, many times over.
const VANISHES: f32 = -80.0;

struct Softmax<'a> {
    width: usize,
    rows: &'a mut [f32],
}

impl Kernel for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine, const N: usize>(self, m: M) {
        for row in self.rows.chunks_exact_mut(self.width) {
            let mut top = math::splat::<M, N>(m, f32::NEG_INFINITY);
            for block in row.chunks(BLOCK) {
                top = math::max(m, top, math::load_part(m, block, f32::NEG_INFINITY));
            }
            let mut lanes = [0.0; BLOCK];
            math::store::<M, N>(&mut lanes, top);
            let top = math::splat::<M, N>(m, lanes.into_iter().fold(f32::NEG_INFINITY, f32::max));
            let mut sum = math::splat::<M, N>(m, 0.0);
            for block in row.chunks_mut(BLOCK) {
                let x = math::sub(m, math::load_part(m, block, f32::NEG_INFINITY), top);
                let power = or_zero::<M, N>(m, x, math::exp(m, x));
                sum = math::add(m, sum, power);
                math::store_part::<M, N>(block, power);
            }
            let scale = math::splat::<M, N>(m, 1.0 / math::sum::<M, N>(sum));
            for block in row.chunks_mut(BLOCK) {
                let value = math::mul(m, math::load_part(m, block, 0.0), scale);
                math::store_part::<M, N>(block, value);
            }
        }
    }
}

/// `power` where `x` does not vanish.
#[inline(always)]
fn or_zero<M: Machine, const N: usize>(m: M, x: Block<M, N>, power: Block<M, N>) -> Block<M, N> {
    let mut out = power;
    for (out, x) in out.iter_mut().zip(x) {
        let gone = m.less_than_f32s(x, m.splat_f32s(VANISHES));
        *out = m.select_f32s(gone, m.splat_f32s(0.0), *out);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;

    #[test]
    fn rows_sum_to_one_on_every_instruction_set_with_the_same_bits_and_hidden_values_are_zero() {
        let width = 37;
        let mut x: Vec<f32> = (0..3 * width).map(|i| ((i * 37 % 101) as f32 - 50.0) / 9.0).collect();
        x[width + 5] = f32::NEG_INFINITY;
        x[2 * width..].fill(f32::NEG_INFINITY);
        x[2 * width + 36] = -3.0;
        let of = |isa| {
            let mut y = x.clone();
            softmax(&Cpu::with_isa(1, isa).unwrap(), width, &mut y);
            y
        };
        let first = of(Isa::Portable);
        for isa in Isa::available() {
            assert!(of(isa).iter().zip(&first).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa:?}");
        }
        for (row, x) in first.chunks_exact(width).zip(x.chunks_exact(width)) {
            let sum: f64 = x.iter().map(|v| libm::exp(f64::from(*v))).sum();
            for (y, x) in row.iter().zip(x) {
                let expected = libm::exp(f64::from(*x)) / sum;
                assert!((f64::from(*y) - expected).abs() < 1e-6 * expected.max(1e-3), "{y} {expected}");
            }
        }
        assert_eq!(first[width + 5], 0.0);
        assert_eq!(first[2 * width..3 * width - 1], vec![0.0; width - 1]);
    }
}
