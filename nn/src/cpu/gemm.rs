//! Matrix products: activations by packed weights (with a LoRA branch), and sums over rows for LoRA gradients.
//!
//! ```text
//! M  rows (tokens)    K  summed axis    N  columns of the result    P, Q  columns of the two factors of `gemm_tn`
//! ```
//!
//! All matrices are row-major; a stride is the distance between the starts of two rows, in values.
//! Each element of a result is one chain of fused multiply-adds in the order of the summed axis. So its bits
//! depend on its row of `x` and its column of the weight only: not on the number of rows, on the place of the
//! row, on the number of threads, or on the instruction set.

use super::{Cpu, Packed};

/// `out = start + x * weight + extra`, where `start` is `out`, the bias or zero.
///
/// The extra product continues in the accumulators once the base product is complete, so that an extra product of
/// zero leaves the bits of the base product.
#[derive(Debug)]
pub struct Gemm<'a> {
    /// Number of rows M of `x` and `out`.
    pub m: usize,
    /// `[M, K]`.
    pub x: &'a [f32],
    /// Stride of the rows of `x`, at least K.
    pub x_stride: usize,
    /// `[K, N]`.
    pub weight: &'a Packed,
    /// A second product to add: `h [M, R]`, its row stride, and a matrix `[R, N]`.
    pub extra: Option<(&'a [f32], usize, &'a Packed)>,
    /// `[N]`; only without `accumulate`.
    pub bias: Option<&'a [f32]>,
    /// Whether to add to what `out` holds.
    pub accumulate: bool,
    /// `[M, N]`.
    pub out: &'a mut [f32],
    /// Stride of the rows of `out`, at least N.
    pub out_stride: usize,
}

/// `out[p, q] = sum over m of a[m, p] * b[m, q]`.
#[derive(Debug)]
pub struct GemmTn<'a> {
    /// Number of rows M of both factors.
    pub m: usize,
    /// Columns of `a`.
    pub p: usize,
    /// Columns of `b`.
    pub q: usize,
    /// `[M, P]`.
    pub a: &'a [f32],
    /// Stride of the rows of `a`.
    pub a_stride: usize,
    /// `[M, Q]`.
    pub b: &'a [f32],
    /// Stride of the rows of `b`.
    pub b_stride: usize,
    /// Whether to add to what `out` holds.
    pub accumulate: bool,
    /// `[P, Q]`, without gaps between rows.
    pub out: &'a mut [f32],
}

/// Computes a [`Gemm`].
///
/// # Panics
/// If a slice is too short for its shape, or a matrix was packed for another K or N.
pub fn gemm(_cpu: &Cpu, call: Gemm<'_>) {
    let n = call.weight.n();
    assert!(!(call.accumulate && call.bias.is_some()), "a bias and `accumulate` exclude each other");
    for r in 0..call.m {
        let out = &mut call.out[r * call.out_stride..][..n];
        if !call.accumulate {
            match call.bias {
                Some(bias) => out.copy_from_slice(bias),
                None => out.fill(0.0),
            }
        }
        for (x, stride, w) in [(call.x, call.x_stride, call.weight)].into_iter().chain(call.extra) {
            for (k, &x) in x[r * stride..][..w.k()].iter().enumerate() {
                for (o, &w) in out.iter_mut().zip(w.row(k)) {
                    *o = x.mul_add(w, *o);
                }
            }
        }
    }
}

/// Computes a [`GemmTn`].
///
/// # Panics
/// If a slice is too short for its shape.
pub fn gemm_tn(_cpu: &Cpu, call: GemmTn<'_>) {
    let GemmTn { m, p, q, a, a_stride, b, b_stride, accumulate, out } = call;
    if !accumulate {
        out[..p * q].fill(0.0);
    }
    for r in 0..m {
        for (i, &a) in a[r * a_stride..][..p].iter().enumerate() {
            for (o, &b) in out[i * q..][..q].iter_mut().zip(&b[r * b_stride..][..q]) {
                *o = a.mul_add(b, *o);
            }
        }
    }
}
