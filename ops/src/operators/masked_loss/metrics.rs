//! Documentation of the metrics of `masked-loss`.

use super::super::recorded::{ID, SIGMA, TIMESTEP};
use crate::ports::MetricDoc;

/// In the order in which they are recorded.
pub(super) const DOCS: [MetricDoc; 19] = [
    MetricDoc::number(
        "loss",
        "What is differentiated: the mean over the batch. `dpo` starts at ln 2 = 0.693.",
    ),
    MetricDoc::per_sample("pair_loss", "The loss of each pair of the batch; `loss` is their mean."),
    MetricDoc::per_sample(
        "logit",
        "What goes into the sigmoid; of `dpo`, beta/2 times the margin l_diff - w_diff. 0 while policy and reference agree (of `simpo` and `mapo` there is no reference); \
         beyond about 4 a pair hardly pulls any more.",
    ),
    MetricDoc::per_sample(
        "err_w",
        "The policy's error on the winner, under the mask and reduced as `reduction` says.",
    ),
    MetricDoc::per_sample("err_l", "The policy's error on the loser, likewise."),
    MetricDoc::per_sample("ref_w", "The frozen network's error on the winner, likewise."),
    MetricDoc::per_sample("ref_l", "The frozen network's error on the loser, likewise."),
    MetricDoc::per_sample(
        "w_diff",
        "err_w - ref_w, summed without cancellation. Below 0 the winner has become more likely: what training is for. Above 0 it \
         has become less likely, whatever the accuracy says.",
    ),
    MetricDoc::per_sample("l_diff", "err_l - ref_l, likewise. Above 0 the loser has become less likely."),
    MetricDoc::number(
        "ref_loss",
        "The loss that a policy equal to the frozen network would have: where training begins, e.g. ln 2 of `dpo`.",
    ),
    MetricDoc::number(
        "implicit_acc",
        "Share of the batch whose margin l_diff - w_diff is above 0, ties counted as a half: 0.5 at the first step. It says \
         nothing of which side moved. Of an objective without a reference the margin is err_l - err_w, and it begins elsewhere.",
    ),
    MetricDoc::per_sample(
        "gradient_factor",
        "How strongly a pair still pulls: the slope of its loss by the logit, which is sigmoid(-logit) of `dpo`, `dpop`, `simpo` and `mapo`. `ipo`, `cdpo`, \
         `dmpo` and `hinge` are at 0 where the pair is where they want it: of `ipo` it is the distance to that margin, a half at the first step, and \
         `hinge` pulls with 1 or not at all. Of `kto` it is the sum of both sides.",
    ),
    MetricDoc::per_sample(
        "beta_effective",
        "The beta that would give the same logit if errors were means over the masked cells: beta times the share that the mask \
         leaves under `full_mean`. Of `mapo`, whose logit has no beta, it says nothing.",
    ),
    MetricDoc::per_sample(
        "plain_w_diff",
        "w_diff of the whole picture, without the mask: above 0 the picture gets worse where the mask does not look.",
    ),
    MetricDoc::per_sample("plain_l_diff", "l_diff of the whole picture, without the mask."),
    MetricDoc::number(
        "empty_mask",
        "Samples of the batch whose mask is 0 everywhere: their preference gives no gradient. `anchor` and `sft_weight`, which are unmasked, still do.",
    ),
    SIGMA,
    TIMESTEP,
    ID,
];
