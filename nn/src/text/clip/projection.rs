//! The matrix behind the token that ends a text.
//!
//! `M` rows, `E` width, `P` width of the projection.

use crate::{
    device::{Device, Direction, Gemm, Kind, Queue, View, ViewMut},
    encoders::weights::LOADING,
    error::Result,
    files::TensorView,
    layers::Frozen,
};

/// `y = x W^T` for `W [P, E]`, or `y = x W` for `W [E, P]`, as OpenCLIP's files have it.
#[derive(Debug)]
pub(super) struct Projection<D: Device> {
    matrix: Frozen<D>,
    direction: Direction,
    outputs: usize,
}

impl<D: Device> Projection<D> {
    pub fn new(
        device: &D,
        matrix: TensorView,
        (inputs, outputs): (usize, usize),
        transposed: bool,
    ) -> Result<Self> {
        let (shape, direction) = match transposed {
            false => ((outputs, inputs), Direction::Forward),
            true => ((inputs, outputs), Direction::Backward),
        };
        Ok(Self { matrix: Frozen::new(device, matrix, shape, LOADING, None)?, direction, outputs })
    }

    /// `[M, P]` of `x [M, E]`.
    pub fn run(&self, queue: &D::Queue, m: usize, x: View<'_, D>) -> Result<D::Buffer> {
        let mut out = queue.take(m * self.outputs, Kind::Activation);
        self.matrix.with(queue, self.direction, |weight| {
            queue.gemm(Gemm {
                m,
                x: x.into(),
                weight,
                direction: self.direction,
                extra: None,
                bias: None,
                accumulate: false,
                out: ViewMut::new(&mut out, self.outputs),
            });
        })?;
        Ok(out)
    }
}
