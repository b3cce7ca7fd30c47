//! Products of encoders: with frozen matrices, where nothing is trained, and of two activations.
//!
//! ```text
//! y = x W^T + bias      M  rows    K  inputs    N  outputs
//! ```

use std::sync::Arc;

use super::frozen::matrix;
use crate::{
    cpu::{self, Cpu, Gemm, Matrix, Packed, Precision},
    error::Result,
    files::{TensorFiles, TensorView},
};

/// A frozen matrix `[N, K]` of a mapped file. It holds no values: they are read where they are used.
#[derive(Clone, Debug)]
pub struct Weight {
    view: TensorView,
    outputs: usize,
    inputs: usize,
}

impl Weight {
    /// Find a tensor that can be read as `[outputs, inputs]`: its first axis is N, all others together are K.
    ///
    /// # Errors
    /// If there is no such tensor, or it has other axes.
    pub fn locate(files: &Arc<TensorFiles>, name: &str, outputs: usize, inputs: usize) -> Result<Self> {
        let view = TensorView::whole(files, name)?;
        view.expect_matrix(outputs, inputs)?;
        Ok(Self { view, outputs, inputs })
    }

    /// N.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// K.
    pub fn inputs(&self) -> usize {
        self.inputs
    }
}

/// `out = x W^T + bias` for `m` rows; `x` and `out` are values with the distance between the starts of two rows.
///
/// # Errors
/// None today: a weight that cannot be read is found when it is located.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn dense(
    device: &Cpu,
    m: usize,
    x: (&[f32], usize),
    weight: &Weight,
    bias: Option<&[f32]>,
    out: (&mut [f32], usize),
) -> Result<()> {
    let packed =
        Packed::from_weight(device, Precision::F32, &matrix(&weight.view, (weight.outputs, weight.inputs)));
    product(device, m, x, &packed.passing(device), bias, out);
    Ok(())
}

/// `out = x y^T` for `m` rows of activations `x [M, K]` and `n` rows `y [N, K]`, both without gaps between rows.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn product_transposed(
    device: &Cpu,
    (m, n, k): (usize, usize, usize),
    x: &[f32],
    y: &[f32],
    out: &mut [f32],
) {
    let packed = Packed::from_weight(device, Precision::F32, &Matrix::of(&y[..n * k], n, k));
    product(device, m, (x, k), &packed.passing(device), None, (out, n));
}

/// `out = x y` for activations `x [M, K]` and `y [K, N]`, both without gaps between rows.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn product_plain(device: &Cpu, (m, n, k): (usize, usize, usize), x: &[f32], y: &[f32], out: &mut [f32]) {
    let packed = Packed::from_matrix(device, Precision::F32, &Matrix::of(&y[..n * k], k, n));
    product(device, m, (x, k), &packed.passing(device), None, (out, n));
}

fn product(
    device: &Cpu,
    m: usize,
    (x, x_stride): (&[f32], usize),
    weight: &Packed,
    bias: Option<&[f32]>,
    (out, out_stride): (&mut [f32], usize),
) {
    let call = Gemm { m, x, x_stride, weight, extra: None, bias, accumulate: false, out, out_stride };
    cpu::gemm(device, call);
}
