//! The parts that both kinds of blocks share: modulation, normed rows, attention operands.
//!
//! `N` batch, `S` tokens of the joint sequence, `D` width, `H` heads, `M = N S` rows.

use super::{
    rope::RotaryTables,
    sequence::{Segment, Sequence, Span},
};
use crate::{
    device::{
        self, AttentionShape, Device, GateGrad, HeadLayout, Kind, ModulationGrad, NormModulate,
        NormModulateBackward, NormRotary, Queue, Scores, SplitHeads, SplitHeadsBackward, View, ViewMut,
    },
    error::{Error, Result},
    layers::{Branches, Context, Linear, Output, linears_backward, linears_of_samples},
    models::checkpointing::Keep,
};

/// What every function of a pass needs to know.
pub(super) struct Pass<'a, D: Device> {
    pub ctx: Context<'a, D>,
    pub sequence: &'a Sequence,
    pub rotary: &'a RotaryTables<D>,
    /// `D`.
    pub width: usize,
    /// `H`.
    pub heads: usize,
    /// `silu(temb)`, `[N, D]`.
    pub condition: &'a D::Buffer,
    /// What is kept for a backward.
    pub keep: Keep,
}

impl<D: Device> Clone for Pass<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for Pass<'_, D> {}

impl<'a, D: Device> Pass<'a, D> {
    /// The same with other factors of the adapter, if there are any.
    pub fn with_branches(self, branches: Option<&'a Branches<D>>) -> Self {
        let ctx = Context { branches: branches.or(self.ctx.branches), ..self.ctx };
        Self { ctx, ..self }
    }

    /// The rows of a span among all rows, `[M, D]`.
    pub fn rows_of<'b>(&self, span: &Span, all: &'b D::Buffer) -> View<'b, D> {
        View::new(all, self.width).skip(self.sequence.span_rows(span.clone()).start * self.width)
    }

    /// The same, to be written.
    pub fn rows_of_mut<'b>(&self, span: &Span, all: &'b mut D::Buffer) -> ViewMut<'b, D> {
        ViewMut::new(all, self.width).skip(self.sequence.span_rows(span.clone()).start * self.width)
    }

    /// Does a backward read again what this linear reads, and is that kept?
    pub fn keeps_input_of(&self, linear: &Linear<D>) -> bool {
        self.keep == Keep::All && self.ctx.adapts(linear)
    }

    /// Working memory for this many activations.
    pub fn take(&self, len: usize) -> D::Buffer {
        self.ctx.queue.take(len, Kind::Activation)
    }
}

/// Shifts, scales and gates of a block: `[N, chunks D]`.
pub(super) struct Modulation<D: Device> {
    values: D::Buffer,
    stride: usize,
    width: usize,
    inner: Option<D::Buffer>,
}

impl<D: Device> Modulation<D> {
    pub fn new(pass: Pass<'_, D>, linear: &Linear<D>) -> Result<Self> {
        let (batch, stride) = (pass.sequence.batch, linear.outputs());
        let mut values = pass.take(batch * stride);
        let inner = linears_of_samples(
            pass.ctx,
            batch,
            View::new(pass.condition, pass.width),
            &mut [Output(linear, ViewMut::new(&mut values, stride))],
        )?;
        Ok(Self { values, stride, width: pass.width, inner })
    }

    /// The rows of a chunk.
    pub fn chunk(&self, chunk: usize) -> View<'_, D> {
        View::new(&self.values, self.stride).skip(chunk * self.width)
    }

    /// Derivative by the factors of the modulation's linear, given that by shifts, scales and gates.
    pub fn backward(
        &self,
        pass: Pass<'_, D>,
        linear: &Linear<D>,
        sums: &ModulationSums<D>,
        grads: &mut D::Buffer,
    ) -> Result<()> {
        linears_backward(
            pass.ctx,
            pass.sequence.batch,
            Some(View::new(pass.condition, pass.width)),
            self.inner.as_ref(),
            &[(linear, View::new(&sums.values, self.stride))],
            None,
            grads,
        )
    }
}

/// The derivative by a [`Modulation`], where its linear is adapted: sums over the segments it is used for.
pub(super) struct ModulationSums<D: Device> {
    values: D::Buffer,
    stride: usize,
}

impl<D: Device> ModulationSums<D> {
    pub fn new(pass: Pass<'_, D>, linear: &Linear<D>) -> Option<Self> {
        pass.ctx.adapts(linear).then(|| Self {
            values: pass.ctx.queue.zeros(pass.sequence.batch * linear.outputs(), Kind::Exact),
            stride: linear.outputs(),
        })
    }

    /// Add `part [N, D]` to a chunk.
    fn add(&mut self, pass: Pass<'_, D>, chunk: usize, part: &D::Buffer) {
        for sample in 0..pass.sequence.batch {
            let from = View::new(part, pass.width).skip(sample * pass.width);
            let to = ViewMut::new(&mut self.values, self.stride);
            let to = to.skip(sample * self.stride + chunk * pass.width);
            pass.ctx.queue.add_scaled(1.0, from, to, pass.width);
        }
    }
}

/// Rows after the layer norm and the modulation, with what its backward needs beside its input.
pub(super) struct Normed<D: Device> {
    /// Rows of the span, `[rows, D]`.
    pub values: D::Buffer,
    pub moments: RowMoments<D>,
}

/// Mean and reciprocal deviation of each row of a span.
pub(super) struct RowMoments<D: Device> {
    mean: D::Buffer,
    reciprocal: D::Buffer,
}

/// `norm(x) (1 + scale) + shift` of the rows of a span; `x` starts at the span's first row. `chunks` are those of
/// shift and scale.
pub(super) fn normed<D: Device>(
    pass: Pass<'_, D>,
    span: Span,
    x: View<'_, D>,
    modulation: &Modulation<D>,
    (shift, scale): (usize, usize),
) -> Normed<D> {
    let rows = pass.sequence.span_rows(span.clone());
    let queue = pass.ctx.queue;
    let mut values = pass.take(rows.len() * pass.width);
    let exact = || queue.take(rows.len(), Kind::Exact);
    let mut moments = RowMoments { mean: exact(), reciprocal: exact() };
    queue.norm_modulate(NormModulate {
        rows: &pass.sequence.shapes(span, pass.width),
        x,
        shift: modulation.chunk(shift),
        scale: modulation.chunk(scale),
        y: ViewMut::new(&mut values, pass.width),
        mean: ViewMut::new(&mut moments.mean, 1),
        reciprocal: ViewMut::new(&mut moments.reciprocal, 1),
    });
    Normed { values, moments }
}

/// Backward of [`normed`] for one span: `dx` is added to in the segments of `carried`, and overwritten in others.
/// All views start at the span's first row.
#[expect(clippy::too_many_arguments, reason = "the operands of one layer")]
pub(super) fn normed_backward<D: Device>(
    pass: Pass<'_, D>,
    span: Span,
    carried: Span,
    x: View<'_, D>,
    moments: &RowMoments<D>,
    modulation: &Modulation<D>,
    (shift, scale): (usize, usize),
    dy: View<'_, D>,
    mut dx: ViewMut<'_, D>,
    mut sums: Option<&mut ModulationSums<D>>,
) {
    let start = pass.sequence.span_rows(span.clone()).start;
    let queue = pass.ctx.queue;
    let part = || queue.take(pass.sequence.batch * pass.width, Kind::Exact);
    // Sums over tokens are those of a segment.
    for (segments, accumulate) in pass.sequence.runs(span, sums.is_some(), &carried) {
        let first = pass.sequence.span_rows(segments.clone()).start;
        let (row, at) = (first - start, (first - start) * pass.width);
        let mut parts = sums.is_some().then(|| (part(), part()));
        queue.norm_modulate_backward(NormModulateBackward {
            rows: &pass.sequence.shapes(segments, pass.width),
            x: x.skip(at),
            mean: View::new(&moments.mean, 1).skip(row),
            reciprocal: View::new(&moments.reciprocal, 1).skip(row),
            scale: modulation.chunk(scale),
            dy: dy.skip(at),
            dx: dx.again().skip(at),
            accumulate,
            modulation: parts.as_mut().map(|(d_shift, d_scale)| ModulationGrad {
                d_shift: ViewMut::new(d_shift, pass.width),
                d_scale: ViewMut::new(d_scale, pass.width),
            }),
        });
        if let (Some(sums), Some((d_shift, d_scale))) = (&mut sums, &parts) {
            sums.add(pass, shift, d_shift);
            sums.add(pass, scale, d_scale);
        }
    }
}

/// `y` becomes `x + gate y` in the rows of a span; both start at its first row.
pub(super) fn gated_add<D: Device>(
    pass: Pass<'_, D>,
    span: Span,
    x: View<'_, D>,
    modulation: &Modulation<D>,
    gate: usize,
    y: ViewMut<'_, D>,
) {
    let rows = pass.sequence.shapes(span, pass.width);
    pass.ctx.queue.gated_add(&rows, x, modulation.chunk(gate), y);
}

/// Backward of [`gated_add`]: `dy`, and with sums the gate's own derivative, for which `y` must have been kept.
///
/// # Errors
/// If there are sums and `y` was not kept.
pub(super) fn gated_add_backward<D: Device>(
    pass: Pass<'_, D>,
    span: Span,
    dx: View<'_, D>,
    modulation: &Modulation<D>,
    gate: usize,
    y: Option<&D::Buffer>,
    sums: Option<&mut ModulationSums<D>>,
) -> Result<D::Buffer> {
    let mut gated = match (sums, y) {
        (None, _) => None,
        (Some(sums), Some(y)) => Some((sums, y)),
        (Some(_), None) => {
            return Err(Error::Internal("the result before an adapted gate was not kept".into()));
        }
    };
    let rows = pass.sequence.span_rows(span.clone());
    let queue = pass.ctx.queue;
    let mut dy = pass.take(rows.len() * pass.width);
    for (segments, _) in pass.sequence.runs(span.clone(), gated.is_some(), &span) {
        let at = (pass.sequence.span_rows(segments.clone()).start - rows.start) * pass.width;
        let mut part = gated.is_some().then(|| queue.take(pass.sequence.batch * pass.width, Kind::Exact));
        let y = gated.as_ref().map(|(_, y)| View::new(*y, pass.width).skip(at));
        let gate_grad =
            part.as_mut().zip(y).map(|(part, y)| GateGrad { y, d_gate: ViewMut::new(part, pass.width) });
        queue.gated_add_backward(
            &pass.sequence.shapes(segments, pass.width),
            dx.skip(at),
            modulation.chunk(gate),
            ViewMut::new(&mut dy, pass.width).skip(at),
            gate_grad,
        );
        if let (Some((sums, _)), Some(part)) = (&mut gated, &part) {
            sums.add(pass, gate, part);
        }
    }
    Ok(dy)
}

/// Queries, keys and values in the order of attention, `[N, H, S, D / H]`.
pub(super) struct Heads<D: Device> {
    pub q: D::Buffer,
    pub k: D::Buffer,
    pub v: D::Buffer,
}

impl<D: Device> Heads<D> {
    pub fn take(pass: Pass<'_, D>) -> Self {
        let take = || pass.take(pass.sequence.rows() * pass.width);
        Self { q: take(), k: take(), v: take() }
    }

    /// With values that were kept.
    pub fn with_values(pass: Pass<'_, D>, v: D::Buffer) -> Self {
        let take = || pass.take(pass.sequence.rows() * pass.width);
        Self { q: take(), k: take(), v }
    }
}

/// Rows of a span, `[rows, D]`, on their way to `[N, H, S, D / H]`; with the weight of an RMS norm they are also normed and turned.
pub(super) struct Projection<'a, D: Device> {
    pub span: Span,
    pub rows: &'a D::Buffer,
    pub weight: Option<&'a D::Buffer>,
    pub heads: &'a mut D::Buffer,
}

/// Projections to their places among the heads: neighbours of one span go together.
pub(super) fn split_heads<D: Device, const N: usize>(pass: Pass<'_, D>, projections: [Projection<'_, D>; N]) {
    let operands = projections.map(|Projection { span, rows, weight, heads }| {
        let norm = weight.map(|weight| norm_rotary(pass, weight));
        (span, SplitHeads { x: View::new(rows, pass.width), norm, out: heads })
    });
    for (span, mut operands) in of_one_span(operands) {
        pass.ctx.queue.split_heads(&head_layouts(pass, span), &mut operands);
    }
}

/// The cotangent of heads on its way back to rows of a span, which are overwritten; `x` are the projection's rows before their norm, with
/// its weight.
pub(super) struct ProjectionGrad<'a, D: Device> {
    pub span: Span,
    pub d_heads: &'a D::Buffer,
    pub x: Option<(&'a D::Buffer, &'a D::Buffer)>,
    pub d_rows: &'a mut D::Buffer,
}

/// Backward of [`split_heads`].
pub(super) fn split_heads_backward<D: Device, const N: usize>(
    pass: Pass<'_, D>,
    projections: [ProjectionGrad<'_, D>; N],
) {
    let operands = projections.map(|ProjectionGrad { span, d_heads, x, d_rows }| {
        let norm = x.map(|(x, weight)| (View::new(x, pass.width), norm_rotary(pass, weight)));
        (span, SplitHeadsBackward { d_out: d_heads, norm, dx: ViewMut::new(d_rows, pass.width) })
    });
    for (span, mut operands) in of_one_span(operands) {
        pass.ctx.queue.split_heads_backward(&head_layouts(pass, span), &mut operands);
    }
}

/// Neighbours that have the same span.
fn of_one_span<T>(operands: impl IntoIterator<Item = (Span, T)>) -> Vec<(Span, Vec<T>)> {
    let mut runs: Vec<(Span, Vec<T>)> = Vec::new();
    for (span, operand) in operands {
        match runs.last_mut() {
            Some((known, run)) if *known == span => run.push(operand),
            _ => runs.push((span, vec![operand])),
        }
    }
    runs
}

fn head_layouts<D: Device>(pass: Pass<'_, D>, span: Span) -> Vec<HeadLayout> {
    let layout = |segment: &Segment| HeadLayout {
        batch: pass.sequence.batch,
        heads: pass.heads,
        dim: pass.width / pass.heads,
        stream_tokens: segment.tokens,
        tokens: pass.sequence.tokens,
        offset: segment.offset,
    };
    pass.sequence.segments(span).map(layout).collect()
}

fn norm_rotary<'a, D: Device>(pass: Pass<'a, D>, weight: &'a D::Buffer) -> NormRotary<'a, D> {
    NormRotary { weight, cos: &pass.rotary.cos, sin: &pass.rotary.sin }
}

/// The attention's result in the joint order, `[N, S, D]`, and the logarithms of its sums, `[N, H, S]`.
pub(super) struct Attended<D: Device> {
    pub values: D::Buffer,
    pub lse: D::Buffer,
}

fn attention_shape<D: Device>(pass: Pass<'_, D>) -> AttentionShape {
    AttentionShape {
        batch: pass.sequence.batch,
        heads: pass.heads,
        tokens: pass.sequence.tokens,
        keys: pass.sequence.tokens,
        dim: pass.width / pass.heads,
    }
}

/// Attention of the queries of a span over all tokens; other rows of the result are unspecified.
pub(super) fn attend<D: Device>(pass: Pass<'_, D>, span: Span, heads: &Heads<D>) -> Attended<D> {
    let mut values = pass.take(pass.sequence.rows() * pass.width);
    let mut lse = pass.ctx.queue.take(pass.sequence.rows() * pass.heads, Kind::Exact);
    pass.ctx.queue.attention(device::Attention {
        shape: attention_shape(pass),
        query_rows: pass.sequence.span_tokens(span),
        scores: Scores::PLAIN,
        q: &heads.q,
        k: &heads.k,
        v: &heads.v,
        out: ViewMut::new(&mut values, pass.width),
        lse: &mut lse,
    });
    Attended { values, lse }
}

/// Backward of [`attend`], given the derivative by its result in the joint order.
pub(super) fn attend_backward<D: Device>(
    pass: Pass<'_, D>,
    span: Span,
    heads: &Heads<D>,
    attended: &Attended<D>,
    d_out: &D::Buffer,
) -> Heads<D> {
    let mut grads = Heads::take(pass);
    pass.ctx.queue.attention_backward(device::AttentionBackward {
        shape: attention_shape(pass),
        query_rows: pass.sequence.span_tokens(span),
        q: &heads.q,
        k: &heads.k,
        v: &heads.v,
        out: View::new(&attended.values, pass.width),
        lse: &attended.lse,
        d_out: View::new(d_out, pass.width),
        dq: &mut grads.q,
        dk: &mut grads.k,
        dv: &mut grads.v,
    });
    grads
}
