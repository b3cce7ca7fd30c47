//! Frozen matrices as a file has them, and products with them where nothing is trained: encoders.
//!
//! ```text
//! y = x W^T + bias      M  rows    K  inputs    N  outputs
//! ```

use std::sync::Arc;

use crate::{
    cpu::{self, Cpu, Gemm, Packed},
    error::{Error, Result},
    files::TensorFiles,
};

/// A frozen matrix `[N, K]` of a mapped file. It holds no values: they are read where they are used.
#[derive(Clone, Debug)]
pub struct Weight {
    files: Arc<TensorFiles>,
    name: String,
    outputs: usize,
    inputs: usize,
}

impl Weight {
    /// Find a tensor that can be read as `[outputs, inputs]`: its first axis is N, all others together are K.
    ///
    /// # Errors
    /// If there is no such tensor, or it has other axes.
    pub fn locate(files: &Arc<TensorFiles>, name: &str, outputs: usize, inputs: usize) -> Result<Self> {
        let info =
            files.info(name).ok_or_else(|| Error::file(files.path(), format!("has no tensor `{name}`")))?;
        let found = (info.shape.first().copied().unwrap_or(0), info.shape.iter().skip(1).product());
        if found != (outputs, inputs) {
            return Err(Error::shape(
                format!("outputs and inputs of `{name}` of {}", files.path().display()),
                (outputs, inputs),
                found,
            ));
        }
        Ok(Self { files: Arc::clone(files), name: name.into(), outputs, inputs })
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
/// If the weight cannot be read.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn dense(
    device: &Cpu,
    m: usize,
    (x, x_stride): (&[f32], usize),
    weight: &Weight,
    bias: Option<&[f32]>,
    (out, out_stride): (&mut [f32], usize),
) -> Result<()> {
    let values = weight.files.read(&weight.name)?;
    let packed = Packed::from_weight(device, &values, weight.outputs, weight.inputs);
    let call =
        Gemm { m, x, x_stride, weight: &packed, extra: None, bias, accumulate: false, out, out_stride };
    cpu::gemm(device, call);
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
    let packed = Packed::from_weight(device, &y[..n * k], n, k);
    product(device, m, (x, k), &packed, (out, n));
}

/// `out = x y` for activations `x [M, K]` and `y [K, N]`, both without gaps between rows.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn product_plain(device: &Cpu, (m, n, k): (usize, usize, usize), x: &[f32], y: &[f32], out: &mut [f32]) {
    let packed = Packed::from_matrix(device, &y[..n * k], k, n);
    product(device, m, (x, k), &packed, (out, n));
}

fn product(device: &Cpu, m: usize, x: (&[f32], usize), weight: &Packed, out: (&mut [f32], usize)) {
    cpu::gemm(
        device,
        Gemm {
            m,
            x: x.0,
            x_stride: x.1,
            weight,
            extra: None,
            bias: None,
            accumulate: false,
            out: out.0,
            out_stride: out.1,
        },
    );
}
