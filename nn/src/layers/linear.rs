//! Frozen linears with low-rank branches, several of which may read the same input.
//!
//! ```text
//! y = x W^T + bias + f (x D^T) U^T + s h B^T        h = x A^T        s = alpha / rank
//!
//! M  rows    K  inputs    N  outputs    R  rank    J  adapted linears of a group
//! ```
//!
//! D and U are frozen as W is: the reference has them too. A and B are trained. A linear that is trained whole has a matrix
//! `C [N, K]` in their place: `y = x W^T + bias + x C^T`, `dC = dy^T x`, `dx = dy W + dy C`.
//!
//! A group of linears with one input has its A matrices one below the other, so that `h` and, in the backward, `dA` are one product
//! each, and `x` is read once.

use std::sync::Arc;

use super::{Context, Frozen, FrozenBranch, Loading, vector};
use crate::{
    backbone::LinearLayout,
    device::{Device, Direction, Extra, Gemm, Kind, Left, Passing, Queue, View, ViewMut, WindowRows},
    error::Result,
    files::TensorView,
    lora::FrozenFactors,
};

/// A frozen linear, with a branch if the frozen network has one there.
#[derive(Debug)]
pub struct Linear<D: Device> {
    /// Its number among the linears that an adapter may have factors for.
    index: Option<usize>,
    weight: Frozen<D>,
    bias: Option<D::Buffer>,
    branch: Option<FrozenBranch<D>>,
}

impl<D: Device> Linear<D> {
    /// From its weight and its bias, if it has one; the frozen network may have a low-rank branch there, or factors that are merged into the
    /// weight.
    ///
    /// # Errors
    /// If one of them has another shape, or holds a value that is not finite (a streamed weight is searched by
    /// [`check`](Self::check)); if the device has no room.
    pub fn new(
        device: &D,
        (weight, bias): (TensorView, Option<TensorView>),
        layout: &LinearLayout,
        index: Option<usize>,
        branch: Option<FrozenBranch<D>>,
        merged: Option<FrozenFactors>,
        loading: Loading,
    ) -> Result<Self> {
        let weight = Frozen::new(device, weight, (layout.outputs, layout.inputs), loading, merged)?;
        Ok(Self { index, branch, ..Self::plain(device, weight, bias)? })
    }

    /// A frozen matrix and perhaps a bias, which no adapter has factors for.
    ///
    /// # Errors
    /// If the bias has another shape or holds a value that is not finite; if the device has no room.
    pub fn plain(device: &D, weight: Frozen<D>, bias: Option<TensorView>) -> Result<Self> {
        let (width, precision) = (weight.outputs(), weight.precision());
        let upload = |view: TensorView| vector(device, &view, width, Kind::Activation, precision);
        let bias = bias.map(upload).transpose()?;
        Ok(Self { index: None, weight, bias, branch: None })
    }

    /// Its result for `m` rows, without an adapter.
    ///
    /// # Errors
    /// If the device has no room for the weight.
    pub fn run(&self, queue: &D::Queue, m: usize, x: View<'_, D>) -> Result<D::Buffer> {
        let width = self.outputs();
        let mut out = queue.take(m * width, Kind::Activation);
        self.write(queue, m, x, ViewMut::new(&mut out, width))?;
        Ok(out)
    }

    /// The same into `out [M, N]`.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn write(&self, queue: &D::Queue, m: usize, x: View<'_, D>, out: ViewMut<'_, D>) -> Result<()> {
        linears(Context { queue, branches: None }, m, x, &mut [Output(self, out)]).map(drop)
    }

    /// The cotangent of its input from that of its result, without an adapter.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn backward(&self, queue: &D::Queue, m: usize, dy: View<'_, D>, dx: InputGrad<'_, D>) -> Result<()> {
        by_input(queue, m, &[(self, dy)], None, dx)
    }

    /// The same for a convolution whose backward is one, too: from the windows of `dy`, one for each of `m` pixels.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub(super) fn backward_of_windows(
        &self,
        queue: &D::Queue,
        m: usize,
        dy: WindowRows<'_, D>,
        dx: ViewMut<'_, D>,
    ) -> Result<()> {
        debug_assert!(self.is_turned(), "the weight is not packed for the windows of its results");
        self.weight.with(queue, Direction::Backward, |weight| {
            product(queue, m, Left::Windows(dy), (weight, Direction::Backward), false, dx);
        })
    }

    /// Width of the input.
    pub fn inputs(&self) -> usize {
        self.weight.inputs()
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

    /// Its matrices as a device brings them ahead of their use, where they are streamed.
    pub fn passing(&self) -> impl Iterator<Item = Passing<'_>> {
        self.frozen().filter_map(Frozen::passing)
    }

    /// It is used soon: where weights are streamed, the system begins to read them.
    pub fn will_need(&self) {
        self.frozen().for_each(Frozen::will_need);
    }

    /// Its frozen matrices.
    fn frozen(&self) -> impl Iterator<Item = &Frozen<D>> {
        let branch = self.branch.iter().flat_map(|branch| [&*branch.down, &branch.up]);
        std::iter::once(&self.weight).chain(branch)
    }

    /// The same as the linear of this number among those that an adapter may have factors for.
    pub(super) fn numbered(self, index: usize) -> Self {
        Self { index: Some(index), ..self }
    }

    /// Pixels of a window, where it is a convolution's product.
    pub(super) fn taps(&self) -> usize {
        self.weight.taps()
    }

    /// Is its backward a product with the windows of the cotangent?
    pub(super) fn is_turned(&self) -> bool {
        self.weight.is_turned()
    }

    pub(super) fn index(&self) -> Option<usize> {
        self.index
    }
}

/// A linear of a group, and where its result goes.
#[derive(Debug)]
pub struct Output<'a, D: Device>(pub &'a Linear<D>, pub ViewMut<'a, D>);

/// `out = x weight`, or `out += x weight`.
pub(super) fn product<'a, D: Device>(
    queue: &D::Queue,
    m: usize,
    x: impl Into<Left<'a, D>>,
    (weight, direction): (&D::Matrix, Direction),
    accumulate: bool,
    out: ViewMut<'_, D>,
) {
    let x = x.into();
    queue.gemm(Gemm { m, x, weight, direction, extra: None, bias: None, accumulate, out });
}

/// Apply linears to the same `m` rows. Returns `h [M, J R]` for the backward, if any of them is adapted.
///
/// # Errors
/// If the device has no room for a weight.
pub fn linears<'a, D: Device>(
    ctx: Context<'_, D>,
    m: usize,
    x: impl Into<Left<'a, D>>,
    outputs: &mut [Output<'_, D>],
) -> Result<Option<D::Buffer>> {
    linears_by(ctx, m, x.into(), outputs, D::Queue::gemm)
}

/// The same where each row is a sample of the batch.
///
/// # Errors
/// As [`linears`].
pub fn linears_of_samples<D: Device>(
    ctx: Context<'_, D>,
    m: usize,
    x: View<'_, D>,
    outputs: &mut [Output<'_, D>],
) -> Result<Option<D::Buffer>> {
    linears_by(ctx, m, x.into(), outputs, D::Queue::gemm_of_samples)
}

fn linears_by<D: Device>(
    ctx: Context<'_, D>,
    m: usize,
    x: Left<'_, D>,
    outputs: &mut [Output<'_, D>],
    gemm: impl Fn(&D::Queue, Gemm<'_, D>),
) -> Result<Option<D::Buffer>> {
    let queue = ctx.queue;
    let inner = inner_values(ctx, m, x, outputs.iter().map(|o| o.0));
    let mut column = 0;
    // `f x D^T` of the last branch: linears that share D stand together.
    let mut frozen: Option<(Arc<Frozen<D>>, D::Buffer)> = None;
    for Output(linear, out) in outputs {
        let b = ctx.branches.and_then(|branches| {
            branches.scaled_b(queue, linear, Direction::Forward).map(|b| (b, branches.rank))
        });
        let whole = ctx.branches.and_then(|branches| branches.whole(queue, linear, Direction::Forward));
        let trained = match (&inner, &b) {
            (Some((h, width)), Some((b, rank))) => {
                let x = View::new(h, *width).skip(column).into();
                column += rank;
                Some(Extra { x, weight: &**b, direction: Direction::Forward })
            }
            _ => whole.as_ref().map(|weight| Extra { x, weight: &**weight, direction: Direction::Forward }),
        };
        linear.weight.with(queue, Direction::Forward, |weight| {
            let call = Gemm {
                m,
                x,
                weight,
                direction: Direction::Forward,
                extra: trained,
                bias: linear.bias.as_ref(),
                accumulate: false,
                out: out.again(),
            };
            gemm(queue, call);
        })?;
        let Some(branch) = &linear.branch else { continue };
        let rank = branch.down.outputs();
        if !frozen.as_ref().is_some_and(|(down, _)| Arc::ptr_eq(down, &branch.down)) {
            let mut h = queue.take(m * rank, Kind::Activation);
            branch.down.with(queue, Direction::Forward, |down| {
                product(queue, m, x, (down, Direction::Forward), false, ViewMut::new(&mut h, rank));
            })?;
            if branch.scale != 1.0 {
                queue.scale(branch.scale, ViewMut::new(&mut h, rank), m * rank);
            }
            frozen = Some((Arc::clone(&branch.down), h));
        }
        if let Some((_, h)) = &frozen {
            branch.up.with(queue, Direction::Forward, |up| {
                product(queue, m, View::new(h, rank), (up, Direction::Forward), true, out.again());
            })?;
        }
    }
    Ok(inner.map(|(h, _)| h))
}

/// `h [M, J R]` of [`linears`], where nobody needs their results.
pub fn inner<'a, D: Device, const N: usize>(
    ctx: Context<'_, D>,
    m: usize,
    x: impl Into<Left<'a, D>>,
    linears: [&Linear<D>; N],
) -> Option<D::Buffer> {
    inner_values(ctx, m, x.into(), linears.into_iter()).map(|(h, _)| h)
}

/// `h [M, J R]` and its width.
fn inner_values<'l, D: Device>(
    ctx: Context<'_, D>,
    m: usize,
    x: Left<'_, D>,
    linears: impl Iterator<Item = &'l Linear<D>>,
) -> Option<(D::Buffer, usize)> {
    let queue = ctx.queue;
    let (a, width) = ctx.branches?.stacked_a(queue, linears, Direction::Forward)?;
    let mut h = queue.take(m * width, Kind::Activation);
    product(queue, m, x, (&a, Direction::Forward), false, ViewMut::new(&mut h, width));
    Some((h, width))
}

/// Where the derivative by the input goes.
#[derive(Debug)]
pub struct InputGrad<'a, D: Device> {
    /// The values.
    pub values: ViewMut<'a, D>,
    /// Add to what is there?
    pub accumulate: bool,
}

impl<D: Device> InputGrad<'_, D> {
    /// The same for a shorter time.
    pub(super) fn again(&mut self) -> InputGrad<'_, D> {
        InputGrad { values: self.values.again(), accumulate: self.accumulate }
    }
}

/// `dx` of a group of linears; `trained` is the adapter's part of it.
pub(super) fn by_input<D: Device>(
    queue: &D::Queue,
    m: usize,
    outputs: &[(&Linear<D>, View<'_, D>)],
    trained: Option<Extra<'_, D>>,
    InputGrad { values: mut dx, accumulate }: InputGrad<'_, D>,
) -> Result<()> {
    for (i, (linear, dy)) in outputs.iter().enumerate() {
        linear.weight.with(queue, Direction::Backward, |weight| {
            queue.gemm(Gemm {
                m,
                x: (*dy).into(),
                weight,
                direction: Direction::Backward,
                extra: trained.filter(|_| i == 0),
                bias: None,
                accumulate: accumulate || i > 0,
                out: dx.again(),
            });
        })?;
    }
    for (down, t) in frozen_gradients(queue, m, outputs)? {
        let t = View::new(&t, down.outputs());
        down.with(queue, Direction::Backward, |down| {
            product(queue, m, t, (down, Direction::Backward), true, dx.again())
        })?;
    }
    Ok(())
}

/// Cotangents `[M, R]` of inner values, each with the matrix D that made them.
type InnerCotangents<D> = Vec<(Arc<Frozen<D>>, <D as Device>::Buffer)>;

/// `f dy U` of the frozen branches of a group, summed where linears share their D.
fn frozen_gradients<D: Device>(
    queue: &D::Queue,
    m: usize,
    outputs: &[(&Linear<D>, View<'_, D>)],
) -> Result<InnerCotangents<D>> {
    let mut all: Vec<(&FrozenBranch<D>, D::Buffer)> = Vec::new();
    for (linear, dy) in outputs {
        let Some(branch) = &linear.branch else { continue };
        let rank = branch.down.outputs();
        let known = all.iter().position(|(b, _)| Arc::ptr_eq(&b.down, &branch.down));
        let at = known.unwrap_or_else(|| {
            all.push((branch, queue.take(m * rank, Kind::Activation)));
            all.len() - 1
        });
        let t = &mut all[at].1;
        branch.up.with(queue, Direction::Backward, |up| {
            product(queue, m, *dy, (up, Direction::Backward), known.is_some(), ViewMut::new(t, rank));
        })?;
    }
    // Linears that share D come from one branch, and so have one scale.
    Ok(all
        .into_iter()
        .map(|(branch, mut t)| {
            if branch.scale != 1.0 {
                let rank = branch.down.outputs();
                queue.scale(branch.scale, ViewMut::new(&mut t, rank), m * rank);
            }
            (Arc::clone(&branch.down), t)
        })
        .collect())
}
