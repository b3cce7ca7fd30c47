//! Layer norm without weights, followed by the modulation of a diffusion transformer.
//!
//! ```text
//! B  samples    T  tokens    D  width
//! ```

#![allow(unsafe_code, reason = "tasks write disjoint rows of the results")]

use std::ops::Range;

use super::{
    Cpu, TokenRows,
    check::check_matrix,
    machine::{Kernel, Machine},
    math::{self, BLOCK, Block},
    parallel::{self, Shared},
    sweep::{Output, Pass, SweepInput, sweep_sums},
};

const EPS: f32 = 1e-6;

/// `y = norm(x) * (1 + scale[b]) + shift[b]`; the mean and 1 / deviation of each row are saved for the backward pass.
///
/// `x`, `y`: `[B, T, D]`; `shift`, `scale`: `[B, D]` with the row stride `modulation_stride`; `mean`, `rstd`: `[B * T]`.
/// eps is 1e-6.
///
/// # Panics
/// If a slice is too short for its shape.
#[expect(clippy::too_many_arguments, reason = "operands of one kernel, each named in the docs")]
pub fn norm_modulate(
    cpu: &Cpu,
    rows: TokenRows,
    x: &[f32],
    shift: &[f32],
    scale: &[f32],
    modulation_stride: usize,
    y: &mut [f32],
    mean: &mut [f32],
    rstd: &mut [f32],
) {
    let (count, d) = (rows.batch * rows.tokens, rows.width);
    check_matrix("x", x.len(), count, d, d);
    check_matrix("y", y.len(), count, d, d);
    check_matrix("shift", shift.len(), rows.batch, d, modulation_stride);
    check_matrix("scale", scale.len(), rows.batch, d, modulation_stride);
    assert!(mean.len() >= count && rstd.len() >= count, "a mean and a deviation for each of {count} rows");
    let [y, mean, rstd] = [y, mean, rstd].map(Shared::new);
    let each = rows_of_a_task(d);
    parallel::for_each(cpu, COST * rows.len(), count.div_ceil(each), |task| {
        let part = task * each..count.min((task + 1) * each);
        cpu.run(Forward { rows, part, x, shift, scale, modulation_stride, y, mean, rstd });
    });
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
    cpu: &Cpu,
    rows: TokenRows,
    x: &[f32],
    mean: &[f32],
    rstd: &[f32],
    scale: &[f32],
    modulation_stride: usize,
    dy: &[f32],
    dx: &mut [f32],
    accumulate: bool,
    modulation: Option<ModulationGrad<'_>>,
) {
    let (count, d) = (rows.batch * rows.tokens, rows.width);
    check_matrix("x", x.len(), count, d, d);
    check_matrix("dy", dy.len(), count, d, d);
    check_matrix("dx", dx.len(), count, d, d);
    check_matrix("scale", scale.len(), rows.batch, d, modulation_stride);
    assert!(mean.len() >= count && rstd.len() >= count, "a mean and a deviation for each of {count} rows");
    let dx = Shared::new(dx);
    let each = rows_of_a_task(d);
    parallel::for_each(cpu, COST * rows.len(), count.div_ceil(each), |task| {
        let part = task * each..count.min((task + 1) * each);
        cpu.run(Backward { rows, part, x, mean, rstd, scale, modulation_stride, dy, dx, accumulate });
    });
    if let Some(ModulationGrad { d_shift, d_scale, stride }) = modulation {
        check_matrix("d_shift", d_shift.len(), rows.batch, d, stride);
        check_matrix("d_scale", d_scale.len(), rows.batch, d, stride);
        for b in 0..rows.batch {
            d_shift[b * stride..][..d].fill(0.0);
            d_scale[b * stride..][..d].fill(0.0);
        }
        let inputs = [
            SweepInput::rows(x, d),
            SweepInput::Column(mean),
            SweepInput::Column(rstd),
            SweepInput::rows(dy, d),
        ];
        let outputs =
            [Output::sums(d_shift, stride, rows.tokens), Output::sums(d_scale, stride, rows.tokens)];
        sweep_sums(cpu, ModulationSums, (rows.batch, rows.tokens), d, inputs, outputs);
    }
}

/// What a value costs, in operations of a matrix product.
const COST: usize = 64;

fn rows_of_a_task(width: usize) -> usize {
    ((1 << 14) / width.max(1)).max(1)
}

struct Forward<'a> {
    rows: TokenRows,
    part: Range<usize>,
    x: &'a [f32],
    shift: &'a [f32],
    scale: &'a [f32],
    modulation_stride: usize,
    y: Shared<'a>,
    mean: Shared<'a>,
    rstd: Shared<'a>,
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine, const N: usize>(self, m: M) {
        let d = self.rows.width;
        for r in self.part {
            let modulation = r / self.rows.tokens * self.modulation_stride;
            let (shift, scale) = (&self.shift[modulation..][..d], &self.scale[modulation..][..d]);
            let x = &self.x[r * d..][..d];
            // SAFETY: a row belongs to one task.
            let (y, saved_mean, saved_rstd) =
                unsafe { (self.y.part(r * d, d), self.mean.part(r, 1), self.rstd.part(r, 1)) };
            let mut sum = math::splat::<M, N>(m, 0.0);
            for x in x.chunks(BLOCK) {
                sum = math::add(m, sum, math::load_part(m, x, 0.0));
            }
            let mean = math::sum::<M, N>(sum) / d as f32;
            let center = math::splat(m, mean);
            let mut sum = math::splat::<M, N>(m, 0.0);
            for x in x.chunks(BLOCK) {
                let c = math::sub(m, math::load_part(m, x, mean), center);
                sum = math::mul_add(m, c, c, sum);
            }
            let rstd = 1.0 / (math::sum::<M, N>(sum) / d as f32 + EPS).sqrt();
            (saved_mean[0], saved_rstd[0]) = (mean, rstd);
            let (rstd, one) = (math::splat::<M, N>(m, rstd), math::splat(m, 1.0));
            for (((y, x), shift), scale) in
                y.chunks_mut(BLOCK).zip(x.chunks(BLOCK)).zip(shift.chunks(BLOCK)).zip(scale.chunks(BLOCK))
            {
                let normed = math::mul(m, math::sub(m, math::load_part(m, x, 0.0), center), rstd);
                let scale = math::add(m, one, math::load_part(m, scale, 0.0));
                let value = math::mul_add(m, normed, scale, math::load_part(m, shift, 0.0));
                math::store_part::<M, N>(y, value);
            }
        }
    }
}

struct Backward<'a> {
    rows: TokenRows,
    part: Range<usize>,
    x: &'a [f32],
    mean: &'a [f32],
    rstd: &'a [f32],
    scale: &'a [f32],
    modulation_stride: usize,
    dy: &'a [f32],
    dx: Shared<'a>,
    accumulate: bool,
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine, const N: usize>(self, m: M) {
        let d = self.rows.width;
        let one = math::splat::<M, N>(m, 1.0);
        for r in self.part {
            let scale = &self.scale[r / self.rows.tokens * self.modulation_stride..][..d];
            let (x, dy) = (&self.x[r * d..][..d], &self.dy[r * d..][..d]);
            // SAFETY: a row belongs to one task.
            let dx = unsafe { self.dx.part(r * d, d) };
            let (mean, rstd) = (math::splat(m, self.mean[r]), math::splat(m, self.rstd[r]));
            let (mut sum, mut along) = (math::splat::<M, N>(m, 0.0), math::splat(m, 0.0));
            for ((x, dy), scale) in x.chunks(BLOCK).zip(dy.chunks(BLOCK)).zip(scale.chunks(BLOCK)) {
                let normed = math::mul(m, math::sub(m, math::load_part(m, x, 0.0), mean), rstd);
                let scale = math::add(m, one, math::load_part(m, scale, 0.0));
                // Beyond the end of the row the cotangent is zero, and so are both terms.
                let dn = math::mul(m, math::load_part(m, dy, 0.0), scale);
                sum = math::add(m, sum, dn);
                along = math::mul_add(m, dn, normed, along);
            }
            let sum = math::splat::<M, N>(m, math::sum::<M, N>(sum) / d as f32);
            let along = math::splat::<M, N>(m, math::sum::<M, N>(along) / d as f32);
            for (((dx, x), dy), scale) in
                dx.chunks_mut(BLOCK).zip(x.chunks(BLOCK)).zip(dy.chunks(BLOCK)).zip(scale.chunks(BLOCK))
            {
                let normed = math::mul(m, math::sub(m, math::load_part(m, x, 0.0), mean), rstd);
                let scale = math::add(m, one, math::load_part(m, scale, 0.0));
                let dn = math::mul(m, math::load_part(m, dy, 0.0), scale);
                let part = math::sub(m, math::sub(m, dn, sum), math::mul(m, normed, along));
                let old = if self.accumulate { math::load_part(m, dx, 0.0) } else { math::splat(m, 0.0) };
                math::store_part::<M, N>(dx, math::mul_add(m, rstd, part, old));
            }
        }
    }
}

/// From x, mean, 1 / deviation and dy, the sums of dy and of dy times the normed value.
#[derive(Clone, Copy)]
struct ModulationSums;

impl Pass<4, 2> for ModulationSums {
    #[inline(always)]
    fn block<M: Machine, const N: usize>(
        self,
        m: M,
        [x, mean, rstd, dy]: [Block<M, N>; 4],
        [d_shift, d_scale]: [Block<M, N>; 2],
    ) -> [Block<M, N>; 2] {
        let normed = math::mul(m, math::sub(m, x, mean), rstd);
        [math::add(m, d_shift, dy), math::mul_add(m, dy, normed, d_scale)]
    }
}
