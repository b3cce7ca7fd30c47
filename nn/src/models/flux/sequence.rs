//! The memory layout of the tokens of a pass.
//!
//! The rows of the stream form three segments, each with all samples: text, targets, references. So a linear of the
//! image stream is one product over two segments, one of the last block over the targets alone is a product over
//! neighbouring rows, and the joint stream of the single blocks is the whole buffer, without a copy between. Only
//! attention sees the joint order of a sample: text, target, references.
//!
//! `N` batch, `S` tokens of the joint sequence, `D` width, `M = N S` rows.

use std::ops::Range;

use crate::{
    device::{Device, JointOrder, Queue, TokenRows, View, ViewMut},
    layers::Context,
};

/// The rows of one kind of token, of all samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Where its rows stand among all rows: `N * tokens` of them.
    pub rows: Range<usize>,
    /// Tokens of each sample.
    pub tokens: usize,
    /// Where its tokens stand in the joint sequence of a sample.
    pub offset: usize,
}

/// Which segments a function works on: a range over text, targets, references.
pub(super) type Span = Range<usize>;

/// The text stream.
pub(super) const TEXT: Span = 0..1;
/// The tokens that are predicted.
pub(super) const TARGETS: Span = 1..2;
/// The image stream: targets and references.
pub(super) const IMAGE: Span = 1..3;
/// All rows.
pub(super) const ALL: Span = 0..3;

/// Tokens of a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sequence {
    /// `N`.
    pub batch: usize,
    /// `S`.
    pub tokens: usize,
    /// Tokens of each reference.
    pub reference_tokens: Vec<usize>,
    segments: [Segment; 3],
}

impl Sequence {
    pub fn new(batch: usize, text: usize, target: usize, reference_tokens: Vec<usize>) -> Self {
        let counts = [text, target, reference_tokens.iter().sum()];
        let mut offset = 0;
        let segments = counts.map(|tokens| {
            let segment = Segment { rows: batch * offset..batch * (offset + tokens), tokens, offset };
            offset += tokens;
            segment
        });
        Self { batch, tokens: offset, reference_tokens, segments }
    }

    /// `M`.
    pub fn rows(&self) -> usize {
        self.batch * self.tokens
    }

    /// The segments of a span that have tokens.
    pub fn segments(&self, span: Span) -> impl Iterator<Item = &Segment> {
        self.segments[span].iter().filter(|s| s.tokens > 0)
    }

    /// All rows of a span.
    pub fn span_rows(&self, span: Span) -> Range<usize> {
        let segments = &self.segments[span];
        segments[0].rows.start..segments[segments.len() - 1].rows.end
    }

    /// All tokens of a span in the joint sequence of a sample.
    pub fn span_tokens(&self, span: Span) -> Range<usize> {
        let segments = &self.segments[span];
        let last = &segments[segments.len() - 1];
        segments[0].offset..last.offset + last.tokens
    }

    /// The sizes of a segment for the kernels that work by samples.
    fn shape(&self, segment: &Segment, width: usize) -> TokenRows {
        TokenRows { batch: self.batch, tokens: segment.tokens, width }
    }

    /// The same of all segments of a span that have tokens.
    pub fn shapes(&self, span: Span, width: usize) -> Vec<TokenRows> {
        self.segments(span).map(|segment| self.shape(segment, width)).collect()
    }

    /// The parts of a span that one call can take, and whether they lie in `carried`: neighbours that are all
    /// inside or all outside, or with `alone` each segment by itself.
    pub fn runs(&self, span: Span, alone: bool, carried: &Span) -> Vec<(Span, bool)> {
        let mut runs: Vec<(Span, bool)> = Vec::new();
        for segment in span.filter(|s| self.segments[*s].tokens > 0) {
            let inside = carried.contains(&segment);
            match runs.last_mut() {
                Some((run, known)) if !alone && *known == inside => run.end = segment + 1,
                _ => runs.push((segment..segment + 1, inside)),
            }
        }
        runs
    }

    /// Copy rows of a span from the joint order `[N, S, width]` to the segments' order; `to` starts at the span's
    /// first row.
    pub fn copy_from_joint<D: Device>(
        &self,
        ctx: Context<'_, D>,
        span: Span,
        width: usize,
        joint: &D::Buffer,
        to: ViewMut<'_, D>,
    ) {
        let rows = self.shapes(span.clone(), width);
        ctx.queue.rows_from_joint(self.joint(span, &rows), View::new(joint, width), to);
    }

    /// Copy rows of a span from the segments' order to the joint order; `from` starts at the span's first row.
    pub fn copy_to_joint<D: Device>(
        &self,
        ctx: Context<'_, D>,
        span: Span,
        width: usize,
        from: View<'_, D>,
        joint: &mut D::Buffer,
    ) {
        let rows = self.shapes(span.clone(), width);
        ctx.queue.rows_to_joint(self.joint(span, &rows), from, ViewMut::new(joint, width));
    }

    fn joint<'a>(&self, span: Span, rows: &'a [TokenRows]) -> JointOrder<'a> {
        JointOrder { rows, tokens: self.tokens, offset: self.span_tokens(span).start }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Cpu,
        device::{Kind, Precision},
    };

    #[test]
    fn rows_go_to_the_joint_order_and_back() {
        let sequence = Sequence::new(2, 1, 2, vec![1, 2]);
        assert_eq!(sequence.rows(), 12);
        assert_eq!(sequence.span_rows(IMAGE), 2..12);
        let queue = Cpu::new(1).unwrap().queue(Precision::F32).unwrap();
        let rows: Vec<f32> = (0..12).map(|v| v as f32).collect();
        let rows = queue.upload(&rows, Kind::Activation);
        let mut joint = queue.zeros(12, Kind::Activation);
        let ctx = Context::<Cpu> { queue: &queue, branches: None };
        sequence.copy_to_joint(ctx, ALL, 1, View::new(&rows, 1), &mut joint);
        assert_eq!(*joint, [0., 2., 3., 6., 7., 8., 1., 4., 5., 9., 10., 11.]);
        let mut back = queue.zeros(4, Kind::Activation);
        sequence.copy_from_joint(ctx, TARGETS, 1, &joint, ViewMut::new(&mut back, 1));
        assert_eq!(*back, [2., 3., 4., 5.]);
    }
}
