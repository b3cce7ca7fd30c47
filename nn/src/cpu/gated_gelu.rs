//! GEGLU (Shazeer 2020): values times the GELU of their gates, which stand beside them in one row.
//!
//! Value by value, by functions without vectors: what is computed for one is the same on every instruction set.

use rayon::{
    iter::{IndexedParallelIterator, ParallelIterator},
    slice::ParallelSliceMut,
};

use super::{Cpu, SubMatrix, gemm::check_matrix};

/// Values in a task.
const TASK: usize = 1 << 12;

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
    by_rows(cpu, (rows, width), (y, y_stride), |row, y| {
        let (a, b) = x[row * x_stride..][..2 * width].split_at(width);
        for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
            *y = a * b * normal_share(*b);
        }
    });
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
    by_rows(cpu, (rows, 2 * width), (dx, dx_stride), |row, dx| {
        let (a, b) = x[row * x_stride..][..2 * width].split_at(width);
        let (da, db) = dx.split_at_mut(width);
        let dy = &dy[row * dy_stride..][..width];
        for ((((da, db), a), b), dy) in da.iter_mut().zip(db).zip(a).zip(b).zip(dy) {
            let share = normal_share(*b);
            *da = dy * b * share;
            *db = dy * a * (share + b * normal_density(*b));
        }
    });
}

/// Calls `write(i, row)` for every row of `to`.
fn by_rows(
    cpu: &Cpu,
    (rows, width): (usize, usize),
    (to, stride): (&mut [f32], usize),
    write: impl Fn(usize, &mut [f32]) + Send + Sync,
) {
    if rows * width == 0 {
        return;
    }
    let to = &mut to[..(rows - 1) * stride + width];
    let write = |(row, to): (usize, &mut [f32])| write(row, &mut to[..width]);
    if rows * width <= TASK {
        return to.chunks_mut(stride).enumerate().for_each(write);
    }
    cpu.pool().install(|| {
        to.par_chunks_mut(stride).with_min_len((TASK / width).max(1)).enumerate().for_each(write);
    });
}

/// The share of a normal distribution that lies below: GELU is `x` times it.
fn normal_share(x: f32) -> f32 {
    0.5 * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// The density of a normal distribution.
fn normal_density(x: f32) -> f32 {
    const ROOT: f32 = 0.398_942_3;
    ROOT * libm::expf(-0.5 * x * x)
}
