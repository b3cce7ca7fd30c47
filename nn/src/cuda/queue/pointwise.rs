//! Copies, sums, activation functions, gates and windows.
//!
//! `B` samples, `T` tokens of each, `D` width.

use super::{
    CudaQueue,
    rows::{Rows, wide},
    streams::Streams,
};
use crate::{
    cuda::{
        Cuda,
        launch::{Argument, Grid, flag, float, int},
        modules::Source,
        values::Element,
    },
    device::{
        Activation, CopyTokens, GateGrad, JointOrder, TokenRows, View, ViewMut, Windows, WindowsBackward,
    },
    error::Error,
};

/// Columns of a block that sums over tokens, and slices of the tokens (`sums.cuh`).
const COLUMNS: usize = 32;
const SLICES: usize = 8;

/// A block for 32 columns of each sample, with this many sums of so many bytes.
pub(super) fn column_sums(width: usize, samples: usize, bytes: usize) -> Grid {
    Grid { blocks: (width.div_ceil(COLUMNS), samples), threads: 256, shared: COLUMNS * SLICES * bytes }
}

/// A thread for as many values as it reads at once, in rows of `width`.
fn chunks(element: Element, rows: usize, width: usize) -> Grid {
    Grid::threads_for(rows * width.div_ceil(wide(element)))
}

impl CudaQueue {
    /// A thread for as many activations as it reads at once.
    pub(super) fn chunks(&self, rows: usize, width: usize) -> Grid {
        chunks(self.activation(), rows, width)
    }

    pub(super) fn token_copy(&self, call: CopyTokens<'_, Cuda>) {
        let CopyTokens {
            rows: TokenRows { batch, tokens, width },
            from: (from, from_tokens),
            to: (to, to_tokens),
        } = call;
        let last = |each: usize| batch.saturating_sub(1) * each + tokens;
        let (from, to) =
            (Rows::of(from, last(from_tokens), width), Rows::of_mut(&to, last(to_tokens), width));
        let name = match (from.element, to.element) {
            (from, to) if from == to && to == self.activation() => "copy_tokens",
            (Element::F32, Element::F32) => "copy_tokens_exact",
            _ => {
                let message = "a copy of tokens between activations and f32 values".to_owned();
                self.note::<()>(Err(Error::Internal(message)));
                return;
            }
        };
        self.launch(
            Source::Pointwise,
            name,
            chunks(to.element, batch * tokens, width),
            &[
                from.argument(),
                to.argument(),
                int(batch),
                int(tokens),
                int(width),
                int(from.stride),
                int(from_tokens),
                int(to.stride),
                int(to_tokens),
                flag(from.is_wide() && to.is_wide()),
            ],
        );
    }

    /// Between the rows of some streams and the joint order of their tokens.
    pub(super) fn joint_copy(
        &self,
        JointOrder { rows, tokens, offset }: JointOrder<'_>,
        (from, to): (View<'_, Cuda>, View<'_, Cuda>),
        into_joint: bool,
    ) {
        let Some(rows) = Streams::new(rows) else { return };
        assert!(offset + rows.tokens() <= tokens, "streams end after the {tokens} tokens of their attention");
        // The last sample's last token in the joint order, as rows.
        let joint = rows.batch.saturating_sub(1) * tokens + offset + rows.tokens();
        let counts = if into_joint { (rows.count, joint) } else { (joint, rows.count) };
        let (from, to) = (Rows::of(from, counts.0, rows.width), Rows::of(to, counts.1, rows.width));
        self.expect_activations("copy_joint", [from, to]);
        let arguments = [
            &[from, to].map(Rows::argument)[..],
            &rows.sizes(),
            &[tokens, offset, rows.width, from.stride, to.stride].map(int),
            &[flag(into_joint), flag(from.is_wide() && to.is_wide())],
        ]
        .concat();
        self.launch(Source::Pointwise, "copy_joint", self.chunks(rows.count, rows.width), &arguments);
    }

    pub(super) fn scaled_sum(&self, a: f32, x: Rows, y: Rows, len: usize) {
        let name = match (x.element, y.element) {
            (x, y) if x == y && y == self.activation() => "add_scaled",
            (Element::F32, Element::F32) => "add_scaled_exact",
            _ => {
                let message = "a sum of activations and f32 values".to_owned();
                self.note::<()>(Err(Error::Internal(message)));
                return;
            }
        };
        let wide = flag(x.is_aligned() && y.is_aligned());
        let arguments = [float(a), x.argument(), y.argument(), int(len), wide];
        self.launch(Source::Pointwise, name, chunks(y.element, 1, len), &arguments);
    }

    pub(super) fn scaled(&self, a: f32, x: Rows, len: usize) {
        let name = if x.element == self.activation() { "scale" } else { "scale_exact" };
        let arguments = [float(a), x.argument(), int(len), flag(x.is_aligned())];
        self.launch(Source::Pointwise, name, chunks(x.element, 1, len), &arguments);
    }

    /// A kernel over `[rows, width]` of each operand, with `more` arguments between operands and sizes.
    fn over_rows<const N: usize>(
        &self,
        name: &'static str,
        (rows, width): (usize, usize),
        operands: [Rows; N],
        more: &[Argument],
    ) {
        self.expect_activations(name, operands);
        let wide = operands.iter().all(|r| r.is_wide());
        let arguments = [
            &operands.map(Rows::argument)[..],
            more,
            &[rows, width].map(int),
            &operands.map(|r| int(r.stride)),
            &[flag(wide)],
        ];
        self.launch(Source::Pointwise, name, self.chunks(rows, width), &arguments.concat());
    }

    pub(super) fn function(&self, f: Activation, size: (usize, usize), x: Rows, y: Rows) {
        // In the order of `Function` in pointwise.cu.
        let number = match f {
            Activation::Silu => 0,
            Activation::Gelu => 1,
            Activation::GeluErf => 2,
            Activation::QuickGelu => 3,
            Activation::Relu => 4,
            Activation::Tanh => 5,
        };
        self.over_rows("activate", size, [x, y], &[int(number)]);
    }

    pub(super) fn product_of_values(&self, size: (usize, usize), x: Rows, y: Rows) {
        self.over_rows("multiply", size, [x, y], &[]);
    }

    pub(super) fn gelu_rows_backward(&self, size: (usize, usize), dy: Rows, x: Rows) {
        self.over_rows("gelu_backward", size, [dy, x], &[]);
    }

    pub(super) fn windows_of(&self, call: Windows<'_, Cuda>) {
        let Windows { window, size: (height, width), channels, pixels, x, out } = call;
        let (side, count) = (window.side(), pixels.len());
        let row = side * side * channels;
        let x = Rows::of(x, 1, height * width * channels);
        let out = Rows::of_mut(&out, 1, count * row);
        self.expect_activations("windows", [x, out]);
        let sizes = [height, width, channels, pixels.start, count, window.output(width)];
        let seen = [side, window.stride(), window.before(), window.repeats()];
        let wide = channels.is_multiple_of(wide(x.element)) && x.is_aligned() && out.is_aligned();
        let arguments =
            [&[x, out].map(Rows::argument)[..], &sizes.map(int), &seen.map(int), &[flag(wide)]].concat();
        self.launch(Source::Windows, "windows", self.chunks(count, row), &arguments);
    }

    pub(super) fn windows_of_backward(&self, call: WindowsBackward<'_, Cuda>) {
        let WindowsBackward { window, size: (height, width), channels, pixels, dy, dx, accumulate } = call;
        let (side, count) = (window.side(), pixels.len());
        let dy = Rows::of(dy, 1, count * side * side * channels);
        let dx = Rows::of_mut(&dx, 1, height * width * channels);
        self.expect_activations("windows_backward", [dy, dx]);
        let sizes =
            [height, width, channels, pixels.start, count, window.output(height), window.output(width)];
        let seen = [side, window.stride(), window.before(), window.repeats()];
        let wide = channels.is_multiple_of(wide(dx.element)) && dy.is_aligned() && dx.is_aligned();
        let flags = [flag(accumulate), flag(wide)];
        let arguments = [&[dy, dx].map(Rows::argument)[..], &sizes.map(int), &seen.map(int), &flags].concat();
        self.launch(Source::Windows, "windows_backward", self.chunks(height * width, channels), &arguments);
    }

    /// A kernel over `[rows, width]` of operands of which some have rows twice as wide, `[a | b]`.
    fn over_gated_rows<const N: usize>(
        &self,
        name: &'static str,
        (rows, width): (usize, usize),
        operands: [Rows; N],
    ) {
        self.expect_activations(name, operands);
        let wide = width.is_multiple_of(wide(self.activation())) && operands.iter().all(|r| r.is_wide());
        let arguments = [
            &operands.map(Rows::argument)[..],
            &[rows, width].map(int),
            &operands.map(|r| int(r.stride)),
            &[flag(wide)],
        ];
        self.launch(Source::Pointwise, name, self.chunks(rows, width), &arguments.concat());
    }

    pub(super) fn gated_gelu_rows(&self, size: (usize, usize), x: Rows, y: Rows) {
        self.over_gated_rows("gated_gelu", size, [x, y]);
    }

    pub(super) fn gated_gelu_rows_backward(&self, size: (usize, usize), x: Rows, dy: Rows, dx: Rows) {
        self.over_gated_rows("gated_gelu_backward", size, [x, dy, dx]);
    }

    pub(super) fn add_to_token_rows(&self, rows: TokenRows, v: View<'_, Cuda>, x: &ViewMut<'_, Cuda>) {
        let TokenRows { batch, tokens, width } = rows;
        let (x, v) = (Rows::dense(x.read(), rows.count(), width), Rows::of(v, batch, width));
        self.expect_activations("add_to_tokens", [x, v]);
        let sizes = [batch, tokens, width, v.stride].map(int);
        let arguments =
            [&[x, v].map(Rows::argument)[..], &sizes, &[flag(x.is_wide() && v.is_wide())]].concat();
        self.launch(Source::Pointwise, "add_to_tokens", self.chunks(batch * tokens, width), &arguments);
    }

    /// A kernel over token rows and the gates of their samples.
    fn with_gates(&self, name: &'static str, rows: Streams<'_>, operands: [Rows; 3]) {
        self.expect_activations(name, operands);
        let [_, gate, _] = operands;
        let wide = operands.iter().all(|r| r.is_wide());
        let end = [int(rows.width), int(gate.stride), flag(wide)];
        let arguments = [&operands.map(Rows::argument)[..], &rows.sizes(), &end].concat();
        self.launch(Source::Pointwise, name, self.chunks(rows.count, rows.width), &arguments);
    }

    pub(super) fn add_gated(
        &self,
        rows: &[TokenRows],
        x: View<'_, Cuda>,
        gate: View<'_, Cuda>,
        y: &ViewMut<'_, Cuda>,
    ) {
        let Some(rows) = Streams::new(rows) else { return };
        let gate = Rows::of(gate, rows.batch, rows.width);
        self.with_gates("gated_add", rows, [rows.dense(x), gate, rows.dense(y.read())]);
    }

    pub(super) fn add_gated_backward(
        &self,
        rows: &[TokenRows],
        dx: View<'_, Cuda>,
        gate: View<'_, Cuda>,
        dy: &ViewMut<'_, Cuda>,
        gate_grad: Option<GateGrad<'_, Cuda>>,
    ) {
        let Some(rows) = Streams::new(rows) else { return };
        let Streams { batch, width, .. } = rows;
        let (dx, dy) = (rows.dense(dx), rows.dense(dy.read()));
        let gate = Rows::of(gate, batch, width);
        self.with_gates("gated_add_backward", rows, [dx, gate, dy]);
        if let Some(GateGrad { y, d_gate }) = gate_grad {
            let tokens = rows.tokens_of_one();
            let (y, d_gate) = (rows.dense(y), Rows::of_mut(&d_gate, batch, width));
            self.expect_activations("gate_sums", [y]);
            self.launch(
                Source::Norm,
                "gate_sums",
                column_sums(width, batch, 4),
                &[
                    dx.argument(),
                    y.argument(),
                    d_gate.argument(),
                    int(tokens),
                    int(width),
                    int(d_gate.stride),
                ],
            );
        }
    }
}
