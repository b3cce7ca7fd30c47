//! Norms, and scores of tokens.
//!
//! `B` samples, `T` tokens of each, `M` rows, `D` width, `G` groups of channels.

use super::{CudaQueue, pointwise::column_sums, rows::Rows, streams::Streams};
use crate::{
    cuda::{
        Cuda,
        launch::{Grid, double, flag, float, int, pointer},
        modules::Source,
        values::CudaBuffer,
    },
    device::{
        GroupNorm, GroupNormBackward, Kind, ModulationGrad, Norm, NormBackward, NormKind, NormModulate,
        NormModulateBackward, Queue, View, ViewMut,
    },
};

/// Shared memory in which a block sums two values of each thread.
const BLOCK_SUMS: usize = 2 * 32 * 4;
/// Threads of a block that has rows to be modulated (`norm.cu`).
const THREADS_OF_A_ROW: u32 = 128;
/// Rows of a picture that one block sums for a group of channels, and the most blocks of a group.
const ROWS_OF_A_SLICE: usize = 1024;
const MOST_SLICES: usize = 256;

/// Rows of a block, one after the other, forward and backward (`norm.cu`).
const MODULATED_ROWS: usize = 5;
const MODULATED_ROWS_BACKWARD: usize = 8;

/// A block for `each` of `rows` rows that are modulated (`norm.cu`).
fn modulated_rows(rows: usize, each: usize) -> Grid {
    Grid { blocks: (rows.div_ceil(each), 1), threads: THREADS_OF_A_ROW, shared: BLOCK_SUMS }
}

impl CudaQueue {
    pub(super) fn modulated_norm(&self, call: NormModulate<'_, Cuda>) {
        let NormModulate { rows, x, shift, scale, y, mean, reciprocal } = call;
        let Some(rows) = Streams::new(rows) else { return };
        let Streams { batch, width, count, .. } = rows;
        let (x, y) = (rows.dense(x), rows.dense(y.read()));
        let (shift, scale) = (Rows::of(shift, batch, width), Rows::of(scale, batch, width));
        let (mean, reciprocal) = (Rows::of_mut(&mean, 1, count), Rows::of_mut(&reciprocal, 1, count));
        self.expect_activations("norm_modulate", [x, shift, scale, y]);
        assert_eq!(shift.stride, scale.stride, "shift and scale are parts of the same rows");
        let operands = [x, shift, scale, y, mean, reciprocal].map(Rows::argument);
        let wide = [x, shift, scale, y].iter().all(|r| r.is_wide());
        let end = [int(width), int(scale.stride), flag(wide)];
        let arguments = [&operands[..], &rows.sizes(), &end].concat();
        self.launch(Source::Norm, "norm_modulate", modulated_rows(count, MODULATED_ROWS), &arguments);
    }

    pub(super) fn modulated_norm_backward(&self, call: NormModulateBackward<'_, Cuda>) {
        let NormModulateBackward { rows, x, mean, reciprocal, scale, dy, dx, accumulate, modulation } = call;
        let Some(rows) = Streams::new(rows) else { return };
        let Streams { batch, width, count, .. } = rows;
        let (x, dy, dx) = (rows.dense(x), rows.dense(dy), rows.dense(dx.read()));
        let scale = Rows::of(scale, batch, width);
        let (mean, reciprocal) = (Rows::of(mean, 1, count), Rows::of(reciprocal, 1, count));
        self.expect_activations("norm_modulate_backward", [x, scale, dy, dx]);
        let operands = [x, mean, reciprocal, scale, dy, dx].map(Rows::argument);
        let wide = [x, scale, dy, dx].iter().all(|r| r.is_wide());
        let end = [int(width), int(scale.stride), flag(accumulate), flag(wide)];
        let arguments = [&operands[..], &rows.sizes(), &end].concat();
        let grid = modulated_rows(count, MODULATED_ROWS_BACKWARD);
        self.launch(Source::Norm, "norm_modulate_backward", grid, &arguments);
        if let Some(ModulationGrad { d_shift, d_scale }) = modulation {
            let tokens = rows.tokens_of_one();
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
            Grid { blocks: (count, 1), threads: 128, shared: 128 * 3 * 8 },
            &[targets.argument(), mean.argument(), out.argument(), int(width), int(targets.stride)],
        );
    }

    pub(super) fn norm_of_rows(&self, call: Norm<'_, Cuda>) {
        let Norm { rows, width, kind, eps, x, weight, bias, y } = call;
        let (x, y, weight) =
            (Rows::dense(x, rows, width), Rows::dense(y.read(), rows, width), Rows::flat(weight, width));
        let bias = bias.map(|bias| Rows::flat(bias, width));
        self.expect_activations("norm", [x, y]);
        let wide =
            x.is_wide() && y.is_wide() && [Some(weight), bias].into_iter().flatten().all(Rows::is_aligned);
        self.launch(
            Source::NormRows,
            "norm_rows",
            Grid { blocks: (rows, 1), threads: 256, shared: BLOCK_SUMS },
            &[
                x.argument(),
                weight.argument(),
                bias.map_or(pointer(0), Rows::argument),
                y.argument(),
                int(width),
                flag(kind == NormKind::Layer),
                float(eps as f32),
                flag(wide),
            ],
        );
    }

    pub(super) fn norm_of_rows_backward(&self, call: NormBackward<'_, Cuda>) {
        let NormBackward { rows, width, kind, eps, x, weight, dy, dx } = call;
        let (x, dy, dx) =
            (Rows::dense(x, rows, width), Rows::dense(dy, rows, width), Rows::dense(dx.read(), rows, width));
        let weight = Rows::flat(weight, width);
        self.expect_activations("norm_backward", [x, dy, dx]);
        let wide = [x, dy, dx].iter().all(|r| r.is_wide()) && weight.is_aligned();
        self.launch(
            Source::NormRowsBackward,
            "norm_rows_backward",
            Grid { blocks: (rows, 1), threads: 256, shared: BLOCK_SUMS },
            &[
                x.argument(),
                weight.argument(),
                dy.argument(),
                dx.argument(),
                int(width),
                flag(kind == NormKind::Layer),
                float(eps as f32),
                flag(wide),
            ],
        );
    }

    /// Sums of two values for each channel and slice of the rows: room for them, and the number of slices.
    fn channel_room(&self, rows: usize, width: usize) -> (CudaBuffer, usize) {
        let slices = rows.div_ceil(ROWS_OF_A_SLICE).clamp(1, MOST_SLICES);
        // Two doubles for each channel, of which each is two f32 values long.
        (self.take(4 * width * slices, Kind::Exact), slices)
    }

    /// Mean and 1 / deviation of each group of `x [rows, width]`.
    fn group_moments(&self, (rows, width, groups): (usize, usize, usize), x: Rows, eps: f64) -> CudaBuffer {
        let (partial, slices) = self.channel_room(rows, width);
        let moments = self.take(2 * groups, Kind::Exact);
        let sums = Rows::flat(&partial, 4 * width * slices).argument();
        self.launch(
            Source::NormRows,
            "channel_sums",
            column_sums(width, slices, 2 * 8),
            &[x.argument(), sums, int(rows), int(width)],
        );
        let count = (rows * (width / groups)) as f64;
        let to = Rows::flat(&moments, 2 * groups).argument();
        self.launch(
            Source::NormRows,
            "group_moments",
            Grid { blocks: (groups, 1), threads: 256, shared: 256 * 2 * 8 },
            &[sums, to, int(width), int(slices), double(count), double(eps)],
        );
        moments
    }

    pub(super) fn norm_of_groups_backward(&self, call: GroupNormBackward<'_, Cuda>) {
        let GroupNormBackward { rows, width, groups, eps, silu, x, weight, bias, dy, dx } = call;
        let (x, dy, dx) =
            (Rows::dense(x, rows, width), Rows::dense(dy, rows, width), Rows::dense(dx.read(), rows, width));
        let [weight, bias] = [weight, bias].map(|v| Rows::flat(v, width));
        self.expect_activations("group_norm_backward", [x, dy, dx]);
        let moments = self.group_moments((rows, width, groups), x, eps);
        let (partial, slices) = self.channel_room(rows, width);
        let means = self.take(2 * groups, Kind::Exact);
        let of_groups = |buffer| Rows::flat(buffer, 2 * groups).argument();
        let (moments, means) = (of_groups(&moments), of_groups(&means));
        let sums = Rows::flat(&partial, 4 * width * slices).argument();
        let inputs = [x, dy].map(Rows::argument);
        let weights = [weight, bias].map(Rows::argument);
        let sizes = [rows, width, groups].map(int);
        self.launch(
            Source::NormRowsBackward,
            "cotangent_sums",
            column_sums(width, slices, 2 * 8),
            &[&inputs[..], &[moments], &weights, &[sums], &sizes, &[flag(silu)]].concat(),
        );
        let count = (rows * (width / groups)) as f64;
        self.launch(
            Source::NormRowsBackward,
            "group_means",
            Grid { blocks: (groups, 1), threads: 256, shared: 256 * 2 * 8 },
            &[sums, weight.argument(), means, int(width), int(slices), double(count)],
        );
        let wide = [x, dy, dx].iter().all(|r| r.is_wide()) && weight.is_aligned() && bias.is_aligned();
        let end = [flag(silu), flag(wide)];
        self.launch(
            Source::NormRowsBackward,
            "group_norm_backward",
            self.chunks(rows, width),
            &[&inputs[..], &[moments, means], &weights, &[dx.argument()], &sizes, &end].concat(),
        );
    }

    pub(super) fn norm_of_groups(&self, call: GroupNorm<'_, Cuda>) {
        let GroupNorm { rows, width, groups, eps, silu, x, weight, bias, y } = call;
        let (x, y) = (Rows::dense(x, rows, width), Rows::dense(y.read(), rows, width));
        let [weight, bias] = [weight, bias].map(|v| Rows::flat(v, width));
        self.expect_activations("group_norm", [x, y]);
        let moments = self.group_moments((rows, width, groups), x, eps);
        let moments = Rows::flat(&moments, 2 * groups).argument();
        let wide = x.is_wide() && y.is_wide() && weight.is_aligned() && bias.is_aligned();
        let sizes = [rows, width, groups].map(int);
        let arguments = [x.argument(), moments, weight.argument(), bias.argument(), y.argument()];
        let arguments = [&arguments[..], &sizes, &[flag(silu), flag(wide)]].concat();
        self.launch(Source::NormRows, "group_norm", self.chunks(rows, width), &arguments);
    }
}
