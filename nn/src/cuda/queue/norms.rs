//! Norms, and scores of tokens.
//!
//! `B` samples, `T` tokens of each, `M` rows, `D` width, `G` groups of channels.

use super::{
    CudaQueue, Rows,
    pointwise::{column_sums, dense},
    wide,
};
use crate::{
    cuda::{
        Cuda,
        launch::{Grid, double, flag, float, int, pointer},
        modules::Source,
        values::Element,
    },
    device::{
        GroupNorm, Kind, ModulationGrad, Norm, NormKind, NormModulate, NormModulateBackward, Queue,
        TokenRows, View, ViewMut,
    },
};

/// Shared memory in which a block sums two values of each thread.
const BLOCK_SUMS: usize = 2 * 32 * 4;
/// The most threads of a block that has a row.
const MOST_THREADS: usize = 256;
/// Rows of a picture that one block sums for a group of channels, and the most blocks of a group.
const ROWS_OF_A_SLICE: usize = 1024;
const MOST_SLICES: usize = 256;

/// A block for each of `rows` rows of `width` activations, in which every thread has as many chunks of sixteen bytes.
fn row_blocks(rows: usize, width: usize, element: Element) -> Grid {
    let chunks = width.div_ceil(wide(element));
    let each = chunks.div_ceil(MOST_THREADS).max(1);
    let threads = chunks.div_ceil(each).next_multiple_of(32).clamp(32, MOST_THREADS);
    Grid { blocks: (rows, 1), threads: threads as u32, shared: BLOCK_SUMS }
}

impl CudaQueue {
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
            row_blocks(count, width, x.element),
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
                flag([x, shift, scale, y].iter().all(|r| r.is_wide())),
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
            row_blocks(count, width, x.element),
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
                flag([x, scale, dy, dx].iter().all(|r| r.is_wide())),
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
            Grid { blocks: (count, 1), threads: 128, shared: 128 * 3 * 8 },
            &[targets.argument(), mean.argument(), out.argument(), int(width), int(targets.stride)],
        );
    }

    pub(super) fn norm_of_rows(&self, call: Norm<'_, Cuda>) {
        let Norm { rows, width, kind, eps, x, weight, bias, y } = call;
        let sizes = TokenRows { batch: 1, tokens: rows, width };
        let (x, y, weight) = (dense(x, sizes), dense(y.read(), sizes), Rows::flat(weight, width));
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

    pub(super) fn norm_of_groups(&self, call: GroupNorm<'_, Cuda>) {
        let GroupNorm { rows, width, groups, eps, silu, x, weight, bias, y } = call;
        let sizes = TokenRows { batch: 1, tokens: rows, width };
        let (x, y) = (dense(x, sizes), dense(y.read(), sizes));
        let [weight, bias] = [weight, bias].map(|v| Rows::flat(v, width));
        self.expect_activations("group_norm", [x, y]);
        let slices = rows.div_ceil(ROWS_OF_A_SLICE).clamp(1, MOST_SLICES);
        // Two doubles for each channel, of which each is two f32 values long.
        let partial = self.take(4 * width * slices, Kind::Exact);
        let moments = self.take(2 * groups, Kind::Exact);
        let (partial, moments) = (
            Rows::flat(&partial, 4 * width * slices).argument(),
            Rows::flat(&moments, 2 * groups).argument(),
        );
        self.launch(
            Source::NormRows,
            "channel_sums",
            column_sums(width, slices, 2 * 8),
            &[x.argument(), partial, int(rows), int(width)],
        );
        let count = (rows * (width / groups)) as f64;
        self.launch(
            Source::NormRows,
            "group_moments",
            Grid { blocks: (groups, 1), threads: 256, shared: 256 * 2 * 8 },
            &[partial, moments, int(width), int(slices), double(count), double(eps)],
        );
        let wide = x.is_wide() && y.is_wide() && weight.is_aligned() && bias.is_aligned();
        let sizes = [rows, width, groups].map(int);
        let arguments = [x.argument(), moments, weight.argument(), bias.argument(), y.argument()];
        let arguments = [&arguments[..], &sizes, &[flag(silu), flag(wide)]].concat();
        self.launch(Source::NormRows, "group_norm", self.chunks(rows, width), &arguments);
    }
}
