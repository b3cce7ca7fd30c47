//! AdamW over flat slices, and the sum of squares for clipping.

#![allow(clippy::needless_range_loop, reason = "lanes are counted")]

use super::{
    Cpu,
    machine::{Kernel, Machine},
    math::{self, BLOCK, Block},
    parallel,
    sweep::{Pass, sweep_flat},
};
use crate::device::{Step, Update};

/// One update, of `parameters` and both moments in place.
///
/// # Panics
/// If the slices differ in length, or the update's number is zero.
pub fn adamw(
    cpu: &Cpu,
    update: &Update,
    parameters: &mut [f32],
    gradient: &[f32],
    first_moment: &mut [f32],
    second_moment: &mut [f32],
) {
    let n = parameters.len();
    assert!(gradient.len() == n && first_moment.len() == n && second_moment.len() == n, "values of AdamW");
    let pass = Step::new(update);
    sweep_flat(cpu, pass, [gradient], [parameters, first_moment, second_moment]);
}

/// Sum of squares in f64, in an order that depends on the length only.
pub fn sum_of_squares(cpu: &Cpu, x: &[f32]) -> f64 {
    const PART: usize = 1 << 14;
    let parts: Vec<&[f32]> = x.chunks(PART).collect();
    parallel::map(cpu, 16 * x.len(), parts.len(), |task| cpu.run(Squares(parts[task]))).into_iter().sum()
}

impl Pass<1, 3> for Step {
    #[inline(always)]
    fn block<M: Machine, const N: usize>(
        self,
        m: M,
        [g]: [Block<M, N>; 1],
        [parameter, first, second]: [Block<M, N>; 3],
    ) -> [Block<M, N>; 3] {
        let of = math::splat::<M, N>;
        let g = math::mul(m, g, of(m, self.factor));
        let first = math::mul_add(m, of(m, self.rest1), g, math::mul(m, of(m, self.beta1), first));
        let square = math::mul(m, g, g);
        let second = math::mul_add(m, of(m, self.rest2), square, math::mul(m, of(m, self.beta2), second));
        let root = math::div(m, math::sqrt(m, second), of(m, self.root2));
        let direction = math::div(m, first, math::add(m, root, of(m, self.eps)));
        let kept = math::mul(m, parameter, of(m, self.keep));
        [math::mul_add(m, of(m, -self.step_size), direction, kept), first, second]
    }
}

/// Sum of squares of some values in 16 lanes.
struct Squares<'a>(&'a [f32]);

impl Kernel for Squares<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<M: Machine, const N: usize>(self, _: M) -> f64 {
        let mut lanes = [0.0f64; BLOCK];
        let (blocks, rest) = self.0.as_chunks::<BLOCK>();
        for block in blocks {
            for i in 0..BLOCK {
                lanes[i] += f64::from(block[i]) * f64::from(block[i]);
            }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) {
            *lane += f64::from(*x) * f64::from(*x);
        }
        lanes.into_iter().sum()
    }
}
