//! Norms with weights: layer norm, RMS norm, and group norm with the SiLU that often follows it.
//!
//! ```text
//! M  rows (tokens or pixels)    D  width    G  groups of channels
//! ```
//!
//! Sums are kept in f64. A row's sum belongs to one task; a group's sum runs over blocks of rows of a fixed size, whose
//! sums are added in order, so that no result depends on the number of threads.

use rayon::{
    iter::{IndexedParallelIterator, ParallelIterator},
    slice::{ParallelSlice, ParallelSliceMut},
};

use super::Cpu;

/// Values in a task: enough to be worth a thread, few enough for every thread to have several.
pub(super) const TASK: usize = 1 << 15;
/// Rows whose sums are added before those of the next block.
pub(super) const BLOCK_ROWS: usize = 256;
/// Values that go through an activation at once: they stay in the first cache.
pub(super) const CHUNK: usize = 2048;

/// What is taken off the values of a row or a group, and what they are multiplied by then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moments {
    pub mean: f64,
    /// 1 / deviation.
    pub inverse: f64,
}

/// `out = (x - mean) / deviation * weight + bias`, row by row; `x` and `out` are `[M, D]`.
///
/// # Panics
/// If the slices do not fit each other.
pub fn layer_norm(device: &Cpu, x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f64, out: &mut [f32]) {
    by_rows(device, x, (weight, bias), out, |x| layer_moments(x, eps));
}

/// `out = x / root of the mean square * weight + bias`, row by row; `x` and `out` are `[M, D]`.
///
/// # Panics
/// If the slices do not fit each other.
pub fn rms_norm(device: &Cpu, x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f64, out: &mut [f32]) {
    by_rows(device, x, (weight, bias), out, |x| rms_moments(x, eps));
}

/// Those of a row in a layer norm.
pub(super) fn layer_moments(x: &[f32], eps: f64) -> Moments {
    let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / x.len() as f64;
    let variance = x.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / x.len() as f64;
    Moments { mean, inverse: 1.0 / (variance + eps).sqrt() }
}

/// Those of a row in an RMS norm.
pub(super) fn rms_moments(x: &[f32], eps: f64) -> Moments {
    let square = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / x.len() as f64;
    Moments { mean: 0.0, inverse: 1.0 / (square + eps).sqrt() }
}

/// The sizes of a [`group_norm`] and its weights.
#[derive(Clone, Copy, Debug)]
pub struct GroupNorm<'a> {
    /// G, which divides D.
    pub groups: usize,
    /// `[D]`.
    pub weight: &'a [f32],
    /// `[D]`.
    pub bias: &'a [f32],
    /// Added to the variance.
    pub eps: f64,
    /// Whether SiLU follows.
    pub silu: bool,
}

impl GroupNorm<'_> {
    /// # Panics
    /// If weights, groups and the values of a picture do not fit each other.
    pub(super) fn check(&self, x: &[f32]) {
        let (width, groups) = (self.weight.len(), self.groups);
        assert!(
            self.bias.len() == width && width.is_multiple_of(groups),
            "{groups} groups of {width} channels"
        );
        assert!(x.len().is_multiple_of(width), "{} values in rows of {width}", x.len());
    }
}

/// Group norm of one picture `[M, D]`, channels last: every group of D / G channels has one mean and one variance over all
/// rows.
///
/// # Panics
/// If the slices do not fit each other, or G does not divide D.
pub fn group_norm(device: &Cpu, x: &[f32], norm: GroupNorm<'_>, out: &mut [f32]) {
    let GroupNorm { groups, weight, silu, eps, .. } = norm;
    let width = weight.len();
    norm.check(x);
    assert_eq!(x.len(), out.len(), "values before and after a norm");
    if x.is_empty() {
        return;
    }
    let (scale, shift) = factors(&group_moments(device, x, groups, width, eps), &norm);
    let apply = |from: &[f32], to: &mut [f32]| {
        for (to, from) in to.chunks_exact_mut(width).zip(from.chunks_exact(width)) {
            for (((to, x), scale), shift) in to.iter_mut().zip(from).zip(&scale).zip(&shift) {
                *to = x * scale + shift;
            }
        }
    };
    let each = (TASK / width).max(1) * width;
    device.pool().install(|| {
        x.par_chunks(each).zip(out.par_chunks_mut(each)).for_each(|(x, out)| {
            if !silu {
                return apply(x, out);
            }
            let mut normed = vec![0.0; (CHUNK / width).max(1) * width];
            for (x, out) in x.chunks(normed.len()).zip(out.chunks_mut(normed.len())) {
                let normed = &mut normed[..x.len()];
                apply(x, normed);
                super::silu(device, normed, out);
            }
        });
    });
}

/// Those of each group of a picture.
pub(super) fn group_moments(device: &Cpu, x: &[f32], groups: usize, width: usize, eps: f64) -> Vec<Moments> {
    let blocks: Vec<Vec<[f64; 2]>> = device.pool().install(|| {
        x.par_chunks(BLOCK_ROWS * width)
            .map(|rows| {
                let mut sums = vec![[0.0; 2]; width];
                for row in rows.chunks_exact(width) {
                    for (sum, x) in sums.iter_mut().zip(row) {
                        let x = f64::from(*x);
                        *sum = [sum[0] + x, sum[1] + x * x];
                    }
                }
                sums
            })
            .collect()
    });
    let mut sums = vec![[0.0; 2]; width];
    for block in &blocks {
        for (sum, part) in sums.iter_mut().zip(block) {
            *sum = [sum[0] + part[0], sum[1] + part[1]];
        }
    }
    let count = (x.len() / groups) as f64;
    let of_group = |sums: &[[f64; 2]]| {
        let mean = sums.iter().map(|s| s[0]).sum::<f64>() / count;
        let square = sums.iter().map(|s| s[1]).sum::<f64>() / count;
        Moments { mean, inverse: 1.0 / ((square - mean * mean).max(0.0) + eps).sqrt() }
    };
    sums.chunks_exact(width / groups).map(of_group).collect()
}

/// What each channel is multiplied by, and what is added then.
pub(super) fn factors(moments: &[Moments], norm: &GroupNorm<'_>) -> (Vec<f32>, Vec<f32>) {
    let width = norm.weight.len();
    let each = width / norm.groups;
    let (mut scale, mut shift) = (Vec::with_capacity(width), Vec::with_capacity(width));
    for (group, Moments { mean, inverse }) in moments.iter().enumerate() {
        for c in group * each..(group + 1) * each {
            let factor = inverse * f64::from(norm.weight[c]);
            scale.push(factor as f32);
            shift.push((f64::from(norm.bias[c]) - mean * factor) as f32);
        }
    }
    (scale, shift)
}

/// `out = (x - mean) * scale * weight + bias` with the mean and the scale that `moments` gives of each row.
fn by_rows(
    device: &Cpu,
    x: &[f32],
    (weight, bias): (&[f32], Option<&[f32]>),
    out: &mut [f32],
    moments: impl Fn(&[f32]) -> Moments + Sync,
) {
    let width = weight.len();
    assert!(bias.is_none_or(|bias| bias.len() == width), "weight and bias of a norm");
    assert_eq!(x.len(), out.len(), "values before and after a norm");
    assert!(width > 0 && x.len().is_multiple_of(width), "{} values in rows of {width}", x.len());
    let each = (TASK / width).max(1) * width;
    device.pool().install(|| {
        x.par_chunks(each).zip(out.par_chunks_mut(each)).for_each(|(x, out)| {
            for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
                let Moments { mean, inverse } = moments(x);
                let (mean, scale) = (mean as f32, inverse as f32);
                for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                    *out = (x - mean) * scale * weight;
                }
                if let Some(bias) = bias {
                    out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
                }
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 17.0 + 3.0).collect()
    }

    fn mean_and_variance(values: impl Iterator<Item = f32> + Clone) -> (f64, f64) {
        let n = values.clone().count() as f64;
        let mean = values.clone().map(f64::from).sum::<f64>() / n;
        (mean, values.map(|v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n)
    }

    #[test]
    fn a_row_has_mean_zero_and_variance_one_before_its_weights() {
        let (x, ones) = (ramp(3 * 40), [1.0; 40]);
        let mut y = vec![0.0; x.len()];
        layer_norm(&Cpu::new(2).unwrap(), &x, &ones, Some(&[0.25; 40]), 0.0, &mut y);
        for row in y.chunks_exact(40) {
            let (mean, variance) = mean_and_variance(row.iter().copied());
            assert!((mean - 0.25).abs() < 1e-6 && (variance - 1.0).abs() < 1e-5, "{mean} {variance}");
        }
    }

    #[test]
    fn a_row_has_mean_square_one_before_its_weights() {
        let x = ramp(2 * 64);
        let mut y = vec![0.0; x.len()];
        rms_norm(&Cpu::new(1).unwrap(), &x, &[2.0; 64], None, 0.0, &mut y);
        for row in y.chunks_exact(64) {
            let square = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / 64.0;
            assert!((square - 4.0).abs() < 1e-5, "{square}");
        }
    }

    #[test]
    fn a_group_has_mean_zero_and_variance_one_over_all_pixels_whatever_the_threads() {
        let x = ramp(700 * 12);
        let run = |threads| {
            let mut y = vec![0.0; x.len()];
            let norm = GroupNorm { groups: 3, weight: &[1.0; 12], bias: &[0.0; 12], eps: 0.0, silu: false };
            group_norm(&Cpu::new(threads).unwrap(), &x, norm, &mut y);
            y
        };
        let y = run(1);
        assert_eq!(y, run(3));
        for group in 0..3 {
            let of_group = |row: &[f32]| row[group * 4..][..4].to_vec();
            let (mean, variance) = mean_and_variance(y.chunks_exact(12).flat_map(of_group));
            assert!(mean.abs() < 1e-6 && (variance - 1.0).abs() < 1e-5, "{mean} {variance}");
        }
    }

    #[test]
    fn silu_follows_a_group_norm_where_it_is_asked_for() {
        let run = |silu| {
            let mut y = [0.0; 5 * 8];
            let norm = GroupNorm { groups: 2, weight: &[1.5; 8], bias: &[0.5; 8], eps: 1e-6, silu };
            group_norm(&Cpu::new(1).unwrap(), &ramp(5 * 8), norm, &mut y);
            y
        };
        for (plain, found) in run(false).into_iter().zip(run(true)) {
            assert!((found - plain / (1.0 + libm::expf(-plain))).abs() < 1e-6, "{plain} {found}");
        }
    }
}
