//! Backward of the norms with weights of their own, by the input alone: their weights are frozen.
//!
//! ```text
//! M  rows (tokens or pixels)    D  width    G  groups of channels
//! ```
//!
//! With n the normed values and g = dy weight, `dx = (g - mean(g) - n mean(g n)) / deviation`, where means are those of the row or of
//! the group; an RMS norm takes no mean off, and so has no `mean(g)`. Sums are kept in f64, in the order of the forward.

use rayon::{
    iter::{IndexedParallelIterator, ParallelIterator},
    slice::{ParallelSlice, ParallelSliceMut},
};

use super::{
    Cpu, GroupNorm,
    norm_weighted::{BLOCK_ROWS, CHUNK, Moments, TASK, factors, group_moments, layer_moments, rms_moments},
};

/// Backward of [`layer_norm`](super::layer_norm): its part of the cotangent of `x` is added to `dx`. All are `[M, D]`.
///
/// # Panics
/// If the slices do not fit each other.
pub fn layer_norm_backward(cpu: &Cpu, x: &[f32], weight: &[f32], eps: f64, dy: &[f32], dx: &mut [f32]) {
    by_rows(cpu, x, weight, dy, dx, true, |x| layer_moments(x, eps));
}

/// Backward of [`rms_norm`](super::rms_norm): its part of the cotangent of `x` is added to `dx`. All are `[M, D]`.
///
/// # Panics
/// If the slices do not fit each other.
pub fn rms_norm_backward(cpu: &Cpu, x: &[f32], weight: &[f32], eps: f64, dy: &[f32], dx: &mut [f32]) {
    by_rows(cpu, x, weight, dy, dx, false, |x| rms_moments(x, eps));
}

fn by_rows(
    cpu: &Cpu,
    x: &[f32],
    weight: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    centred: bool,
    moments: impl Fn(&[f32]) -> Moments + Sync,
) {
    let width = weight.len();
    assert!(x.len() == dy.len() && x.len() == dx.len(), "values of a norm and of its cotangents");
    assert!(width > 0 && x.len().is_multiple_of(width), "{} values in rows of {width}", x.len());
    let row = |((x, dy), dx): ((&[f32], &[f32]), &mut [f32])| {
        let Moments { mean, inverse } = moments(x);
        let (mut sum, mut along) = (0.0, 0.0);
        for ((x, dy), weight) in x.iter().zip(dy).zip(weight) {
            let g = f64::from(dy * weight);
            sum += g;
            along += g * ((f64::from(*x) - mean) * inverse);
        }
        let count = width as f64;
        let (sum, along) = (if centred { (sum / count) as f32 } else { 0.0 }, (along / count) as f32);
        let (mean, inverse) = (mean as f32, inverse as f32);
        for (((dx, x), dy), weight) in dx.iter_mut().zip(x).zip(dy).zip(weight) {
            let normed = (x - mean) * inverse;
            *dx += inverse * (dy * weight - sum - normed * along);
        }
    };
    let each = (TASK / width).max(1) * width;
    cpu.pool().install(|| {
        x.par_chunks(each).zip(dy.par_chunks(each)).zip(dx.par_chunks_mut(each)).for_each(|((x, dy), dx)| {
            x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width)).for_each(row);
        });
    });
}

/// Backward of [`group_norm`](super::group_norm) of one picture `[M, D]`: `dx` is overwritten.
///
/// # Panics
/// If the slices do not fit each other, or G does not divide D.
pub fn group_norm_backward(cpu: &Cpu, x: &[f32], norm: GroupNorm<'_>, dy: &[f32], dx: &mut [f32]) {
    let (width, groups) = (norm.weight.len(), norm.groups);
    norm.check(x);
    assert!(x.len() == dy.len() && x.len() == dx.len(), "values of a norm and of its cotangents");
    if x.is_empty() {
        return;
    }
    let moments = group_moments(cpu, x, groups, width, norm.eps);
    if norm.silu {
        before_silu(cpu, x, &factors(&moments, &norm), dy, dx);
    } else {
        super::copy(cpu, dy, dx);
    }
    let sums = channel_sums(cpu, x, dx, &moments, width);
    let (each, count) = (width / groups, (x.len() / groups) as f64);
    let mut channels = Vec::with_capacity(width);
    for (group, (sums, moments)) in sums.chunks_exact(each).zip(&moments).enumerate() {
        let weights = &norm.weight[group * each..][..each];
        let mean_of = |i: usize| {
            let sum: f64 = sums.iter().zip(weights).map(|(s, w)| s[i] * f64::from(*w)).sum();
            (moments.inverse * sum / count) as f32
        };
        let (mean, inverse) = (moments.mean as f32, moments.inverse as f32);
        let (sum, along) = (mean_of(0), mean_of(1));
        let factor = |w: &f32| (moments.inverse * f64::from(*w)) as f32;
        channels.extend(weights.iter().map(|w| Channel { mean, inverse, factor: factor(w), sum, along }));
    }
    let rows = (TASK / width).max(1) * width;
    cpu.pool().install(|| {
        x.par_chunks(rows).zip(dx.par_chunks_mut(rows)).for_each(|(x, dx)| {
            for (x, dx) in x.chunks_exact(width).zip(dx.chunks_exact_mut(width)) {
                for ((dx, x), c) in dx.iter_mut().zip(x).zip(&channels) {
                    *dx = *dx * c.factor - c.sum - (x - c.mean) * c.inverse * c.along;
                }
            }
        });
    });
}

/// What the cotangents of a channel become.
struct Channel {
    mean: f32,
    inverse: f32,
    /// Weight / deviation.
    factor: f32,
    /// mean(g) / deviation.
    sum: f32,
    /// mean(g n) / deviation.
    along: f32,
}

/// `dz = dy silu'(z)` with `z = x scale + shift`, channel by channel.
fn before_silu(cpu: &Cpu, x: &[f32], (scale, shift): &(Vec<f32>, Vec<f32>), dy: &[f32], dz: &mut [f32]) {
    let width = scale.len();
    let each = (TASK / width).max(1) * width;
    cpu.pool().install(|| {
        x.par_chunks(each).zip(dy.par_chunks(each)).zip(dz.par_chunks_mut(each)).for_each(|((x, dy), dz)| {
            let mut normed = vec![0.0; (CHUNK / width).max(1) * width];
            let chunk = normed.len();
            for ((x, dy), dz) in x.chunks(chunk).zip(dy.chunks(chunk)).zip(dz.chunks_mut(chunk)) {
                let normed = &mut normed[..x.len()];
                for (to, from) in normed.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    for (((to, x), scale), shift) in to.iter_mut().zip(from).zip(scale).zip(shift) {
                        *to = x * scale + shift;
                    }
                }
                super::silu_backward(cpu, normed, dy, dz);
            }
        });
    });
}

/// Sums over all rows of the cotangent, and of the cotangent times the normed value, of each channel.
fn channel_sums(cpu: &Cpu, x: &[f32], dz: &[f32], moments: &[Moments], width: usize) -> Vec<[f64; 2]> {
    let each = width / moments.len();
    let of_channel: Vec<Moments> = (0..width).map(|channel| moments[channel / each]).collect();
    let blocks: Vec<Vec<[f64; 2]>> = cpu.pool().install(|| {
        let blocks = x.par_chunks(BLOCK_ROWS * width).zip(dz.par_chunks(BLOCK_ROWS * width));
        blocks
            .map(|(x, dz)| {
                let mut sums = vec![[0.0; 2]; width];
                for (x, dz) in x.chunks_exact(width).zip(dz.chunks_exact(width)) {
                    for (((sum, x), dz), moments) in sums.iter_mut().zip(x).zip(dz).zip(&of_channel) {
                        let dz = f64::from(*dz);
                        let normed = (f64::from(*x) - moments.mean) * moments.inverse;
                        *sum = [sum[0] + dz, sum[1] + dz * normed];
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
    sums
}
