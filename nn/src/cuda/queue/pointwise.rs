//! Copies, sums, activation functions, gates and windows.
//!
//! `B` samples, `T` tokens of each, `D` width.

use super::{CudaQueue, Rows, wide};
use crate::{
    cuda::{
        Cuda,
        launch::{Grid, flag, float, int},
        modules::Source,
        values::Element,
    },
    device::{Activation, CopyTokens, GateGrad, TokenRows, View, ViewMut, Windows},
    error::Error,
};

/// Columns of a block that sums over tokens, and slices of the tokens (`sums.cuh`).
const COLUMNS: usize = 32;
const SLICES: usize = 8;

/// A block for 32 columns of each sample, with this many sums of so many bytes.
pub(super) fn column_sums(width: usize, samples: usize, bytes: usize) -> Grid {
    Grid { blocks: (width.div_ceil(COLUMNS), samples), threads: 256, shared: COLUMNS * SLICES * bytes }
}

impl CudaQueue {
    /// A thread for the values that it reads at once.
    fn chunks(&self, rows: usize, width: usize) -> Grid {
        Grid::threads_for(rows * width.div_ceil(wide(self.activation())))
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
        self.expect_activations("copy_tokens", [from, to]);
        self.launch(
            Source::Pointwise,
            "copy_tokens",
            self.chunks(batch * tokens, width),
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
                flag(from.is_wide(width) && to.is_wide(width)),
            ],
        );
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
        let at_once = (x.pointer | y.pointer).is_multiple_of(16);
        self.launch(
            Source::Pointwise,
            name,
            Grid::threads_for(len.div_ceil(wide(y.element))),
            &[float(a), x.argument(), y.argument(), int(len), flag(at_once)],
        );
    }

    pub(super) fn scaled(&self, a: f32, x: Rows, len: usize) {
        let name = if x.element == self.activation() { "scale" } else { "scale_exact" };
        self.launch(Source::Pointwise, name, Grid::threads_for(len), &[float(a), x.argument(), int(len)]);
    }

    pub(super) fn function(&self, f: Activation, rows: usize, width: usize, x: Rows, y: Rows) {
        self.expect_activations("activate", [x, y]);
        // In the order of `Function` in pointwise.cu.
        let number = match f {
            Activation::Silu => 0,
            Activation::Gelu => 1,
            Activation::GeluErf => 2,
            Activation::QuickGelu => 3,
            Activation::Relu => 4,
            Activation::Tanh => 5,
        };
        self.launch(
            Source::Pointwise,
            "activate",
            self.chunks(rows, width),
            &[
                x.argument(),
                y.argument(),
                int(number),
                int(rows),
                int(width),
                int(x.stride),
                int(y.stride),
                flag(x.is_wide(width) && y.is_wide(width)),
            ],
        );
    }

    pub(super) fn product_of_values(&self, rows: usize, width: usize, x: Rows, y: Rows) {
        self.expect_activations("multiply", [x, y]);
        self.launch(
            Source::Pointwise,
            "multiply",
            self.chunks(rows, width),
            &[
                x.argument(),
                y.argument(),
                int(rows),
                int(width),
                int(x.stride),
                int(y.stride),
                flag(x.is_wide(width) && y.is_wide(width)),
            ],
        );
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
        let arguments = [&[x.argument(), out.argument()][..], &sizes.map(int), &seen.map(int)].concat();
        self.launch(Source::Windows, "windows", Grid::threads_for(count * row), &arguments);
    }

    pub(super) fn gelu_rows_backward(&self, rows: usize, width: usize, x: Rows, dy: Rows, dx: Rows) {
        self.expect_activations("gelu_backward", [x, dy, dx]);
        self.launch(
            Source::Pointwise,
            "gelu_backward",
            self.chunks(rows, width),
            &[
                x.argument(),
                dy.argument(),
                dx.argument(),
                int(rows),
                int(width),
                int(x.stride),
                int(dy.stride),
                int(dx.stride),
                flag([x, dy, dx].iter().all(|r| r.is_wide(width))),
            ],
        );
    }

    pub(super) fn add_gated(
        &self,
        rows: TokenRows,
        x: &ViewMut<'_, Cuda>,
        gate: View<'_, Cuda>,
        y: View<'_, Cuda>,
    ) {
        let TokenRows { batch, tokens, width } = rows;
        let (x, y) = (dense(x.read(), rows), dense(y, rows));
        let gate = Rows::of(gate, batch, width);
        self.expect_activations("gated_add", [x, gate, y]);
        self.launch(
            Source::Pointwise,
            "gated_add",
            self.chunks(batch * tokens, width),
            &[
                x.argument(),
                gate.argument(),
                y.argument(),
                int(batch),
                int(tokens),
                int(width),
                int(gate.stride),
                flag([x, gate, y].iter().all(|r| r.is_wide(width))),
            ],
        );
    }

    pub(super) fn add_gated_backward(
        &self,
        rows: TokenRows,
        dx: View<'_, Cuda>,
        gate: View<'_, Cuda>,
        dy: &ViewMut<'_, Cuda>,
        gate_grad: Option<GateGrad<'_, Cuda>>,
    ) {
        let TokenRows { batch, tokens, width } = rows;
        let (dx, dy) = (dense(dx, rows), dense(dy.read(), rows));
        let gate = Rows::of(gate, batch, width);
        self.expect_activations("gated_add_backward", [dx, gate, dy]);
        self.launch(
            Source::Pointwise,
            "gated_add_backward",
            self.chunks(batch * tokens, width),
            &[
                dx.argument(),
                gate.argument(),
                dy.argument(),
                int(batch),
                int(tokens),
                int(width),
                int(gate.stride),
                flag([dx, gate, dy].iter().all(|r| r.is_wide(width))),
            ],
        );
        if let Some(GateGrad { y, d_gate }) = gate_grad {
            let (y, d_gate) = (dense(y, rows), Rows::of_mut(&d_gate, batch, width));
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

/// Token rows without gaps.
///
/// # Panics
/// If they have gaps: the kernels that take token rows are given none.
pub(super) fn dense(view: View<'_, Cuda>, rows: TokenRows) -> Rows {
    let count = rows.batch * rows.tokens;
    assert!(
        view.stride == rows.width || count <= 1,
        "rows of {} that stand {} apart",
        rows.width,
        view.stride
    );
    Rows::of(view, count, rows.width)
}
