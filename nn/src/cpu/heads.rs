//! From token-major projections to head-major attention operands: RMS norm, rotary embedding, transposition.
//!
//! ```text
//! B  samples    H  heads    S  tokens of one stream    T  tokens of the attention    D  width of a head
//! ```

#![allow(unsafe_code, reason = "tasks write disjoint tokens of the results")]

use std::ops::Range;

use super::{
    Cpu, HeadLayout,
    check::check_matrix,
    machine::{Kernel, Machine},
    math::{self, BLOCK},
    parallel::{self, Shared},
};

const EPS: f32 = 1e-6;

/// What is done to queries and keys on the way; values go without.
#[derive(Clone, Copy, Debug)]
pub struct NormRotary<'a> {
    /// Weight of the RMS norm `[D]` (eps 1e-6).
    pub weight: &'a [f32],
    /// Cosines `[T, D / 2]`, by the token's place in the attention.
    pub cos: &'a [f32],
    /// Sines `[T, D / 2]`.
    pub sin: &'a [f32],
}

/// Reads one stream `[B, S, H * D]` and writes it into its rows of `[B, H, T, D]`; rows of other streams are left alone.
///
/// The rotary embedding turns the pairs (2i, 2i + 1).
///
/// # Panics
/// If a slice is too short for its shape.
pub fn split_heads(
    cpu: &Cpu,
    layout: HeadLayout,
    (x, x_stride): (&[f32], usize),
    norm_rotary: Option<NormRotary<'_>>,
    out: &mut [f32],
) {
    layout.check(x.len(), x_stride, out.len(), norm_rotary);
    let out = Shared::new(out);
    layout.for_each(cpu, |part| cpu.run(Split { layout, part, x, x_stride, norm_rotary, out }));
}

/// Backward of [`split_heads`]: from the cotangent `[B, H, T, D]` to that of the stream `[B, S, H * D]`, overwritten.
///
/// `x` is the forward's input; it is read only where there is a norm.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn split_heads_backward(
    cpu: &Cpu,
    layout: HeadLayout,
    d_out: &[f32],
    (x, x_stride): (&[f32], usize),
    norm_rotary: Option<NormRotary<'_>>,
    (dx, dx_stride): (&mut [f32], usize),
) {
    layout.check(dx.len(), dx_stride, d_out.len(), norm_rotary);
    if norm_rotary.is_some() {
        layout.check(x.len(), x_stride, d_out.len(), norm_rotary);
    }
    let dx = Shared::new(dx);
    layout.for_each(cpu, |part| {
        cpu.run(SplitBackward { layout, part, d_out, x, x_stride, norm_rotary, dx, dx_stride });
    });
}

impl HeadLayout {
    fn check(
        &self,
        token_major: usize,
        stride: usize,
        head_major: usize,
        norm_rotary: Option<NormRotary<'_>>,
    ) {
        let rows = self.batch * self.stream_tokens;
        check_matrix("tokens", token_major, rows, self.heads * self.dim, stride);
        assert!(self.offset + self.stream_tokens <= self.tokens, "a stream outside its attention: {self:?}");
        let all = self.batch * self.heads * self.tokens * self.dim;
        assert!(head_major >= all, "{head_major} values for heads of {self:?}");
        if let Some(NormRotary { weight, cos, sin }) = norm_rotary {
            assert!(self.dim.is_multiple_of(2), "rotary pairs in heads of width {}", self.dim);
            assert_eq!(weight.len(), self.dim, "values of the norm's weight");
            let angles = self.tokens * self.dim / 2;
            assert!(cos.len() >= angles && sin.len() >= angles, "{} cosines for {self:?}", cos.len());
        }
    }

    /// Runs a task for some rows of the stream (all samples counted through).
    fn for_each(&self, cpu: &Cpu, task: impl Fn(Range<usize>) + Send + Sync) {
        let (rows, width) = (self.batch * self.stream_tokens, self.heads * self.dim);
        let each = ((1 << 14) / width.max(1)).max(1);
        parallel::for_each(cpu, 64 * rows * width, rows.div_ceil(each), |i| {
            task(i * each..rows.min((i + 1) * each));
        });
    }

    /// Where a head of a row of the stream starts in head-major values, and its place in the attention.
    #[inline(always)]
    fn head_major(&self, row: usize, head: usize) -> (usize, usize) {
        let place = self.offset + row % self.stream_tokens;
        (((row / self.stream_tokens * self.heads + head) * self.tokens + place) * self.dim, place)
    }
}

/// 1 / root of the mean square.
#[inline(always)]
fn inverse_rms<M: Machine, const N: usize>(m: M, x: &[f32]) -> f32 {
    let mut sum = math::splat::<M, N>(m, 0.0);
    for block in x.chunks(BLOCK) {
        let block = math::load_part(m, block, 0.0);
        sum = math::mul_add(m, block, block, sum);
    }
    1.0 / (math::sum::<M, N>(sum) / x.len() as f32 + EPS).sqrt()
}

struct Split<'a> {
    layout: HeadLayout,
    part: Range<usize>,
    x: &'a [f32],
    x_stride: usize,
    norm_rotary: Option<NormRotary<'a>>,
    out: Shared<'a>,
}

impl Kernel for Split<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine, const N: usize>(self, m: M) {
        let HeadLayout { heads, dim, .. } = self.layout;
        for row in self.part {
            for head in 0..heads {
                let x = &self.x[row * self.x_stride + head * dim..][..dim];
                let (start, place) = self.layout.head_major(row, head);
                // SAFETY: a token belongs to one task.
                let out = unsafe { self.out.part(start, dim) };
                let Some(NormRotary { weight, cos, sin }) = self.norm_rotary else {
                    out.copy_from_slice(x);
                    continue;
                };
                let r = inverse_rms::<M, N>(m, x);
                let (cos, sin) = (&cos[place * dim / 2..][..dim / 2], &sin[place * dim / 2..][..dim / 2]);
                let pairs = out.as_chunks_mut::<2>().0.iter_mut();
                let inputs = x.as_chunks::<2>().0.iter().zip(weight.as_chunks::<2>().0);
                for ((out, ([x0, x1], [w0, w1])), (cos, sin)) in pairs.zip(inputs).zip(cos.iter().zip(sin)) {
                    let (x0, x1) = (x0 * r * w0, x1 * r * w1);
                    *out = [x0 * cos - x1 * sin, x0 * sin + x1 * cos];
                }
            }
        }
    }
}

struct SplitBackward<'a> {
    layout: HeadLayout,
    part: Range<usize>,
    d_out: &'a [f32],
    x: &'a [f32],
    x_stride: usize,
    norm_rotary: Option<NormRotary<'a>>,
    dx: Shared<'a>,
    dx_stride: usize,
}

impl Kernel for SplitBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine, const N: usize>(self, m: M) {
        let HeadLayout { heads, dim, .. } = self.layout;
        for row in self.part {
            for head in 0..heads {
                let (start, place) = self.layout.head_major(row, head);
                let d_out = &self.d_out[start..][..dim];
                // SAFETY: a token belongs to one task.
                let dx = unsafe { self.dx.part(row * self.dx_stride + head * dim, dim) };
                let Some(NormRotary { weight, cos, sin }) = self.norm_rotary else {
                    dx.copy_from_slice(d_out);
                    continue;
                };
                let x = &self.x[row * self.x_stride + head * dim..][..dim];
                let r = inverse_rms::<M, N>(m, x);
                let (cos, sin) = (&cos[place * dim / 2..][..dim / 2], &sin[place * dim / 2..][..dim / 2]);
                let pairs = dx.as_chunks_mut::<2>().0.iter_mut();
                let inputs = d_out.as_chunks::<2>().0.iter().zip(weight.as_chunks::<2>().0);
                for ((dx, ([d0, d1], [w0, w1])), (cos, sin)) in pairs.zip(inputs).zip(cos.iter().zip(sin)) {
                    *dx = [(d0 * cos + d1 * sin) * w0, (d1 * cos - d0 * sin) * w1];
                }
                // The turned cotangent lies in dx; its part along x is taken out.
                let mut along = math::splat::<M, N>(m, 0.0);
                for (dx, x) in dx.chunks(BLOCK).zip(x.chunks(BLOCK)) {
                    along = math::mul_add(m, math::load_part(m, dx, 0.0), math::load_part(m, x, 0.0), along);
                }
                let along = math::splat::<M, N>(m, r * r * math::sum::<M, N>(along) / dim as f32);
                let r = math::splat(m, r);
                for (dx, x) in dx.chunks_mut(BLOCK).zip(x.chunks(BLOCK)) {
                    let x = math::mul(m, math::load_part(m, x, 0.0), along);
                    let value = math::mul(m, r, math::sub(m, math::load_part(m, dx, 0.0), x));
                    math::store_part::<M, N>(dx, value);
                }
            }
        }
    }
}
