//! Conversions between the tensors of ports and plain values.
//!
//! Shape letters: `B` batch, `C` channels, `H` `W` latent grid, `h` `w` focus grid.

use std::marker::PhantomData;

use dfdx::{
    shapes::{Const, HasShape},
    tensor::TensorFromVec,
};
use prefgraph_nn as nn;

use crate::{
    operator::{Ctx, OpError},
    port::T,
    ports::{Latents, Mask},
    row_major::RowMajor,
    shape::{Axes, Axis},
};

/// The axes that an operator's type may fix.
pub(crate) type Fixed<C, H, W> = PhantomData<fn() -> (C, H, W)>;

/// A port tensor of these axes.
pub(crate) fn tensor<S: Axes>(ctx: &Ctx<'_>, shape: S, values: Vec<f32>) -> Result<T<S>, OpError> {
    Ok(ctx.host.try_tensor_from_vec(values, shape)?)
}

/// A mask `[B, 1, h, w]`.
pub(crate) fn mask<H: Axis, W: Axis>(
    ctx: &Ctx<'_>,
    (batch, height, width): (usize, H, W),
    values: Vec<f32>,
) -> Result<Mask<H, W>, OpError> {
    tensor(ctx, (batch, Const::<1>, height, width), values)
}

/// The extents of a tensor's axes.
pub(crate) fn dims<S: Axes>(tensor: &T<S>) -> Vec<usize> {
    HasShape::shape(tensor).concrete().into()
}

/// Latents with all axes at run time, as the networks take them.
pub(crate) fn latents_to_nn<C: Axis, H: Axis, W: Axis>(
    ctx: &Ctx<'_>,
    latents: &Latents<C, H, W>,
) -> Result<nn::Tensor<(usize, usize, usize, usize)>, OpError> {
    let &(b, c, h, w) = HasShape::shape(latents);
    Ok(nn::Tensor::filled(ctx.cpu, (b, c.size(), h.size(), w.size()), |to| latents.copy_row_major(to)))
}

/// Values written once by `write` and repeated behind: conditions of a pair, for its winner and its loser.
pub(crate) fn repeat(to: &mut [f32], times: usize, write: impl FnOnce(&mut [f32])) {
    let len = to.len() / times;
    write(&mut to[..len]);
    for copy in 1..times {
        to.copy_within(..len, copy * len);
    }
}

/// `found` must be `expected`; the message names both.
pub(crate) fn same<A: PartialEq + std::fmt::Debug>(
    what: &str,
    found: A,
    expected_by: &str,
    expected: A,
) -> Result<(), OpError> {
    if found == expected {
        return Ok(());
    }
    Err(OpError::new(format!("{what} is {found:?}, but {expected_by} is {expected:?}: they must be equal")))
}
