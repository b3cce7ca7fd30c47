//! The backward of linears that read one input.
//!
//! ```text
//! dB = s dy^T h    dh = s dy B    dA = dh^T x        dx = dy W + f (dy U) D + dh A
//! ```
//!
//! The adapter's half reads the forward's input `x`, the input's half does not: whoever has room to gain drops `x` in between.
//!
//! `M` rows, `R` rank, `J` adapted linears of a group.

use super::{
    Branches, Context, Linear,
    linear::{InputGrad, by_input, product},
};
use crate::{
    device::{Device, Direction, Extra, GemmTn, Kind, Queue, View, ViewMut},
    error::{Error, Result},
};

/// Backward of [`linears`](super::linears): each linear with its `dy`. `x` and `h` are read only where a linear is adapted.
/// `grads` is the derivative by all values of the adapter; those of these linears are overwritten.
///
/// # Errors
/// If `x` or `h` is missing although a linear is adapted; if the device has no room for a weight.
pub fn linears_backward<D: Device>(
    ctx: Context<'_, D>,
    m: usize,
    x: Option<View<'_, D>>,
    inner: Option<&D::Buffer>,
    outputs: &[(&Linear<D>, View<'_, D>)],
    dx: Option<InputGrad<'_, D>>,
    grads: &mut D::Buffer,
) -> Result<()> {
    let inner_grad = adapter_backward(ctx, m, x, inner, outputs, grads)?;
    dx.map_or(Ok(()), |dx| input_backward(ctx, m, inner_grad, outputs, dx))
}

/// `dh [M, J R]`, where linears of a group have factors.
#[derive(Debug)]
pub struct InnerGrad<D: Device>(Option<D::Buffer>);

/// The adapter's half of [`linears_backward`].
///
/// # Errors
/// As there.
pub fn adapter_backward<D: Device>(
    ctx: Context<'_, D>,
    m: usize,
    x: Option<View<'_, D>>,
    inner: Option<&D::Buffer>,
    outputs: &[(&Linear<D>, View<'_, D>)],
    grads: &mut D::Buffer,
) -> Result<InnerGrad<D>> {
    let queue = ctx.queue;
    let missing = || Error::Internal("the input of an adapted linear was not kept".into());
    let Some(branches) = ctx.branches.filter(|b| outputs.iter().any(|(linear, _)| b.adapts(linear))) else {
        return Ok(InnerGrad(None));
    };
    let x = x.ok_or_else(missing)?;
    for (linear, dy) in outputs {
        let Some(place) = branches.whole_place(linear) else { continue };
        let (p, q) = (linear.outputs(), linear.inputs());
        let out = ViewMut::new(grads, q).skip(place.start);
        queue.gemm_tn(GemmTn { m, p, q, a: *dy, b: x, scale: 1.0, out });
    }
    if !outputs.iter().any(|(linear, _)| branches.place(linear).is_some()) {
        return Ok(InnerGrad(None));
    }
    let h = inner.ok_or_else(missing)?;
    Ok(InnerGrad(Some(factor_gradients(queue, branches, m, x, h, outputs, grads))))
}

/// The input's half of [`linears_backward`], with what the adapter's half gave.
///
/// # Errors
/// If the device has no room for a weight.
pub fn input_backward<D: Device>(
    ctx: Context<'_, D>,
    m: usize,
    InnerGrad(inner_grad): InnerGrad<D>,
    outputs: &[(&Linear<D>, View<'_, D>)],
    mut dx: InputGrad<'_, D>,
) -> Result<()> {
    let queue = ctx.queue;
    let linears = outputs.iter().map(|(linear, _)| *linear);
    let a = ctx.branches.and_then(|b| b.stacked_a(queue, linears, Direction::Backward));
    let trained = inner_grad.as_ref().zip(a.as_ref()).map(|(dh, (a, width))| Extra {
        x: View::new(dh, *width).into(),
        weight: &**a,
        direction: Direction::Backward,
    });
    by_input(queue, m, outputs, trained, dx.again())?;
    for (linear, dy) in outputs {
        let whole = ctx.branches.and_then(|b| b.whole(queue, linear, Direction::Backward));
        if let Some(whole) = whole {
            product(queue, m, *dy, (&whole, Direction::Backward), true, dx.values.again());
        }
    }
    Ok(())
}

/// `dB` and `dA` of the adapted linears of a group; returns `dh [M, J R]`.
fn factor_gradients<D: Device>(
    queue: &D::Queue,
    branches: &Branches<D>,
    m: usize,
    x: View<'_, D>,
    h: &D::Buffer,
    outputs: &[(&Linear<D>, View<'_, D>)],
    grads: &mut D::Buffer,
) -> D::Buffer {
    let rank = branches.rank;
    let adapted: Vec<_> = outputs
        .iter()
        .filter_map(|(linear, dy)| Some((*linear, *dy, branches.place(linear)?.clone())))
        .collect();
    let width = adapted.len() * rank;
    let mut dh = queue.take(m * width, Kind::Activation);
    for (j, (linear, dy, (_, b_place))) in adapted.iter().enumerate() {
        let (p, q) = (linear.outputs(), rank);
        let b = View::new(h, width).skip(j * rank);
        let out = ViewMut::new(grads, q).skip(b_place.start);
        queue.gemm_tn(GemmTn { m, p, q, a: *dy, b, scale: branches.scale, out });
        if let Some(b) = branches.scaled_b(queue, linear, Direction::Backward) {
            let to = ViewMut::new(&mut dh, width).skip(j * rank);
            product(queue, m, *dy, (&b, Direction::Backward), false, to);
        }
    }
    let inputs = adapted.first().map_or(0, |(linear, ..)| linear.inputs());
    let a = View::new(&dh, width);
    let a_gradients = |out: ViewMut<'_, D>| {
        queue.gemm_tn(GemmTn { m, p: width, q: inputs, a, b: x, scale: 1.0, out });
    };
    if let [(_, _, (a_place, _))] = &adapted[..] {
        a_gradients(ViewMut::new(grads, inputs).skip(a_place.start));
        return dh;
    }
    let mut da = queue.take(width * inputs, Kind::Exact);
    a_gradients(ViewMut::new(&mut da, inputs));
    for (j, (_, _, (a_place, _))) in adapted.iter().enumerate() {
        let from = View::new(&da, inputs).skip(j * rank * inputs);
        queue.copy_to(from, rank * inputs, ViewMut::new(grads, inputs).skip(a_place.start));
    }
    dh
}
