//! Cosine scores of token rows against one vector, and masked means of rows.
//!
//! ```text
//! T  tokens    D  width
//! ```

#![allow(unsafe_code, reason = "tasks write disjoint columns of the result")]
#![allow(clippy::needless_range_loop, reason = "lanes are counted")]

use super::{
    Cpu,
    machine::{Kernel, Machine},
    math::BLOCK,
    parallel::{self, Shared},
};

/// Cosine of each row of `rows [T, D]` with `vector [D]`, into `out [T]`, summed in f64. Zero where either is zero.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn cosine_scores(cpu: &Cpu, rows: &[f32], vector: &[f32], out: &mut [f32]) {
    let (tokens, d) = (out.len(), vector.len());
    assert!(rows.len() >= tokens * d, "{} values for {tokens} rows of {d}", rows.len());
    let [norm] = cpu.run(Dots([[vector, vector]]));
    let each = ((1 << 14) / d.max(1)).max(1);
    let out = Shared::new(out);
    parallel::for_each(cpu, 32 * tokens * d, tokens.div_ceil(each), |task| {
        for t in task * each..tokens.min((task + 1) * each) {
            let row = &rows[t * d..][..d];
            let [square, dot] = cpu.run(Dots([[row, row], [row, vector]]));
            let scale = (norm * square).sqrt();
            // SAFETY: a token belongs to one task.
            let out = unsafe { out.part(t, 1) };
            out[0] = if scale == 0.0 { 0.0 } else { (dot / scale) as f32 };
        }
    });
}

/// Products of pairs of rows, in 16 lanes of f64.
struct Dots<'a, const N: usize>([[&'a [f32]; 2]; N]);

impl<const PAIRS: usize> Kernel for Dots<'_, PAIRS> {
    type Output = [f64; PAIRS];

    #[inline(always)]
    fn run<M: Machine, const N: usize>(self, _: M) -> [f64; PAIRS] {
        let mut sums = [0.0; PAIRS];
        for k in 0..PAIRS {
            let [a, b] = self.0[k];
            let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<BLOCK>(), b.as_chunks::<BLOCK>());
            let mut lanes = [0.0f64; BLOCK];
            for (a, b) in a.iter().zip(b) {
                for i in 0..BLOCK {
                    lanes[i] += f64::from(a[i]) * f64::from(b[i]);
                }
            }
            for i in 0..a_rest.len() {
                lanes[i] += f64::from(a_rest[i]) * f64::from(b_rest[i]);
            }
            for lane in lanes {
                sums[k] += lane;
            }
        }
        sums
    }
}

/// Mean of the rows of `rows [T, D]` weighted by `mask [T]`, into `out [D]`; summed in f64 in the order of the rows.
///
/// Returns the sum of the mask; where it is zero, `out` is zero.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn masked_mean(cpu: &Cpu, rows: &[f32], mask: &[f32], out: &mut [f32]) -> f64 {
    const COLUMNS: usize = 128;
    let (tokens, d) = (mask.len(), out.len());
    assert!(rows.len() >= tokens * d, "{} values for {tokens} rows of {d}", rows.len());
    let weight: f64 = mask.iter().map(|m| f64::from(*m)).sum();
    let out = Shared::new(out);
    parallel::for_each(cpu, 32 * tokens * d, d.div_ceil(COLUMNS), |task| {
        let first = task * COLUMNS;
        // SAFETY: a column belongs to one task.
        let out = unsafe { out.part(first, COLUMNS.min(d - first)) };
        cpu.run(Mean { rows, stride: d, first, mask, weight, out });
    });
    weight
}

/// Some columns of a weighted mean.
struct Mean<'a> {
    rows: &'a [f32],
    stride: usize,
    first: usize,
    mask: &'a [f32],
    weight: f64,
    out: &'a mut [f32],
}

impl Kernel for Mean<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine, const N: usize>(self, _: M) {
        let mut sums = vec![0.0f64; self.out.len()];
        for (t, mask) in self.mask.iter().enumerate() {
            let row = &self.rows[t * self.stride + self.first..][..sums.len()];
            let mask = f64::from(*mask);
            for (sum, x) in sums.iter_mut().zip(row) {
                *sum += mask * f64::from(*x);
            }
        }
        for (out, sum) in self.out.iter_mut().zip(sums) {
            *out = if self.weight == 0.0 { 0.0 } else { (sum / self.weight) as f32 };
        }
    }
}
