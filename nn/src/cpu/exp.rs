//! Exponentials in f64, many at once, with the bits of `libm::exp`.
//!
//! Both follow FreeBSD's `e_exp.c`: `x = k ln 2 + r`, a rational function of `r` that was found by Remez' algorithm, times `2^k`. The same
//! operations in the same order give the same bits; here nothing branches, so that a register's lanes go together.

use super::{
    Cpu,
    machine::{Kernel, Machine},
};

/// `ln 2` in two parts; the first has zeros behind it, so that its multiples are exact.
const LN_2: [f64; 2] = [6.931_471_803_691_238e-1, 1.908_214_929_270_587_7e-10];
/// Coefficients of `r^2`, `r^4`, .. in the rational function.
const COEFFICIENTS: [f64; 5] = [
    1.666_666_666_666_660_2e-1,
    -2.777_777_777_701_559_3e-3,
    6.613_756_321_437_934e-5,
    -1.653_390_220_546_525_2e-6,
    4.138_136_797_057_238_5e-8,
];
/// Upper words of absolute values: up to the first `1 + x` is rounded right, up to the second `k` is zero, and below the third it is
/// the sign of `x`.
const TINY: u64 = 0x3e30_0000;
const HALF_LN_2: u64 = 0x3fd6_2e42;
const THREE_HALVES_LN_2: u64 = 0x3ff0_a2b2;
/// Beyond it results overflow, or lose bits below the smallest normal number.
const FURTHEST: f64 = 708.0;
/// Added to a whole number, it leaves the biased exponent in the lowest bits.
const EXPONENT: f64 = 4_503_599_627_370_496.0 + 1023.0;
/// Bits of a fraction.
const FRACTION: u32 = 52;

/// Values that go together.
const LANES: usize = 8;

/// Each value becomes its exponential.
pub fn exp(cpu: &Cpu, values: &mut [f64]) {
    cpu.run(Exp(values));
}

struct Exp<'a>(&'a mut [f64]);

impl Kernel for Exp<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine, const N: usize>(self, _: M) {
        let (chunks, rest) = self.0.as_chunks_mut::<LANES>();
        for chunk in chunks {
            let mut near = true;
            for x in *chunk {
                near &= x.abs() <= FURTHEST;
            }
            if near {
                for x in &mut *chunk {
                    *x = near_zero(*x);
                }
            } else {
                for x in &mut *chunk {
                    *x = libm::exp(*x);
                }
            }
        }
        for x in rest {
            *x = libm::exp(*x);
        }
    }
}

/// Of a value up to [`FURTHEST`].
#[inline(always)]
fn near_zero(x: f64) -> f64 {
    let upper = x.abs().to_bits() >> 32;
    let whole = (std::f64::consts::LOG2_E * x + 0.5f64.copysign(x)).trunc();
    let one = 1f64.copysign(x);
    let near = if upper > HALF_LN_2 { one } else { 0.0 };
    let k = if upper >= THREE_HALVES_LN_2 { whole } else { near };
    let (high, low) = (x - k * LN_2[0], k * LN_2[1]);
    let r = high - low;
    let square = r * r;
    let [c1, c2, c3, c4, c5] = COEFFICIENTS;
    let c = r - square * (c1 + square * (c2 + square * (c3 + square * (c4 + square * c5))));
    let of_r = 1.0 + (r * c / (2.0 - c) - low + high);
    let of_r = if upper > TINY { of_r } else { 1.0 + x };
    of_r * f64::from_bits((k + EXPONENT).to_bits() << FRACTION)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;

    #[test]
    fn exponentials_have_the_bits_of_libm_on_every_instruction_set() {
        let borders = [TINY, HALF_LN_2, THREE_HALVES_LN_2].into_iter().flat_map(|upper| {
            let below = [0, 1, 2, 0xffff_fffe, 0xffff_ffff].map(|low| upper << 32 | low);
            below.into_iter().chain([(upper - 1) << 32, (upper + 1) << 32]).map(f64::from_bits)
        });
        let ends = [0.0, f64::MIN_POSITIVE, FURTHEST, 708.1, 709.9, 745.2, 1e300, f64::INFINITY, f64::NAN];
        // Alone in its lanes: beside one that is too far away each would go libm's way.
        let edges = borders.chain(ends).flat_map(|x| [[x; LANES], [-x; LANES]]).flatten();
        let sweep = (0..400_000).map(|i| f64::from(i - 200_000) * 0.003_7);
        let powers = (-60..10).flat_map(|e| (0..64).map(move |i| (1.0 + f64::from(i) / 64.0) * 2f64.powi(e)));
        // Not a whole number of registers.
        let rest = [0.25, -0.25, 1.0];
        let values: Vec<f64> = edges.chain(sweep).chain(powers.flat_map(|x| [x, -x])).chain(rest).collect();
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(1, isa).unwrap();
            let mut found = values.clone();
            exp(&cpu, &mut found);
            for (x, found) in values.iter().zip(found) {
                assert_eq!(found.to_bits(), libm::exp(*x).to_bits(), "{isa:?}: of {x:e}");
            }
        }
    }
}
