//! Projections on their way to the heads of an attention, and back.
//!
//! `B` samples, `H` heads, `T` tokens of the attention, `D` width of a head.

use cudarc::driver::sys::CUdeviceptr;

use super::{
    CudaQueue,
    rows::{Rows, wide},
    streams::stream_sizes,
};
use crate::{
    cuda::{
        Cuda,
        launch::{Argument, Grid, flag, int, pointer},
        modules::Source,
        values::Element,
    },
    device::{HeadLayout, NormRotary, SplitHeads, SplitHeadsBackward},
};

/// The most threads of a block (`heads.cu`).
const THREADS: usize = 96;
/// Rows of tokens that a block has, one after the other (`heads.cu`).
const ROWS_OF_A_BLOCK: usize = 8;
/// Heads of one token that a group of threads has at once (`heads.cu`).
const HEADS_OF_A_GROUP: usize = 4;
const HEADS_OF_A_GROUP_BACKWARD: usize = 2;
/// Operands of one launch: queries, keys and values.
const OPERANDS: usize = 3;

/// Threads that share the heads of one token, each with sixteen bytes of a head: a power of two, at most a warp.
fn lanes(dim: usize, element: Element) -> usize {
    dim.div_ceil(wide(element)).next_power_of_two().min(32)
}

/// The streams of a launch, with what they have in common.
struct Layout<'a> {
    streams: &'a [HeadLayout],
    first: HeadLayout,
    rows: usize,
    lanes: usize,
}

impl<'a> Layout<'a> {
    /// # Panics
    /// If the tokens of the streams do not follow one another in one attention: a defect of the layer that calls.
    fn new(streams: &'a [HeadLayout], element: Element) -> Option<Self> {
        let first = *streams.first()?;
        let mut offset = first.offset;
        for stream in streams {
            let expected = HeadLayout { stream_tokens: stream.stream_tokens, offset, ..first };
            assert_eq!(*stream, expected, "streams follow one another in one attention");
            offset += stream.stream_tokens;
        }
        let rows = streams.iter().map(|s| s.batch * s.stream_tokens).sum();
        Some(Self { streams, first, rows, lanes: lanes(first.dim, element) })
    }

    fn width(&self) -> usize {
        self.first.heads * self.first.dim
    }

    /// Values by heads.
    fn by_heads(&self) -> usize {
        self.first.batch * self.first.tokens * self.width()
    }

    fn grid(&self, operands: usize, heads_of_a_group: usize) -> Grid {
        let groups = self.first.heads.div_ceil(heads_of_a_group);
        // Whole warps: a group adds over its threads.
        let threads = (groups * self.lanes).next_multiple_of(32).min(THREADS);
        Grid { blocks: (self.rows.div_ceil(ROWS_OF_A_BLOCK), operands), threads: threads as u32, shared: 0 }
    }

    /// What all operands have in common, and whether every head can be read sixteen bytes at a time.
    fn end(&self, angles: [Argument; 2], operands: &[Rows]) -> Vec<Argument> {
        let HeadLayout { batch, heads, dim, tokens, offset, .. } = self.first;
        let fit = |r: &Rows| r.is_wide() && (dim * r.element.size()).is_multiple_of(16);
        let counts = self.streams.iter().map(|s| s.stream_tokens);
        [
            &angles[..],
            &[self.lanes, self.rows, heads, dim].map(int),
            &stream_sizes(batch, counts),
            &[tokens, offset].map(int),
            &[flag(operands.iter().all(fit))],
        ]
        .concat()
    }

    /// The weight of a norm, and its angles.
    fn norm(&self, norm: NormRotary<'_, Cuda>) -> [Rows; 3] {
        let HeadLayout { dim, tokens, .. } = self.first;
        let angles = |buffer| Rows { stride: dim / 2, ..Rows::flat(buffer, tokens * dim / 2) };
        [Rows::flat(norm.weight, dim), angles(norm.cos), angles(norm.sin)]
    }
}

/// One kind of operand, of as many as a launch has; nothing for those that are missing.
fn padded(found: Vec<Argument>, nothing: Argument) -> [Argument; OPERANDS] {
    let mut found = found.into_iter();
    [(); OPERANDS].map(|()| found.next().unwrap_or(nothing))
}

/// The operands of a launch, kind by kind.
#[derive(Default)]
struct Operands {
    all: Vec<Rows>,
    pointers: [Vec<Argument>; 4],
    strides: [Vec<Argument>; 2],
    /// Cosines and sines, the same for all.
    angles: Option<[CUdeviceptr; 2]>,
}

impl Operands {
    fn push(&mut self, kind: usize, rows: Rows) {
        self.pointers[kind].push(rows.argument());
        self.all.push(rows);
    }

    /// The weight of an operand's norm, or none: values have none.
    fn push_norm(&mut self, kind: usize, norm: Option<[Rows; 3]>) {
        let Some([weight, cos, sin]) = norm else { return self.pointers[kind].push(pointer(0)) };
        self.push(kind, weight);
        self.all.extend([cos, sin]);
        let places = [cos, sin].map(|angles| angles.pointer);
        let alike = self.angles.is_none_or(|known| known == places);
        assert!(alike, "queries and keys of one attention turn by the same angles");
        self.angles = Some(places);
    }

    fn arguments(self, layout: &Layout<'_>, kinds: usize, strides: usize) -> Vec<Argument> {
        let end = layout.end(self.angles.unwrap_or_default().map(pointer), &self.all);
        let pointers = self.pointers.into_iter().take(kinds).flat_map(|p| padded(p, pointer(0)));
        let strides = self.strides.into_iter().take(strides).flat_map(|s| padded(s, int(0)));
        pointers.chain(strides).chain(end).collect()
    }
}

impl CudaQueue {
    pub(super) fn heads_from_tokens(&self, streams: &[HeadLayout], calls: &[SplitHeads<'_, Cuda>]) {
        let Some(layout) = Layout::new(streams, self.activation()) else { return };
        for calls in calls.chunks(OPERANDS) {
            let mut operands = Operands::default();
            for SplitHeads { x, norm, out } in calls {
                let x = Rows::of(*x, layout.rows, layout.width());
                let out = Rows::flat(out, layout.by_heads());
                self.expect_activations("split_heads", [x, out]);
                operands.push(0, x);
                operands.push_norm(1, norm.map(|norm| layout.norm(norm)));
                operands.push(2, out);
                operands.strides[0].push(int(x.stride));
            }
            let grid = layout.grid(calls.len(), HEADS_OF_A_GROUP);
            self.launch(Source::Heads, "split_heads", grid, &operands.arguments(&layout, 3, 1));
        }
    }

    pub(super) fn tokens_from_heads(&self, streams: &[HeadLayout], calls: &[SplitHeadsBackward<'_, Cuda>]) {
        let Some(layout) = Layout::new(streams, self.activation()) else { return };
        for calls in calls.chunks(OPERANDS) {
            let mut operands = Operands::default();
            for SplitHeadsBackward { d_out, norm, dx } in calls {
                let d_out = Rows::flat(d_out, layout.by_heads());
                let dx = Rows::of_mut(dx, layout.rows, layout.width());
                self.expect_activations("split_heads_backward", [d_out, dx]);
                operands.push(0, d_out);
                match norm {
                    Some((x, _)) => {
                        let x = Rows::of(*x, layout.rows, layout.width());
                        self.expect_activations("split_heads_backward", [x]);
                        operands.push(1, x);
                        operands.strides[0].push(int(x.stride));
                    }
                    None => {
                        operands.pointers[1].push(pointer(0));
                        operands.strides[0].push(int(0));
                    }
                }
                operands.push_norm(2, norm.map(|(_, norm)| layout.norm(norm)));
                operands.push(3, dx);
                operands.strides[1].push(int(dx.stride));
            }
            let grid = layout.grid(calls.len(), HEADS_OF_A_GROUP_BACKWARD);
            let arguments = operands.arguments(&layout, 4, 2);
            self.launch(Source::Heads, "split_heads_backward", grid, &arguments);
        }
    }
}
