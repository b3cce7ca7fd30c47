//! Frozen linears with low-rank branches, several of which may read the same input.
//!
//! ```text
//! y = x W^T + bias + f (x D^T) U^T + s h B^T        h = x A^T        s = alpha / rank
//!
//! M  rows    K  inputs    N  outputs    R  rank    J  adapted linears of a group
//! ```
//!
//! D and U are frozen as W is: the reference has them too. A and B are trained.
//!
//! Backward, given dy: `dB = s dy^T h`, `dh = s dy B`, `dA = dh^T x`, `dx = dy W + f (dy U) D + dh A`. A group of linears with
//! one input has its A matrices one below the other, so that `h` and `dA` are one product each, and `x` is read once.

use std::sync::Arc;

use super::{Branches, Buffer, Context, Frozen, FrozenBranch, Loading};
use crate::{
    backbone::LinearLayout,
    cpu::{self, Cpu, Extra, Gemm, GemmTn, Matrix, Packed},
    error::{Error, Result},
    files::TensorView,
    lora::FrozenFactors,
};

/// A frozen linear, with a branch if the frozen network has one there.
#[derive(Debug)]
pub struct Linear {
    /// Its number among the linears that an adapter may have factors for.
    index: Option<usize>,
    weight: Frozen,
    bias: Vec<f32>,
    branch: Option<FrozenBranch>,
}

impl Linear {
    /// From its weight and its bias; the frozen network may have a low-rank branch there, or factors that are merged into the
    /// weight.
    ///
    /// # Errors
    /// If one of them has another shape, or holds a value that is not finite (a streamed weight is searched by
    /// [`check`](Self::check)).
    pub fn new(
        device: &Cpu,
        (weight, bias): (TensorView, TensorView),
        layout: &LinearLayout,
        index: Option<usize>,
        branch: Option<FrozenBranch>,
        merged: Option<FrozenFactors>,
        loading: Loading,
    ) -> Result<Self> {
        let bias = bias.read_finite()?;
        if bias.len() != layout.outputs {
            return Err(Error::shape(format!("bias of `{}`", layout.name), layout.outputs, bias.len()));
        }
        let weight = Frozen::new(device, weight, (layout.outputs, layout.inputs), loading, merged)?;
        Ok(Self { index, weight, bias, branch })
    }

    /// Width of the output.
    pub fn outputs(&self) -> usize {
        self.weight.outputs()
    }

    /// Search the frozen values, if that was not done yet.
    ///
    /// # Errors
    /// If a value is not finite.
    pub fn check(&self) -> Result<()> {
        self.frozen().try_for_each(Frozen::check)
    }

    /// It is used soon: where weights are streamed, the system begins to read them.
    pub fn will_need(&self) {
        self.frozen().for_each(Frozen::will_need);
    }

    /// Its frozen matrices.
    fn frozen(&self) -> impl Iterator<Item = &Frozen> {
        let branch = self.branch.iter().flat_map(|branch| [&*branch.down, &branch.up]);
        std::iter::once(&self.weight).chain(branch)
    }

    pub(super) fn index(&self) -> Option<usize> {
        self.index
    }
}

/// Rows of activations: the values, and the distance between the starts of two rows.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(pub &'a [f32], pub usize);

/// A linear of a group, and where its result goes: the values, and the distance between the starts of two rows.
#[derive(Debug)]
pub struct Output<'a>(pub &'a Linear, pub &'a mut [f32], pub usize);

/// `out = x weight`, or `out += x weight`.
fn product(
    ctx: Context<'_>,
    m: usize,
    x: Input<'_>,
    weight: &Packed,
    accumulate: bool,
    (out, out_stride): (&mut [f32], usize),
) {
    let call =
        Gemm { m, x: x.0, x_stride: x.1, weight, extra: None, bias: None, accumulate, out, out_stride };
    cpu::gemm(ctx.device, call);
}

/// Apply linears to the same `m` rows. Returns `h [M, J R]` for the backward, if any of them is adapted.
pub fn linears(ctx: Context<'_>, m: usize, x: Input<'_>, outputs: &mut [Output<'_>]) -> Option<Buffer> {
    let stacked = ctx.branches.and_then(|b| b.stacked_a(outputs.iter().map(|o| o.0)));
    let inner = stacked.map(|(a, width)| {
        let mut h = ctx.buffers.take(m * width);
        let a = Packed::from_weight(ctx.device, ctx.precision, &Matrix::of(&a, width, a.len() / width));
        product(ctx, m, x, &a, false, (&mut h, width));
        a.give_back(ctx.device);
        (h, width)
    });
    let mut column = 0;
    // `f x D^T` of the last branch: linears that share D stand together.
    let mut frozen: Option<(Arc<Frozen>, Buffer)> = None;
    for Output(linear, out, out_stride) in outputs {
        let b = ctx.branches.and_then(|branches| branches.scaled_b(linear).map(|b| (b, branches.rank)));
        let b = b.map(|(b, rank)| {
            (Packed::from_weight(ctx.device, ctx.precision, &Matrix::of(&b, linear.outputs(), rank)), rank)
        });
        let trained = match (&inner, &b) {
            (Some((h, width)), Some((b, rank))) => {
                column += rank;
                Some((&h[column - rank..], *width, b))
            }
            _ => None,
        };
        linear.weight.forward(ctx.device, |weight| {
            let call = Gemm {
                m,
                x: x.0,
                x_stride: x.1,
                weight,
                extra: trained,
                bias: Some(&linear.bias),
                accumulate: false,
                out,
                out_stride: *out_stride,
            };
            cpu::gemm(ctx.device, call);
        });
        if let Some((b, _)) = b {
            b.give_back(ctx.device);
        }
        let Some(branch) = &linear.branch else { continue };
        let rank = branch.down.outputs();
        if !frozen.as_ref().is_some_and(|(down, _)| Arc::ptr_eq(down, &branch.down)) {
            let mut h = ctx.buffers.take(m * rank);
            branch.down.forward(ctx.device, |down| product(ctx, m, x, down, false, (&mut h, rank)));
            if branch.scale != 1.0 {
                cpu::scale(ctx.device, branch.scale, &mut h);
            }
            frozen = Some((Arc::clone(&branch.down), h));
        }
        if let Some((_, h)) = &frozen {
            branch.up.forward(ctx.device, |up| {
                product(ctx, m, Input(h, rank), up, true, (&mut **out, *out_stride));
            });
        }
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
/// If `x` or `h` is missing although a linear is adapted.
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
        let a = Matrix::of(&a, width, a.len() / width);
        (Packed::from_matrix(ctx.device, ctx.precision, &a), width)
    });
    let trained: Option<Extra<'_>> =
        inner_grad.as_ref().zip(a.as_ref()).map(|(dh, (a, width))| (&dh[..], *width, a));
    for (i, (linear, dy)) in outputs.iter().enumerate() {
        linear.weight.backward(ctx.device, |weight| {
            let call = Gemm {
                m,
                x: dy.0,
                x_stride: dy.1,
                weight,
                extra: trained.filter(|_| i == 0),
                bias: None,
                accumulate: dx.accumulate || i > 0,
                out: &mut *dx.values,
                out_stride: dx.stride,
            };
            cpu::gemm(ctx.device, call);
        });
    }
    if let Some((a, _)) = a {
        a.give_back(ctx.device);
    }
    for (down, t) in frozen_gradients(ctx, m, outputs) {
        let t = Input(&t, down.outputs());
        down.backward(ctx.device, |down| product(ctx, m, t, down, true, (&mut *dx.values, dx.stride)));
    }
    Ok(())
}

/// `f dy U` of the frozen branches of a group, summed where linears share their D.
fn frozen_gradients(
    ctx: Context<'_>,
    m: usize,
    outputs: &[(&Linear, Input<'_>)],
) -> Vec<(Arc<Frozen>, Buffer)> {
    let mut all: Vec<(&FrozenBranch, Buffer)> = Vec::new();
    for (linear, dy) in outputs {
        let Some(branch) = &linear.branch else { continue };
        let rank = branch.down.outputs();
        let known = all.iter().position(|(b, _)| Arc::ptr_eq(&b.down, &branch.down));
        let at = known.unwrap_or_else(|| {
            all.push((branch, ctx.buffers.take(m * rank)));
            all.len() - 1
        });
        let t = &mut all[at].1;
        branch.up.backward(ctx.device, |up| product(ctx, m, *dy, up, known.is_some(), (t, rank)));
    }
    // Linears that share D come from one branch, and so have one scale.
    all.into_iter()
        .map(|(branch, mut t)| {
            if branch.scale != 1.0 {
                cpu::scale(ctx.device, branch.scale, &mut t);
            }
            (Arc::clone(&branch.down), t)
        })
        .collect()
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
                p: linear.outputs(),
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
        let b = Packed::from_matrix(ctx.device, ctx.precision, &Matrix::of(scaled_b, linear.outputs(), rank));
        product(ctx, m, *dy, &b, false, (&mut dh[j * rank..], width));
        b.give_back(ctx.device);
    }
    let Some(inputs) = adapted.first().map(|(l, ..)| l.weight.inputs()) else { return };
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
