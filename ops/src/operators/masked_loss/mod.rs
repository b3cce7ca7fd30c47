//! `masked-loss`: the preference loss (Diffusion-DPO Eq. 14, FocusDPO Eq. 1 and 10).
//!
//! Shape letters: `B` pairs, `N` rows (`2B`, winners first; `B` for `sft`), `C` channels, `H` `W` latent grid,
//! `h` `w` focus grid.

mod errors;
mod metrics;
mod objective;
#[cfg(test)]
mod tests;

use std::marker::PhantomData;

use dfdx::shapes::{HasShape, Shape};

use self::errors::{Errors, Pull, Sample, squared_on_grid};
pub use self::{
    errors::Reduction,
    objective::{Objective, PairErrors, Term, terms},
};
use super::{
    recorded,
    tensors::{Fixed, same, tensor},
};
use crate::{
    operator::{Cost, Ctx, InGrads, InShapes, OpError, Operator, OutGrads, OutShapes, Wanted},
    port::Scalar,
    ports::{Latents, Mask, MetricDoc, Metrics, MetricsShape, Prediction, Target, Texts, Timesteps},
    role::As,
    row_major::RowMajor,
    settings,
    shape::Axis,
};

/// The beta that MaPO was published with.
const MAPO_BETA: f64 = 0.1;

settings! {
    /// Settings of [`MaskedLoss`].
    pub struct MaskedLossSettings {
        /// Which preference loss, over the errors of winner and loser.
        pub objective: Objective = Objective::Dpo,
        /// How strongly a change of the errors counts. Published values, 500 to 5000, are for `full_mean`; `mapo` takes 0.1.
        pub beta: f64 = 2000.0,
        /// What a sum of squared errors is divided by.
        pub reduction: Reduction = Reduction::FullMean,
        /// Weight of an anchor: half the mean squared distance of policy and reference, over both sides, without the mask.
        pub anchor: f64 = 0.0,
        /// Weight of the winner's plain error, without the mask; where there is a reference, less the reference's, so that the first loss is that of the objective alone.
        pub sft_weight: f64 = 0.0,
        /// Of `cdpo`: the share of flipped labels.
        pub epsilon: f64 = 0.1,
        /// Of `dpop`: the penalty on a winner that gets worse.
        pub lambda: f64 = 5.0,
        /// Of `simpo`: the margin that is asked for.
        pub gamma: f64 = 0.5,
        /// Of `mapo`: the scale s of an error.
        pub mapo_s: f64 = 0.5,
        /// Of `mapo`: the factor T of the margin.
        pub mapo_t: f64 = 1000.0,
        /// Of `dmpo`: the share of preferences that the data may have wrong.
        pub alpha: f64 = 0.01,
    }
}

/// The loss of a batch of predictions. Errors and objective are f64, the gradient f32; the mask, squared, weighs the
/// errors of all four predictions of a pair alike.
pub struct MaskedLoss<C = usize, H = usize, W = usize> {
    settings: MaskedLossSettings,
    axes: Fixed<C, H, W>,
}

/// What [`MaskedLoss`] keeps for its backward.
pub struct SavedLoss<C: Axis, H: Axis, W: Axis> {
    policy: Latents<C, H, W>,
    target: Latents<C, H, W>,
    reference: Option<Latents<C, H, W>>,
    /// Squared masks of the pairs; one for all where there is no mask.
    weights: Vec<Vec<f64>>,
    /// One a row.
    pulls: Vec<Pull>,
}

/// The rows of predictions and targets as samples.
struct PairRows<'a> {
    policy: &'a [f32],
    target: &'a [f32],
    reference: Option<&'a [f32]>,
    weights: &'a [Vec<f64>],
    size: usize,
    batch: usize,
}

impl<'a> PairRows<'a> {
    fn row(&self, row: usize) -> Sample<'a> {
        let at = row * self.size..(row + 1) * self.size;
        Sample {
            policy: &self.policy[at.clone()],
            target: &self.target[at.clone()],
            reference: self.reference.map(|r| &r[at]),
            weight: &self.weights[row % self.batch % self.weights.len()],
        }
    }
}

impl<C: Axis, H: Axis, W: Axis> MaskedLoss<C, H, W> {
    /// Pairs in that many rows.
    fn batch(&self, rows: usize) -> Result<usize, OpError> {
        let objective = self.settings.objective;
        if !objective.is_paired() {
            return Ok(rows);
        }
        if !rows.is_multiple_of(2) {
            return Err(OpError::new(format!(
                "{rows} rows of predictions: objective `{}` wants winners followed by as many losers",
                objective.name()
            )));
        }
        Ok(rows / 2)
    }

    fn check(&self) -> Result<(), OpError> {
        let s = &self.settings;
        let fault = if !(s.beta > 0.0 && s.beta.is_finite()) {
            format!("beta {}: a positive number is needed", s.beta)
        } else if !(s.anchor >= 0.0
            && s.anchor.is_finite()
            && s.sft_weight >= 0.0
            && s.sft_weight.is_finite())
        {
            format!("anchor {} and sft_weight {}: numbers not below 0 are needed", s.anchor, s.sft_weight)
        } else if !(0.0..=0.5).contains(&s.epsilon) {
            format!("epsilon {}: a share of flipped labels in [0, 0.5] is needed", s.epsilon)
        } else if !(s.alpha > 0.0 && s.alpha < 1.0) {
            format!("alpha {}: a share between 0 and 1 is needed", s.alpha)
        } else if ![s.lambda, s.gamma, s.mapo_s, s.mapo_t].iter().all(|x| x.is_finite() && *x >= 0.0) {
            "lambda, gamma, mapo_s and mapo_t must be numbers not below 0".into()
        } else {
            return Ok(());
        };
        Err(OpError::new(fault))
    }

    /// A pair's loss in two parts: what is asked of its errors, and what holds it near the reference.
    fn loss_of_pair(&self, term: &Term, winner: &Errors, loser: &Errors) -> (f64, f64) {
        let s = &self.settings;
        let asked = term.loss + s.sft_weight * winner.plain_difference;
        (asked, 0.5 * s.anchor * (winner.drift + loser.drift))
    }

    /// What the loss does with the errors of a batch: the loss, a pull for every row, and the terms.
    fn loss(&self, rows: &[Errors], batch: usize) -> (f64, Vec<Pull>, Vec<Term>) {
        let s = &self.settings;
        let loser = |i: usize| rows.get(batch + i).copied().unwrap_or_default();
        let pairs: Vec<PairErrors> = (0..batch)
            .map(|i| {
                let (w, l) = (rows[i], loser(i));
                PairErrors {
                    m_w: w.policy,
                    m_l: l.policy,
                    r_w: w.reference,
                    r_l: l.reference,
                    d_w: w.difference,
                    d_l: l.difference,
                }
            })
            .collect();
        let terms = terms(s, &pairs);
        let share = 1.0 / batch as f64;
        let mut loss = 0.0;
        for (i, term) in terms.iter().enumerate() {
            let (asked, held) = self.loss_of_pair(term, &rows[i], &loser(i));
            loss += asked;
            loss += held;
        }
        let pull = |row: usize| {
            let (term, winner) = (terms[row % batch], row < batch);
            Pull {
                policy: share * if winner { term.by_w } else { term.by_l },
                plain: if winner { share * s.sft_weight } else { 0.0 },
                drift: share * 0.5 * s.anchor,
            }
        };
        (loss * share, (0..rows.len()).map(pull).collect(), terms)
    }

    /// The loss of a policy that is the reference: where training begins.
    fn loss_of_reference(&self, rows: &[Errors], batch: usize) -> f64 {
        let same = |e: &Errors| Errors { policy: e.reference, reference: e.reference, ..Errors::default() };
        self.loss(&rows.iter().map(same).collect::<Vec<_>>(), batch).0
    }

    fn metrics(
        &self,
        loss: f64,
        rows: &[Errors],
        terms: &[Term],
        weights: &[Vec<f64>],
        channels: usize,
    ) -> Metrics {
        let s = &self.settings;
        let batch = terms.len();
        let mut m = Metrics::default();
        let of = |side: usize, f: fn(&Errors) -> f64| {
            rows[side * batch..(side + 1) * batch].iter().map(f).collect()
        };
        m.number("loss", loss);
        let pair_loss = |(i, term): (usize, &Term)| {
            let loser = rows.get(batch + i).copied().unwrap_or_default();
            let (asked, held) = self.loss_of_pair(term, &rows[i], &loser);
            asked + held
        };
        m.per_sample("pair_loss", terms.iter().enumerate().map(pair_loss).collect());
        if !s.objective.is_paired() {
            m.per_sample("err_w", of(0, |e| e.policy));
            return m;
        }
        let has_reference = s.objective.needs_reference();
        m.per_sample("logit", terms.iter().map(|t| t.logit).collect());
        m.per_sample("err_w", of(0, |e| e.policy));
        m.per_sample("err_l", of(1, |e| e.policy));
        if has_reference {
            m.per_sample("ref_w", of(0, |e| e.reference));
            m.per_sample("ref_l", of(1, |e| e.reference));
            m.per_sample("w_diff", of(0, |e| e.difference));
            m.per_sample("l_diff", of(1, |e| e.difference));
            m.number("ref_loss", self.loss_of_reference(rows, batch));
        }
        let preferred = |i: usize| {
            let margin = if has_reference {
                rows[batch + i].difference - rows[i].difference
            } else {
                rows[batch + i].policy - rows[i].policy
            };
            if margin == 0.0 { 0.5 } else { f64::from(u8::from(margin > 0.0)) }
        };
        m.number("implicit_acc", (0..batch).map(preferred).sum::<f64>() / batch as f64);
        m.per_sample("gradient_factor", terms.iter().map(|t| t.pull).collect());
        // The beta that would give these logits if errors were means over the masked cells.
        let effective = |i: usize| {
            let weight = &weights[i % weights.len()];
            let masked = Reduction::MaskMean.divisor(channels, weight);
            let divisor = s.reduction.divisor(channels, weight);
            if divisor > 0.0 { s.beta * masked / divisor } else { 0.0 }
        };
        m.per_sample("beta_effective", (0..batch).map(effective).collect());
        m
    }
}

/// Names a sample: its number, its id and its time, as far as they are known.
fn name_of(sample: usize, ids: Option<&Texts>, time: Option<&Timesteps>) -> String {
    let id = ids.and_then(|ids| ids.0.get(sample)).map_or(String::new(), |id| format!(" (`{id}`)"));
    let time = time.and_then(|t| t.values.get(sample)).map_or(String::new(), |t| format!(" at time {t}"));
    format!("sample {sample}{id}{time}")
}

impl<C: Axis, H: Axis, W: Axis> Operator for MaskedLoss<C, H, W> {
    const NAME: &'static str = "masked-loss";
    const DOC: &'static str = "The preference loss of predictions, winners first: Diffusion-DPO without a mask, \
                               FocusDPO (Eq. 10) with one; the objective and the reduction are settings.";
    const IN: [&'static str; 6] = ["policy", "target", "reference", "mask", "t", "ids"];
    const OUT: [&'static str; 2] = ["loss", "metrics"];
    const METRICS: &'static [MetricDoc] = &metrics::DOCS;
    type Settings = MaskedLossSettings;
    type In = (
        Prediction<C, H, W>,
        Target<C, H, W>,
        Option<Prediction<C, H, W>>,
        Option<Mask>,
        Option<Timesteps>,
        Option<Texts>,
    );
    type Out = (Scalar, Metrics);
    type Saved = SavedLoss<C, H, W>;
    const DIFFERENTIABLE: bool = true;

    fn new(settings: MaskedLossSettings) -> Result<Self, OpError> {
        let op = Self { settings, axes: PhantomData };
        op.check()?;
        Ok(op)
    }

    fn shapes(
        &self,
        (policy, target, reference, mask, time, ids): InShapes<Self>,
        _: usize,
    ) -> Result<OutShapes<Self>, OpError> {
        let (rows, _, height, width) = policy;
        same("`target`", target.concrete(), "`policy`", policy.concrete())?;
        if let Some(reference) = reference {
            same("`reference`", reference.concrete(), "`policy`", policy.concrete())?;
        } else if self.settings.objective.needs_reference() || self.settings.anchor > 0.0 {
            let objective = self.settings.objective;
            let or = if objective.needs_reference() { "" } else { ", or set `anchor` to 0" };
            return Err(OpError::new(format!(
                "objective `{}` with anchor {} compares with the frozen network: connect `reference`{or}",
                objective.name(),
                self.settings.anchor
            )));
        }
        let batch = self.batch(rows)?;
        let wrong = |what: &str, found: usize| {
            let hint = if !self.settings.objective.is_paired() && 2 * found == rows {
                "; for `sft` every row is a winner: the noise node must not read `x0_l`, as in graphs/sft.ron (`in: (x0_l: None)`)"
            } else {
                ""
            };
            OpError::new(format!("`{what}` has {found} samples, the loss {batch}{hint}"))
        };
        if let Some((found, _, h, w)) = mask {
            if found != batch {
                return Err(wrong("mask", found));
            }
            let (height, width) = (height.size(), width.size());
            if h == 0 || w == 0 || height % h != 0 || width % w != 0 || height / h != width / w {
                return Err(OpError::new(format!(
                    "a mask of {w} x {h} cells (width x height) does not cover latents of {width} x {height} in whole squares"
                )));
            }
        }
        if let Some(time) = time.filter(|t| t.batch != batch && t.batch != rows) {
            return Err(wrong("t", time.batch));
        }
        if let Some(ids) = ids.filter(|i| i.batch != batch) {
            return Err(wrong("ids", ids.batch));
        }
        Ok(((), MetricsShape))
    }

    fn cost(&self, (policy, ..): &InShapes<Self>, _: &OutShapes<Self>) -> Cost {
        let n = policy.num_elements() as f64;
        Cost {
            forward_flops: 12.0 * n,
            backward_flops: 6.0 * n,
            moved_bytes: 12.0 * n,
            scratch_bytes: 3 * policy.num_elements() * size_of::<f32>(),
            ..Cost::default()
        }
    }

    fn notes(&self, (policy, _, _, mask, ..): &InShapes<Self>) -> Vec<String> {
        let s = &self.settings;
        let values = (policy.1.size() * policy.2.size() * policy.3.size()) as f64;
        if s.objective == Objective::Mapo {
            let far = s.beta > 10.0 * MAPO_BETA;
            return far
                .then(|| format!("beta {} weighs the preference of `mapo` against an error of about 1: its published value is {MAPO_BETA}", s.beta))
                .into_iter()
                .collect();
        }
        match (s.objective.is_paired(), s.reduction) {
            (false, _) => Vec::new(),
            (true, Reduction::Sum) => {
                vec![format!(
                    "beta {} on squared norms is beta {} on means over {values} values",
                    s.beta,
                    s.beta * values
                )]
            }
            (true, Reduction::FullMean) => vec![format!(
                "beta {} on means over {values} values is beta {:.3e} on squared norms{}",
                s.beta,
                s.beta / values,
                if mask.is_some() { "; a mask scales the logit by its area" } else { "" }
            )],
            (true, Reduction::MaskMean) => vec![format!("beta {} on means over the masked cells", s.beta)],
        }
    }

    fn forward(
        &self,
        ctx: &Ctx<'_>,
        (As(_, policy), As(_, target), reference, mask, time, ids): Self::In,
    ) -> Result<(Self::Out, Self::Saved), OpError> {
        let reference = reference.map(|As(_, reference)| reference);
        let &(rows, channels, height, width) = HasShape::shape(&policy);
        let (channels, grid) = (channels.size(), (height.size(), width.size()));
        let batch = self.batch(rows)?;
        let weights: Vec<Vec<f64>> = match &mask {
            None => vec![vec![1.0; grid.0 * grid.1]],
            Some(mask) => {
                let &(_, _, h, w) = HasShape::shape(mask);
                mask.row_major().chunks_exact(h * w).map(|m| squared_on_grid(m, w, grid)).collect()
            }
        };
        let (p, t, r) = (policy.row_major(), target.row_major(), reference.as_ref().map(|r| r.row_major()));
        let size = channels * grid.0 * grid.1;
        let all =
            PairRows { policy: &p, target: &t, reference: r.as_deref(), weights: &weights, size, batch };
        let errors: Vec<Errors> = (0..rows).map(|row| all.row(row).errors(self.settings.reduction)).collect();
        for (row, e) in errors.iter().enumerate() {
            for (what, value) in
                [("policy", e.policy), ("reference", e.reference), ("unmasked policy", e.plain)]
            {
                if !value.is_finite() {
                    let side = if row < batch { "winner" } else { "loser" };
                    let sample = name_of(row % batch, ids.as_ref(), time.as_ref());
                    let what = format!("{sample}: the {what}'s error on the {side} is {value}");
                    return Err(match all.row(row).given() {
                        // What is given is no fault of what is trained.
                        Some(given) => {
                            OpError::new(format!("{what}: {given} holds values that are not finite"))
                        }
                        None => OpError::not_finite(ctx.step, what),
                    });
                }
            }
        }
        let (loss, pulls, terms) = self.loss(&errors, batch);
        let mut metrics = self.metrics(loss, &errors, &terms, &weights, channels);
        if mask.is_some() {
            if reference.is_some() && self.settings.objective.needs_reference() {
                let plain = |side: usize| errors[side * batch..(side + 1) * batch].iter();
                metrics.per_sample("plain_w_diff", plain(0).map(|e| e.plain_difference).collect());
                metrics.per_sample("plain_l_diff", plain(1).map(|e| e.plain_difference).collect());
            }
            let empty = weights.iter().filter(|w| w.iter().all(|x| *x == 0.0)).count();
            metrics.number("empty_mask", empty as f64);
        }
        let times = time.as_ref().map(|time| (time.process, &time.values[..batch]));
        recorded::record(&mut metrics, times, ids.as_ref());
        let loss = tensor(ctx, (), vec![loss as f32])?;
        Ok(((loss, metrics), SavedLoss { policy, target, reference, weights, pulls }))
    }

    fn backward(
        &self,
        ctx: &Ctx<'_>,
        wanted: Wanted<'_>,
        saved: Self::Saved,
        (loss, _): OutGrads<Self>,
    ) -> Result<InGrads<Self>, OpError> {
        let nothing = (None, None, None, None, None, None);
        if wanted[1] || wanted[2] {
            return Err(OpError::new(
                "the loss gives no gradient into `target` and `reference`: both are constants",
            ));
        }
        let Some(scale) = loss.filter(|_| wanted[0]).map(|g| f64::from(g.row_major()[0])) else {
            return Ok(nothing);
        };
        let shape @ (rows, ..) = *HasShape::shape(&saved.policy);
        let (p, t) = (saved.policy.row_major(), saved.target.row_major());
        let r = saved.reference.as_ref().map(|r| r.row_major());
        let all = PairRows {
            policy: &p,
            target: &t,
            reference: r.as_deref(),
            weights: &saved.weights,
            size: p.len() / rows,
            batch: self.batch(rows)?,
        };
        let mut grad = Vec::with_capacity(p.len());
        for (row, pull) in saved.pulls.iter().enumerate() {
            let pull =
                Pull { policy: scale * pull.policy, plain: scale * pull.plain, drift: scale * pull.drift };
            all.row(row).gradient(self.settings.reduction, pull, &mut grad);
        }
        Ok((Some(tensor(ctx, shape, grad)?), None, None, None, None, None))
    }
}
