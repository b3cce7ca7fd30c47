//! Vector arithmetic on blocks of 16 values, whatever the width of the registers, and exponentials.
//!
//! Sums over a row are kept in the 16 lanes of a block and added in a fixed order at the end, so that they do not
//! depend on the instruction set.
#![allow(
    clippy::needless_range_loop,
    clippy::manual_memcpy,
    reason = "indices into register arrays are unrolled"
)]

use super::machine::Machine;

/// Values in a block.
pub(super) const BLOCK: usize = 16;

/// 16 values in `N` registers.
pub(super) type Block<M, const N: usize> = [<M as pulp::Simd>::f32s; N];

#[inline(always)]
pub(super) fn splat<M: Machine, const N: usize>(m: M, value: f32) -> Block<M, N> {
    [m.splat_f32s(value); N]
}

/// The first 16 values of a slice.
#[inline(always)]
pub(super) fn load<M: Machine, const N: usize>(m: M, from: &[f32]) -> Block<M, N> {
    let (vectors, _) = M::as_simd_f32s(&from[..BLOCK]);
    let mut out = splat(m, 0.0);
    for i in 0..N {
        out[i] = vectors[i];
    }
    out
}

#[inline(always)]
pub(super) fn store<M: Machine, const N: usize>(to: &mut [f32], block: Block<M, N>) {
    let (vectors, _) = M::as_mut_simd_f32s(&mut to[..BLOCK]);
    for i in 0..N {
        vectors[i] = block[i];
    }
}

/// Up to 16 values, and `fill` for those beyond the end of the slice.
#[inline(always)]
pub(super) fn load_part<M: Machine, const N: usize>(m: M, from: &[f32], fill: f32) -> Block<M, N> {
    if from.len() == BLOCK {
        return load(m, from);
    }
    let mut whole = [fill; BLOCK];
    whole[..from.len()].copy_from_slice(from);
    load(m, &whole)
}

#[inline(always)]
pub(super) fn store_part<M: Machine, const N: usize>(to: &mut [f32], block: Block<M, N>) {
    if to.len() == BLOCK {
        return store::<M, N>(to, block);
    }
    let mut whole = [0.0; BLOCK];
    store::<M, N>(&mut whole, block);
    to.copy_from_slice(&whole[..to.len()]);
}

macro_rules! lanewise {
    ($($name:ident: $method:ident($($argument:ident),*);)*) => {$(
        #[inline(always)]
        pub(super) fn $name<M: Machine, const N: usize>(m: M, $($argument: Block<M, N>),*) -> Block<M, N> {
            let mut out = splat(m, 0.0);
            for i in 0..N {
                out[i] = m.$method($($argument[i]),*);
            }
            out
        }
    )*};
}

lanewise! {
    add: add_f32s(a, b);
    sub: sub_f32s(a, b);
    mul: mul_f32s(a, b);
    div: div_f32s(a, b);
    mul_add: mul_add_f32s(a, b, c);
    sqrt: sqrt_f32s(a);
}

/// The larger of each pair of lanes; `b` where either is not a number, on every instruction set.
#[inline(always)]
pub(super) fn max<M: Machine, const N: usize>(m: M, a: Block<M, N>, b: Block<M, N>) -> Block<M, N> {
    let mut out = b;
    for i in 0..N {
        out[i] = if cfg!(target_arch = "x86_64") && !M::IS_SCALAR {
            m.max_f32s(a[i], b[i])
        } else {
            m.select_f32s(m.greater_than_f32s(a[i], b[i]), a[i], b[i])
        };
    }
    out
}

/// The smaller of each pair of lanes; `b` where either is not a number, on every instruction set.
#[inline(always)]
pub(super) fn min<M: Machine, const N: usize>(m: M, a: Block<M, N>, b: Block<M, N>) -> Block<M, N> {
    let mut out = b;
    for i in 0..N {
        out[i] = if cfg!(target_arch = "x86_64") && !M::IS_SCALAR {
            m.min_f32s(a[i], b[i])
        } else {
            m.select_f32s(m.less_than_f32s(a[i], b[i]), a[i], b[i])
        };
    }
    out
}

/// `a` where `x` is negative, else `b`.
#[inline(always)]
pub(super) fn select_negative<M: Machine, const N: usize>(
    m: M,
    x: Block<M, N>,
    a: Block<M, N>,
    b: Block<M, N>,
) -> Block<M, N> {
    let mut out = b;
    for i in 0..N {
        out[i] = m.select_f32s(m.less_than_f32s(x[i], m.splat_f32s(0.0)), a[i], b[i]);
    }
    out
}

/// Sum of the lanes, halves first.
#[inline(always)]
pub(super) fn sum<M: Machine, const N: usize>(block: Block<M, N>) -> f32 {
    let mut lanes = [0.0; BLOCK];
    store::<M, N>(&mut lanes, block);
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

/// Adding this rounds to a whole number and leaves it in the low bits.
const ROUND: f32 = 12_582_912.0;

/// `2^whole * fraction`, for `rounded = ROUND + whole` and a result that is a normal number.
#[inline(always)]
fn times_power<M: Machine, const N: usize>(m: M, rounded: Block<M, N>, fraction: Block<M, N>) -> Block<M, N> {
    let mut out = fraction;
    for i in 0..N {
        let exponent = m.wrapping_dyn_shl_u32s(m.transmute_u32s_f32s(rounded[i]), m.splat_u32s(23));
        out[i] = m.transmute_f32s_u32s(m.add_u32s(m.transmute_u32s_f32s(fraction[i]), exponent));
    }
    out
}

#[inline(always)]
pub(super) fn polynomial<M: Machine, const N: usize, const C: usize>(
    m: M,
    x: Block<M, N>,
    coefficients: [f32; C],
) -> Block<M, N> {
    let mut out = splat(m, coefficients[C - 1]);
    for c in (0..C - 1).rev() {
        out = mul_add(m, out, x, splat(m, coefficients[c]));
    }
    out
}

/// `2^x` for x up to 127, within 2 ulp; below -125 it is `2^-125`, which vanishes beside 1. Not a number stays so.
#[inline(always)]
pub(super) fn exp2<M: Machine, const N: usize>(m: M, x: Block<M, N>) -> Block<M, N> {
    // The minimax polynomial of relative error on [-1/2, 1/2]: 2e-9.
    const COEFFICIENTS: [f32; 7] = [
        1.0,
        std::f32::consts::LN_2,
        0.240_226_47,
        0.055_503_29,
        0.009_618_489,
        0.001_339_993_1,
        0.000_153_458_12,
    ];
    // In this order a comparison with something that is not a number keeps it.
    let x = max(m, splat(m, -125.0), x);
    let rounded = add(m, x, splat(m, ROUND));
    let fraction = sub(m, x, sub(m, rounded, splat(m, ROUND)));
    times_power(m, rounded, polynomial(m, fraction, COEFFICIENTS))
}

/// `exp(x)` within 2 ulp, for x between -86 and 88; outside it is the value there. Not a number stays so.
#[inline(always)]
pub(super) fn exp<M: Machine, const N: usize>(m: M, x: Block<M, N>) -> Block<M, N> {
    // ln 2 in two parts, the first with trailing zeros, so that its multiples are exact (Cody and Waite 1980).
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const COEFFICIENTS: [f32; 7] =
        [1.0, 1.0, 0.499_999_9, 0.166_664_2, 0.041_668_23, 0.008_374_82, 0.001_383_68];
    let x = min(m, splat(m, 88.0), max(m, splat(m, -86.0), x));
    let rounded = mul_add(m, x, splat(m, std::f32::consts::LOG2_E), splat(m, ROUND));
    let whole = sub(m, rounded, splat(m, ROUND));
    let rest = mul_add(m, whole, splat(m, -LN2_LOW), mul_add(m, whole, splat(m, -LN2_HIGH), x));
    times_power(m, rounded, polynomial(m, rest, COEFFICIENTS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Cpu, Isa, machine::Kernel};

    /// Applies exp, or exp2, to values in place.
    struct Apply<'a>(&'a mut [f32], bool);

    impl Kernel for Apply<'_> {
        type Output = ();

        #[inline(always)]
        fn run<M: Machine, const N: usize>(self, m: M) {
            for block in self.0.chunks_mut(BLOCK) {
                let x = load_part::<M, N>(m, block, 0.0);
                store_part::<M, N>(block, if self.1 { exp(m, x) } else { exp2(m, x) });
            }
        }
    }

    fn on_all_sets(values: &[f32], natural: bool) -> Vec<Vec<f32>> {
        let run = |isa| {
            let mut out = values.to_vec();
            Cpu::with_isa(1, isa).expect("an available set").run(Apply(&mut out, natural));
            out
        };
        Isa::available().into_iter().map(run).collect()
    }

    #[test]
    fn exponentials_are_within_two_units_in_the_last_place_and_equal_on_all_instruction_sets() {
        for (natural, low, high) in [(true, -85.9, 87.9), (false, -124.9, 126.9)] {
            let x: Vec<f32> = (0..200_003).map(|i| low + (high - low) * i as f32 / 200_003.0).collect();
            let all = on_all_sets(&x, natural);
            for found in &all {
                assert!(found.iter().zip(&all[0]).all(|(a, b)| a.to_bits() == b.to_bits()));
            }
            for (x, found) in x.iter().zip(&all[0]) {
                let exact = if natural { libm::exp(f64::from(*x)) } else { libm::exp2(f64::from(*x)) };
                let unit = f64::from((exact as f32).next_up()) - f64::from(exact as f32);
                let error = (f64::from(*found) - exact).abs() / unit;
                assert!(error <= 2.0, "exponential of {x}: {found} for {exact}, {error} units");
            }
        }
    }

    #[test]
    fn exponentials_stop_at_the_ends_of_their_range_and_keep_what_is_not_a_number() {
        let x = [f32::NEG_INFINITY, -1e30, -200.0, 0.0, 200.0, f32::INFINITY, f32::NAN];
        for found in on_all_sets(&x, true) {
            assert!(found[..3].iter().all(|y| *y > 0.0 && *y < 1e-37), "{found:?}");
            assert_eq!(found[3], 1.0);
            assert!(found[4..6].iter().all(|y| y.is_finite() && *y > 1e38), "{found:?}");
            assert!(found[6].is_nan());
        }
        for found in on_all_sets(&[f32::NEG_INFINITY, 0.0, -1.0, f32::NAN], false) {
            assert!(found[0] < 1e-37 && found[3].is_nan());
            assert_eq!(found[1..3], [1.0, 0.5]);
        }
    }
}
