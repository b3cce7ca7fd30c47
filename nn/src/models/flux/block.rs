//! The parts that both kinds of blocks share: modulation, normed rows, attention operands.
//!
//! `N` batch, `S` tokens of the joint sequence, `D` width, `H` heads, `M = N S` rows.

use super::{
    rope::RotaryTables,
    sequence::{Segment, Sequence, Span},
};
use crate::{
    cpu::{
        self, Attention, AttentionBackward, AttentionShape, GateGrad, HeadLayout, ModulationGrad, NormRotary,
    },
    error::{Error, Result},
    layers::{Buffer, Context, Input, Linear, Output, linears, linears_backward},
};

/// What every function of a pass needs to know.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub ctx: Context<'a>,
    pub sequence: &'a Sequence,
    pub rotary: &'a RotaryTables,
    /// `D`.
    pub width: usize,
    /// `H`.
    pub heads: usize,
    /// `silu(temb)`, `[N, D]`.
    pub condition: &'a [f32],
    /// Is anything kept for a backward?
    pub saving: bool,
}

/// Shifts, scales and gates of a block: `[N, chunks D]`.
pub(super) struct Modulation {
    values: Buffer,
    stride: usize,
    width: usize,
    inner: Option<Buffer>,
}

impl Modulation {
    pub fn new(pass: Pass<'_>, linear: &Linear) -> Self {
        let (batch, stride) = (pass.sequence.batch, linear.outputs());
        let mut values = pass.ctx.buffers.take(batch * stride);
        let inner = linears(
            pass.ctx,
            batch,
            Input(pass.condition, pass.width),
            &mut [Output(linear, &mut values, stride)],
        );
        Self { values, stride, width: pass.width, inner }
    }

    /// From this chunk on; rows are [`stride`](Self::stride) apart.
    pub fn chunk(&self, chunk: usize) -> &[f32] {
        &self.values[chunk * self.width..]
    }

    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Derivative by the factors of the modulation's linear, given that by shifts, scales and gates.
    pub fn backward(&self, pass: Pass<'_>, linear: &Linear, grad: &[f32], grads: &mut [f32]) -> Result<()> {
        linears_backward(
            pass.ctx,
            pass.sequence.batch,
            Some(Input(pass.condition, pass.width)),
            self.inner.as_deref(),
            &[(linear, Input(grad, self.stride))],
            None,
            grads,
        )
    }
}

/// The derivative by a [`Modulation`], where its linear is adapted: sums over the segments it is used for.
pub(super) struct ModulationSums {
    values: Buffer,
    stride: usize,
}

impl ModulationSums {
    pub fn new(pass: Pass<'_>, linear: &Linear) -> Option<Self> {
        pass.ctx.adapts(linear).then(|| Self {
            values: pass.ctx.buffers.zeros(pass.sequence.batch * linear.outputs()),
            stride: linear.outputs(),
        })
    }

    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Add `part [N, D]` to a chunk.
    fn add(&mut self, chunk: usize, part: &[f32], width: usize) {
        for (row, part) in self.values.chunks_exact_mut(self.stride).zip(part.chunks_exact(width)) {
            for (sum, part) in row[chunk * width..][..width].iter_mut().zip(part) {
                *sum += part;
            }
        }
    }
}

/// Rows after the layer norm and the modulation, with what its backward needs beside its input.
pub(super) struct Normed {
    /// Rows of the span, `[rows, D]`.
    pub values: Buffer,
    pub moments: RowMoments,
}

/// Mean and reciprocal deviation of each row of a span.
pub(super) struct RowMoments {
    mean: Buffer,
    reciprocal: Buffer,
}

/// `norm(x) (1 + scale) + shift` of the rows of a span; `x` starts at the span's first row. `chunks` are those of
/// shift and scale.
pub(super) fn normed(
    pass: Pass<'_>,
    span: Span,
    x: &[f32],
    modulation: &Modulation,
    (shift, scale): (usize, usize),
) -> Normed {
    let rows = pass.sequence.span_rows(span.clone());
    let buffers = pass.ctx.buffers;
    let mut values = buffers.take(rows.len() * pass.width);
    let mut moments = RowMoments { mean: buffers.take(rows.len()), reciprocal: buffers.take(rows.len()) };
    for segment in pass.sequence.segments(span) {
        let at = segment.rows.start - rows.start..segment.rows.end - rows.start;
        let wide = at.start * pass.width..at.end * pass.width;
        cpu::norm_modulate(
            pass.ctx.device,
            pass.sequence.shape(segment, pass.width),
            &x[wide.clone()],
            modulation.chunk(shift),
            modulation.chunk(scale),
            modulation.stride(),
            &mut values[wide],
            &mut moments.mean[at.clone()],
            &mut moments.reciprocal[at],
        );
    }
    Normed { values, moments }
}

/// Backward of [`normed`] for one span: `dx` is added to in the segments of `carried`, and overwritten in others.
/// All slices start at the span's first row.
#[expect(clippy::too_many_arguments, reason = "the operands of one layer")]
pub(super) fn normed_backward(
    pass: Pass<'_>,
    span: Span,
    carried: Span,
    x: &[f32],
    moments: &RowMoments,
    modulation: &Modulation,
    (shift, scale): (usize, usize),
    dy: &[f32],
    dx: &mut [f32],
    sums: Option<&mut ModulationSums>,
) {
    let start = pass.sequence.span_rows(span.clone()).start;
    let carried = pass.sequence.span_rows(carried);
    let mut sums = sums;
    let part = sums.is_some().then(|| pass.sequence.batch * pass.width);
    for segment in pass.sequence.segments(span) {
        let at = segment.rows.start - start..segment.rows.end - start;
        let wide = at.start * pass.width..at.end * pass.width;
        let mut parts = part.map(|len| (pass.ctx.buffers.take(len), pass.ctx.buffers.take(len)));
        cpu::norm_modulate_backward(
            pass.ctx.device,
            pass.sequence.shape(segment, pass.width),
            &x[wide.clone()],
            &moments.mean[at.clone()],
            &moments.reciprocal[at],
            modulation.chunk(scale),
            modulation.stride(),
            &dy[wide.clone()],
            &mut dx[wide],
            carried.contains(&segment.rows.start),
            parts.as_mut().map(|(d_shift, d_scale)| ModulationGrad { d_shift, d_scale, stride: pass.width }),
        );
        if let (Some(sums), Some((d_shift, d_scale))) = (&mut sums, &parts) {
            sums.add(shift, d_shift, pass.width);
            sums.add(scale, d_scale, pass.width);
        }
    }
}

/// `x += gate y` in the rows of a span; both start at its first row.
pub(super) fn gated_add(
    pass: Pass<'_>,
    span: Span,
    x: &mut [f32],
    modulation: &Modulation,
    gate: usize,
    y: &[f32],
) {
    let start = pass.sequence.span_rows(span.clone()).start;
    for segment in pass.sequence.segments(span) {
        let wide = wide(segment, start, pass.width);
        cpu::gated_add(
            pass.ctx.device,
            pass.sequence.shape(segment, pass.width),
            &mut x[wide.clone()],
            modulation.chunk(gate),
            modulation.stride(),
            &y[wide],
        );
    }
}

/// Backward of [`gated_add`]: `dy`, and with sums the gate's own derivative, for which `y` must have been kept.
///
/// # Errors
/// If there are sums and `y` was not kept.
pub(super) fn gated_add_backward(
    pass: Pass<'_>,
    span: Span,
    dx: &[f32],
    modulation: &Modulation,
    gate: usize,
    y: Option<&[f32]>,
    sums: Option<&mut ModulationSums>,
) -> Result<Buffer> {
    let mut gated = match (sums, y) {
        (None, _) => None,
        (Some(sums), Some(y)) => Some((sums, y)),
        (Some(_), None) => {
            return Err(Error::Internal("the result before an adapted gate was not kept".into()));
        }
    };
    let rows = pass.sequence.span_rows(span.clone());
    let mut dy = pass.ctx.buffers.take(rows.len() * pass.width);
    for segment in pass.sequence.segments(span) {
        let wide = wide(segment, rows.start, pass.width);
        let mut part = gated.is_some().then(|| pass.ctx.buffers.take(pass.sequence.batch * pass.width));
        let y = gated.as_ref().map(|(_, y)| &y[wide.clone()]);
        let gate_grad =
            part.as_deref_mut().zip(y).map(|(d_gate, y)| GateGrad { y, d_gate, stride: pass.width });
        cpu::gated_add_backward(
            pass.ctx.device,
            pass.sequence.shape(segment, pass.width),
            &dx[wide.clone()],
            modulation.chunk(gate),
            modulation.stride(),
            &mut dy[wide],
            gate_grad,
        );
        if let (Some((sums, _)), Some(part)) = (&mut gated, &part) {
            sums.add(gate, part, pass.width);
        }
    }
    Ok(dy)
}

fn wide(segment: &Segment, start: usize, width: usize) -> std::ops::Range<usize> {
    (segment.rows.start - start) * width..(segment.rows.end - start) * width
}

/// Queries, keys and values in the order of attention, `[N, H, S, D / H]`.
pub(super) struct Heads {
    pub q: Buffer,
    pub k: Buffer,
    pub v: Buffer,
}

impl Heads {
    pub fn take(pass: Pass<'_>) -> Self {
        let take = || pass.ctx.buffers.take(pass.sequence.rows() * pass.width);
        Self { q: take(), k: take(), v: take() }
    }

    /// With values that were kept.
    pub fn with_values(pass: Pass<'_>, v: Buffer) -> Self {
        let take = || pass.ctx.buffers.take(pass.sequence.rows() * pass.width);
        Self { q: take(), k: take(), v }
    }
}

fn head_layout(pass: Pass<'_>, segment: &Segment) -> HeadLayout {
    HeadLayout {
        batch: pass.sequence.batch,
        heads: pass.heads,
        dim: pass.width / pass.heads,
        stream_tokens: segment.tokens,
        tokens: pass.sequence.tokens,
        offset: segment.offset,
        stride: pass.width,
    }
}

fn norm_rotary<'a>(pass: Pass<'a>, weight: Option<&'a [f32]>) -> Option<NormRotary<'a>> {
    weight.map(|weight| NormRotary { weight, cos: &pass.rotary.cos, sin: &pass.rotary.sin })
}

/// From rows of a span, `[rows, D]`, to their places in `[N, H, S, D / H]`; with an RMS norm's weight also normed and turned.
pub(super) fn split_heads(pass: Pass<'_>, span: Span, x: &[f32], weight: Option<&[f32]>, out: &mut [f32]) {
    let start = pass.sequence.span_rows(span.clone()).start;
    for segment in pass.sequence.segments(span) {
        let x = &x[wide(segment, start, pass.width)];
        cpu::split_heads(pass.ctx.device, head_layout(pass, segment), x, norm_rotary(pass, weight), out);
    }
}

/// Backward of [`split_heads`]; `x` is read only where there is a norm.
pub(super) fn split_heads_backward(
    pass: Pass<'_>,
    span: Span,
    d_out: &[f32],
    x: &[f32],
    weight: Option<&[f32]>,
    dx: &mut [f32],
) {
    let start = pass.sequence.span_rows(span.clone()).start;
    for segment in pass.sequence.segments(span) {
        let wide = wide(segment, start, pass.width);
        let x = if weight.is_some() { &x[wide.clone()] } else { &[] };
        cpu::split_heads_backward(
            pass.ctx.device,
            head_layout(pass, segment),
            d_out,
            x,
            norm_rotary(pass, weight),
            &mut dx[wide],
            pass.width,
        );
    }
}

/// The attention's result in the joint order, `[N, S, D]`, and the logarithms of its sums, `[N, H, S]`.
pub(super) struct Attended {
    pub values: Buffer,
    pub lse: Buffer,
}

fn attention_shape(pass: Pass<'_>) -> AttentionShape {
    AttentionShape {
        batch: pass.sequence.batch,
        heads: pass.heads,
        tokens: pass.sequence.tokens,
        dim: pass.width / pass.heads,
    }
}

/// Attention of the queries of a span over all tokens; other rows of the result are unspecified.
pub(super) fn attend(pass: Pass<'_>, span: Span, heads: &Heads) -> Attended {
    let mut values = pass.ctx.buffers.take(pass.sequence.rows() * pass.width);
    let mut lse = pass.ctx.buffers.take(pass.sequence.rows() * pass.heads);
    cpu::attention(
        pass.ctx.device,
        Attention {
            shape: attention_shape(pass),
            precision: pass.ctx.precision,
            query_rows: pass.sequence.span_tokens(span),
            q: &heads.q,
            k: &heads.k,
            v: &heads.v,
            out: &mut values,
            out_stride: pass.width,
            lse: &mut lse,
        },
    );
    Attended { values, lse }
}

/// Backward of [`attend`], given the derivative by its result in the joint order.
pub(super) fn attend_backward(
    pass: Pass<'_>,
    span: Span,
    heads: &Heads,
    attended: &Attended,
    d_out: &[f32],
) -> Heads {
    let mut grads = Heads::take(pass);
    cpu::attention_backward(
        pass.ctx.device,
        AttentionBackward {
            shape: attention_shape(pass),
            precision: pass.ctx.precision,
            query_rows: pass.sequence.span_tokens(span),
            q: &heads.q,
            k: &heads.k,
            v: &heads.v,
            out: &attended.values,
            out_stride: pass.width,
            lse: &attended.lse,
            d_out,
            d_out_stride: pass.width,
            dq: &mut grads.q,
            dk: &mut grads.k,
            dv: &mut grads.v,
        },
    );
    grads
}
