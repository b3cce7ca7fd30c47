//! Sums, activation functions, gates, norms and scores.
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
    device::{
        CopyTokens, GateGrad, Kind, ModulationGrad, NormModulate, NormModulateBackward, Queue, TokenRows,
        View, ViewMut,
    },
    error::Error,
};

/// Columns of a block that sums over tokens, and slices of the tokens (`sums.cuh`).
const COLUMNS: usize = 32;
const SLICES: usize = 8;
/// Shared memory in which a block sums two values of each thread.
const BLOCK_SUMS: usize = 2 * 32 * 4;

/// A block for 32 columns of each sample, with this many sums of so many bytes.
fn column_sums(width: usize, samples: usize, bytes: usize) -> Grid {
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

    pub(super) fn gelu_rows(&self, rows: usize, width: usize, x: Rows, y: Rows) {
        self.expect_activations("gelu", [x, y]);
        self.launch(
            Source::Pointwise,
            "gelu",
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

    pub(super) fn modulated_norm(&self, call: NormModulate<'_, Cuda>) {
        let NormModulate { rows, x, shift, scale, y, mean, reciprocal } = call;
        let TokenRows { batch, tokens, width } = rows;
        let (x, y) = (dense(x, rows), dense(y.read(), rows));
        let (shift, scale) = (Rows::of(shift, batch, width), Rows::of(scale, batch, width));
        let count = batch * tokens;
        let (mean, reciprocal) = (Rows::of_mut(&mean, 1, count), Rows::of_mut(&reciprocal, 1, count));
        self.expect_activations("norm_modulate", [x, shift, scale, y]);
        assert_eq!(shift.stride, scale.stride, "shift and scale are parts of the same rows");
        self.launch(
            Source::Norm,
            "norm_modulate",
            Grid { blocks: (count, 1), threads: 256, shared: BLOCK_SUMS },
            &[
                x.argument(),
                shift.argument(),
                scale.argument(),
                y.argument(),
                mean.argument(),
                reciprocal.argument(),
                int(tokens),
                int(width),
                int(scale.stride),
                flag([x, shift, scale, y].iter().all(|r| r.is_wide(width))),
            ],
        );
    }

    pub(super) fn modulated_norm_backward(&self, call: NormModulateBackward<'_, Cuda>) {
        let NormModulateBackward { rows, x, mean, reciprocal, scale, dy, dx, accumulate, modulation } = call;
        let TokenRows { batch, tokens, width } = rows;
        let (x, dy, dx) = (dense(x, rows), dense(dy, rows), dense(dx.read(), rows));
        let scale = Rows::of(scale, batch, width);
        let count = batch * tokens;
        let (mean, reciprocal) = (Rows::of(mean, 1, count), Rows::of(reciprocal, 1, count));
        self.expect_activations("norm_modulate_backward", [x, scale, dy, dx]);
        self.launch(
            Source::Norm,
            "norm_modulate_backward",
            Grid { blocks: (count, 1), threads: 256, shared: BLOCK_SUMS },
            &[
                x.argument(),
                mean.argument(),
                reciprocal.argument(),
                scale.argument(),
                dy.argument(),
                dx.argument(),
                int(tokens),
                int(width),
                int(scale.stride),
                flag(accumulate),
                flag([x, scale, dy, dx].iter().all(|r| r.is_wide(width))),
            ],
        );
        if let Some(ModulationGrad { d_shift, d_scale }) = modulation {
            let (d_shift, d_scale) =
                (Rows::of_mut(&d_shift, batch, width), Rows::of_mut(&d_scale, batch, width));
            assert_eq!(d_shift.stride, d_scale.stride, "both sums are parts of the same rows");
            self.launch(
                Source::Norm,
                "norm_modulate_sums",
                column_sums(width, batch, 2 * 4),
                &[
                    x.argument(),
                    mean.argument(),
                    reciprocal.argument(),
                    dy.argument(),
                    d_shift.argument(),
                    d_scale.argument(),
                    int(tokens),
                    int(width),
                    int(d_shift.stride),
                ],
            );
        }
    }

    pub(super) fn cosine_scores(
        &self,
        width: usize,
        (rows, mask): (View<'_, Cuda>, &[f32]),
        (targets, count): (View<'_, Cuda>, usize),
        out: &ViewMut<'_, Cuda>,
    ) {
        let rows = Rows::of(rows, mask.len(), width);
        let targets = Rows::of(targets, count, width);
        let out = Rows::of_mut(out, 1, count);
        self.expect_activations("scores", [rows, targets]);
        let mask_values = self.upload(mask, Kind::Exact);
        let mean = self.take(width, Kind::Exact);
        let (mask_rows, mean) = (Rows::flat(&mask_values, mask.len()), Rows::flat(&mean, width));
        self.launch(
            Source::Scores,
            "masked_mean",
            column_sums(width, 1, 2 * 8),
            &[
                rows.argument(),
                mask_rows.argument(),
                mean.argument(),
                int(mask.len()),
                int(width),
                int(rows.stride),
            ],
        );
        self.launch(
            Source::Scores,
            "cosines",
            Grid { blocks: (count, 1), threads: 128, shared: 3 * 128 * 8 },
            &[targets.argument(), mean.argument(), out.argument(), int(width), int(targets.stride)],
        );
    }
}

/// Token rows without gaps.
///
/// # Panics
/// If they have gaps: the kernels that take token rows are given none.
fn dense(view: View<'_, Cuda>, rows: TokenRows) -> Rows {
    let count = rows.batch * rows.tokens;
    assert!(
        view.stride == rows.width || count <= 1,
        "rows of {} that stand {} apart",
        rows.width,
        view.stride
    );
    Rows::of(view, count, rows.width)
}
