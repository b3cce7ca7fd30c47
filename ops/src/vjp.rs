//! Tracing for operators written as dfdx expressions.
//!
//! dfdx differentiates scalars only. The vector-Jacobian product of `y = f(x)` with `g` is the gradient of the
//! scalar `<y, g>`, so one product and one sum on top of `f` give any of them. `f` runs again in backward: what is
//! kept between the passes is then plain tensors, which are `Send` (a dfdx tape is not).

use dfdx::{
    shapes::HasShape,
    tensor::{Cpu, Gradients, OwnedTape, Tensor, TensorFromVec, Trace, ZerosTensor},
};

use crate::{
    port::{Port, T},
    ports::Timesteps,
    role::{As, Role},
    row_major::RowMajor,
    shape::Axes,
    tensor::host,
};

/// A tensor that records what is done with it.
pub type Traced<S> = Tensor<S, f32, Cpu, OwnedTape<f32, Cpu>>;

/// A port that a closure can take as a traced tensor.
pub trait Traceable: Port {
    /// What the closure gets.
    type Traced;
    /// What the gradient is looked up by.
    type Leaf;

    /// A traced copy with an identity of its own: dfdx keys gradients by identity, and without this the two inputs
    /// of `f(x, x)` would each be given the sum of both gradients.
    fn trace(&self) -> (Self::Traced, Self::Leaf);
    /// The gradient that reached the leaf; `None` where the port is discrete.
    fn gradient(leaf: &Self::Leaf, gradients: &mut Gradients<f32, Cpu>) -> Option<Self::Grad>;
    /// Zeros of this shape, to find out which shape a closure gives.
    fn dummy(shape: &Self::Shape) -> Self;
}

impl<S: Axes> Traceable for T<S> {
    type Traced = Traced<S>;
    type Leaf = T<S>;

    fn trace(&self) -> (Traced<S>, T<S>) {
        let leaf = self.device().tensor_from_vec(self.row_major(), *HasShape::shape(self));
        (leaf.leaky_trace(), leaf)
    }
    fn gradient(leaf: &T<S>, gradients: &mut Gradients<f32, Cpu>) -> Option<T<S>> {
        // A leaf that the result does not depend on has no entry: its gradient is zero.
        gradients.get_or_alloc_mut(leaf).ok()?;
        Some(gradients.get(leaf))
    }
    fn dummy(shape: &S) -> Self {
        host().zeros_like(shape)
    }
}

/// A closure gets the tensor: what it computes with is no role.
impl<R: Role, P: Traceable> Traceable for As<R, P> {
    type Traced = P::Traced;
    type Leaf = P::Leaf;

    fn trace(&self) -> (Self::Traced, Self::Leaf) {
        self.1.trace()
    }
    fn gradient(leaf: &Self::Leaf, gradients: &mut Gradients<f32, Cpu>) -> Option<Self::Grad> {
        P::gradient(leaf, gradients)
    }
    fn dummy(shape: &Self::Shape) -> Self {
        P::dummy(shape).into()
    }
}

impl Traceable for Timesteps {
    type Traced = Traced<(usize,)>;
    type Leaf = ();

    fn trace(&self) -> (Self::Traced, ()) {
        let n = self.values.len();
        (host().tensor_from_vec(self.values.to_vec(), (n,)).leaky_trace(), ())
    }
    fn gradient((): &(), _: &mut Gradients<f32, Cpu>) -> Option<Self::Grad> {
        None
    }
    fn dummy(shape: &Self::Shape) -> Self {
        Timesteps::new(shape.process, vec![0.5; shape.batch])
    }
}
