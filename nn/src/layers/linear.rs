//! Frozen linears with a LoRA branch, several of which may read the same input.
//!
//! ```text
//! y = x W^T + bias + s h B^T        h = x A^T        s = alpha / rank
//!
//! M  rows    K  inputs    N  outputs    R  rank    J  adapted linears of a group
//! ```
//!
//! Backward, given dy: `dB = s dy^T h`, `dh = s dy B`, `dA = dh^T x`, `dx = dy W + dh A`. A group of linears with
//! one input has its A matrices one below the other, so that `h` and `dA` are one product each, and `x` is read once.

use std::{ops::Range, sync::Arc, sync::OnceLock};

use super::{Buffer, Buffers, copy_rows};
use crate::{
    backbone::LinearLayout,
    cpu::{self, Cpu, Gemm, GemmTn, Packed},
    error::{Error, Result},
    files::TensorFiles,
    lora::Adapter,
};

/// A frozen linear: packed for the forward when it is made, for the backward when that first asks.
#[derive(Debug)]
pub struct Linear {
    name: String,
    /// Its number among the linears that an adapter may have factors for.
    index: Option<usize>,
    inputs: usize,
    outputs: usize,
    weight: Packed,
    bias: Vec<f32>,
    backward: OnceLock<Packed>,
    files: Arc<TensorFiles>,
}

impl Linear {
    /// Read `NAME.weight` and `NAME.bias`, and check that every value is finite.
    ///
    /// # Errors
    /// If a tensor is missing, has another shape, or holds a value that is not finite.
    pub fn read(
        device: &Cpu,
        files: &Arc<TensorFiles>,
        layout: &LinearLayout,
        index: Option<usize>,
    ) -> Result<Self> {
        let LinearLayout { name, inputs, outputs } = layout.clone();
        let weight = files.read_finite(&format!("{name}.weight"), &[outputs, inputs])?;
        let bias = files.read_finite(&format!("{name}.bias"), &[outputs])?;
        let weight = Packed::from_weight(device, &weight, outputs, inputs);
        Ok(Self {
            name,
            index,
            inputs,
            outputs,
            weight,
            bias,
            backward: OnceLock::new(),
            files: Arc::clone(files),
        })
    }

    /// Width of the output.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// The weight as the input's derivative reads it. The values were checked when the linear was made.
    fn for_backward(&self, device: &Cpu) -> Result<&Packed> {
        if let Some(packed) = self.backward.get() {
            return Ok(packed);
        }
        let weight = self.files.read(&format!("{}.weight", self.name))?;
        Ok(self.backward.get_or_init(|| Packed::from_matrix(device, &weight, self.outputs, self.inputs)))
    }
}

/// The factors of an adapter, by the number of their linear.
#[derive(Debug)]
pub struct Branches<'a> {
    rank: usize,
    scale: f32,
    values: &'a [f32],
    /// Where A and B stand in the adapter's values.
    places: Vec<Option<(Range<usize>, Range<usize>)>>,
}

impl<'a> Branches<'a> {
    /// Match an adapter with the linears of a model.
    ///
    /// # Errors
    /// If the adapter has a module that the model has not, twice, or of other widths; if it holds another number of
    /// values than its layout says.
    pub fn new(adapter: &'a Adapter, linears: &[LinearLayout]) -> Result<Self> {
        let layout = &adapter.layout;
        if adapter.values.len() != layout.len() {
            return Err(Error::shape("values of the adapter", layout.len(), adapter.values.len()));
        }
        if layout.rank == 0 {
            return Err(Error::Setting("the adapter's rank is 0: expected at least 1".into()));
        }
        let numbers: std::collections::HashMap<&str, usize> =
            linears.iter().enumerate().map(|(i, l)| (l.name.as_str(), i)).collect();
        let mut places = vec![None; linears.len()];
        for (module, place) in layout.modules.iter().zip(layout.ranges()) {
            let Some(&index) = numbers.get(module.name.as_str()) else {
                let near = crate::files::nearest(&module.name, linears.iter().map(|l| l.name.as_str()));
                let hint = near.map_or(String::new(), |n| format!("; nearest: `{n}`"));
                return Err(Error::Setting(format!(
                    "the adapter has factors for `{}`, which the model does not have{hint}",
                    module.name
                )));
            };
            let linear = &linears[index];
            if (module.inputs, module.outputs) != (linear.inputs, linear.outputs) {
                return Err(Error::shape(
                    format!("inputs and outputs of the adapter's `{}`", module.name),
                    (linear.inputs, linear.outputs),
                    (module.inputs, module.outputs),
                ));
            }
            if places[index].replace(place).is_some() {
                return Err(Error::Setting(format!("the adapter has `{}` twice", module.name)));
            }
        }
        Ok(Self { rank: layout.rank, scale: layout.scale(), values: &adapter.values, places })
    }

    /// Has this linear factors?
    pub fn adapts(&self, linear: &Linear) -> bool {
        self.place(linear).is_some()
    }

    fn place(&self, linear: &Linear) -> Option<&(Range<usize>, Range<usize>)> {
        linear.index.and_then(|i| self.places[i].as_ref())
    }

    fn a(&self, linear: &Linear) -> Option<&'a [f32]> {
        self.place(linear).map(|(a, _)| &self.values[a.clone()])
    }

    /// `s B`, `[N, R]`.
    fn scaled_b(&self, linear: &Linear) -> Option<Vec<f32>> {
        self.place(linear).map(|(_, b)| self.values[b.clone()].iter().map(|v| v * self.scale).collect())
    }

    /// The A matrices of a group, one below the other: `[J R, K]`; nothing if none is adapted.
    fn stacked_a<'l>(&self, linears: impl Iterator<Item = &'l Linear>) -> Option<(Vec<f32>, usize)> {
        let mut stack = Vec::new();
        let mut adapted = 0;
        for a in linears.filter_map(|l| self.a(l)) {
            stack.extend_from_slice(a);
            adapted += 1;
        }
        (adapted > 0).then_some((stack, adapted * self.rank))
    }
}

/// What layers work with: the device, working memory, and the adapter if there is one.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Where the work is done.
    pub device: &'a Cpu,
    /// Working memory.
    pub buffers: &'a Buffers,
    /// The adapter's factors.
    pub branches: Option<&'a Branches<'a>>,
}

impl Context<'_> {
    /// Has this linear factors?
    pub fn adapts(&self, linear: &Linear) -> bool {
        self.branches.is_some_and(|b| b.adapts(linear))
    }

    /// A copy in working memory.
    pub fn copy(&self, values: &[f32]) -> Buffer {
        /// Values that one task copies.
        const PART: usize = 1 << 14;
        let mut copy = self.buffers.take(values.len());
        copy_rows(self.device, &mut copy, PART, |i, to| {
            to.copy_from_slice(&values[i * PART..][..to.len()]);
        });
        copy
    }
}

/// Rows of activations: the values, and the distance between the starts of two rows.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(pub &'a [f32], pub usize);

/// A linear of a group, and where its result goes: the values, and the distance between the starts of two rows.
#[derive(Debug)]
pub struct Output<'a>(pub &'a Linear, pub &'a mut [f32], pub usize);

/// Apply linears to the same `m` rows. Returns `h [M, J R]` for the backward, if any of them is adapted.
pub fn linears(ctx: Context<'_>, m: usize, x: Input<'_>, outputs: &mut [Output<'_>]) -> Option<Buffer> {
    let stacked = ctx.branches.and_then(|b| b.stacked_a(outputs.iter().map(|o| o.0)));
    let inner = stacked.map(|(a, width)| {
        let mut h = ctx.buffers.take(m * width);
        let a = Packed::from_weight(ctx.device, &a, width, a.len() / width);
        cpu::gemm(
            ctx.device,
            Gemm {
                m,
                x: x.0,
                x_stride: x.1,
                weight: &a,
                extra: None,
                bias: None,
                accumulate: false,
                out: &mut h,
                out_stride: width,
            },
        );
        (h, width)
    });
    let mut column = 0;
    for Output(linear, out, out_stride) in outputs {
        let b = ctx.branches.and_then(|branches| branches.scaled_b(linear).map(|b| (b, branches.rank)));
        let b = b.map(|(b, rank)| (Packed::from_weight(ctx.device, &b, linear.outputs, rank), rank));
        let extra = match (&inner, &b) {
            (Some((h, width)), Some((b, rank))) => {
                column += rank;
                Some((&h[column - rank..], *width, b))
            }
            _ => None,
        };
        cpu::gemm(
            ctx.device,
            Gemm {
                m,
                x: x.0,
                x_stride: x.1,
                weight: &linear.weight,
                extra,
                bias: Some(&linear.bias),
                accumulate: false,
                out,
                out_stride: *out_stride,
            },
        );
    }
    inner.map(|(h, _)| h)
}

/// Where the derivative by the input goes.
#[derive(Debug)]
pub struct InputGrad<'a> {
    /// The values.
    pub values: &'a mut [f32],
    /// Distance between the starts of two rows.
    pub stride: usize,
    /// Add to what is there?
    pub accumulate: bool,
}

/// Backward of [`linears`]: each linear with its `dy`. `x` and `h` are read only where a linear is adapted.
/// `grads` is the derivative by all values of the adapter; those of these linears are overwritten.
///
/// # Errors
/// If a weight cannot be read again.
pub fn linears_backward(
    ctx: Context<'_>,
    m: usize,
    x: Option<Input<'_>>,
    inner: Option<&[f32]>,
    outputs: &[(&Linear, Input<'_>)],
    dx: Option<InputGrad<'_>>,
    grads: &mut [f32],
) -> Result<()> {
    let stacked = ctx.branches.and_then(|b| Some((b, b.stacked_a(outputs.iter().map(|o| o.0))?)));
    let inner_grad = match (&stacked, x, inner) {
        (None, ..) => None,
        (Some((branches, (_, width))), Some(x), Some(h)) => {
            let mut dh = ctx.buffers.take(m * width);
            factor_gradients(ctx, branches, m, x, h, *width, outputs, &mut dh, grads);
            Some(dh)
        }
        (Some(_), ..) => {
            return Err(Error::Internal("the input of an adapted linear was not kept".into()));
        }
    };
    let Some(dx) = dx else { return Ok(()) };
    let a = stacked.map(|(_, (a, width))| {
        let inputs = a.len() / width;
        (Packed::from_matrix(ctx.device, &a, width, inputs), width)
    });
    for (i, (linear, dy)) in outputs.iter().enumerate() {
        let extra = match (&inner_grad, &a) {
            (Some(dh), Some((a, width))) if i == 0 => Some((&dh[..], *width, a)),
            _ => None,
        };
        cpu::gemm(
            ctx.device,
            Gemm {
                m,
                x: dy.0,
                x_stride: dy.1,
                weight: linear.for_backward(ctx.device)?,
                extra,
                bias: None,
                accumulate: dx.accumulate || i > 0,
                out: &mut *dx.values,
                out_stride: dx.stride,
            },
        );
    }
    Ok(())
}

/// `dB`, `dh` and `dA` of the adapted linears of a group.
#[expect(clippy::too_many_arguments, reason = "the operands of three products")]
fn factor_gradients(
    ctx: Context<'_>,
    branches: &Branches<'_>,
    m: usize,
    x: Input<'_>,
    h: &[f32],
    width: usize,
    outputs: &[(&Linear, Input<'_>)],
    dh: &mut [f32],
    grads: &mut [f32],
) {
    let rank = branches.rank;
    let adapted: Vec<_> = outputs
        .iter()
        .filter_map(|(linear, dy)| {
            Some((*linear, *dy, branches.place(linear)?.clone(), branches.scaled_b(linear)?))
        })
        .collect();
    for (j, (linear, dy, (_, b_place), scaled_b)) in adapted.iter().enumerate() {
        let db = &mut grads[b_place.clone()];
        cpu::gemm_tn(
            ctx.device,
            GemmTn {
                m,
                p: linear.outputs,
                q: rank,
                a: dy.0,
                a_stride: dy.1,
                b: &h[j * rank..],
                b_stride: width,
                accumulate: false,
                out: db,
            },
        );
        cpu::scale(ctx.device, branches.scale, db);
        let b = Packed::from_matrix(ctx.device, scaled_b, linear.outputs, rank);
        cpu::gemm(
            ctx.device,
            Gemm {
                m,
                x: dy.0,
                x_stride: dy.1,
                weight: &b,
                extra: None,
                bias: None,
                accumulate: false,
                out: &mut dh[j * rank..],
                out_stride: width,
            },
        );
    }
    let Some(inputs) = adapted.first().map(|(l, ..)| l.inputs) else { return };
    let mut da = ctx.buffers.take(width * inputs);
    cpu::gemm_tn(
        ctx.device,
        GemmTn {
            m,
            p: width,
            q: inputs,
            a: dh,
            a_stride: width,
            b: x.0,
            b_stride: x.1,
            accumulate: false,
            out: &mut da,
        },
    );
    for (da, (_, _, (a_place, _), _)) in da.chunks_exact(rank * inputs).zip(&adapted) {
        grads[a_place.clone()].copy_from_slice(da);
    }
}
