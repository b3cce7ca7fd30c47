//! `weighted-loss`: PatchDPO's loss as released: a weighted error, without a reference network and without a sigmoid.
//!
//! Shape letters: `B` batch, `C` channels, `H` `W` latent grid of the generated picture, `P` `Q` of the reference
//! picture, `h` `w` and `p` `q` their patches.

use dfdx::shapes::{HasShape, Shape};

use super::{
    recorded,
    tensors::{dims, same, tensor},
};
use crate::{
    inputs::Inputs,
    operator::{Cost, Ctx, InGrads, InShapes, OpError, Operator, OutGrads, OutShapes, Wanted},
    port::Scalar,
    ports::{Latents, Mask, MetricDoc, Metrics, MetricsShape, Prediction, Quality, Target, Texts, Timesteps},
    role::As,
    row_major::RowMajor,
    settings::Nothing,
};

/// The sum of `q e^2` over the generated picture and of `(1 - q) e^2` over the reference picture, divided by the
/// number of all their elements: patches that were generated well are learned, patches of the reference that were
/// not found are learned more.
pub struct WeightedLoss;

/// One of the two passes.
#[derive(Clone)]
struct Pass {
    policy: Latents,
    target: Latents,
    /// One a latent cell, sample after sample.
    weights: Vec<f32>,
}

/// What [`WeightedLoss`] keeps for its backward.
pub struct SavedPasses([Pass; 2]);

type Grid = (usize, usize, usize, usize);

fn check(what: &str, policy: Grid, target: Grid, patches: (usize, usize, usize)) -> Result<(), OpError> {
    same(&format!("the target of the {what} pass"), target, "its prediction", policy)?;
    same(
        &format!("the batch of the {what} pass's qualities"),
        patches.0,
        "that of its prediction",
        policy.0,
    )?;
    let ((rows, columns), (h, w)) = ((policy.2, policy.3), (patches.1, patches.2));
    if h == 0 || w == 0 || rows % h != 0 || columns % w != 0 || rows / h != columns / w {
        return Err(OpError::new(format!(
            "the {what} pass: {w} x {h} patches (width x height) do not cover latents of {columns} x {rows} in whole squares"
        )));
    }
    Ok(())
}

impl Pass {
    fn new(
        As(_, policy): Prediction,
        As(_, target): Target,
        quality: &Mask,
        weight: impl Fn(f32) -> f32,
    ) -> Self {
        let &(_, _, rows, columns) = HasShape::shape(&policy);
        let &(_, _, h, w) = HasShape::shape(quality);
        let factor = rows / h;
        let mut weights = Vec::new();
        for patches in quality.row_major().chunks_exact(h * w) {
            for y in 0..rows {
                weights.extend((0..columns).map(|x| weight(patches[y / factor * w + x / factor])));
            }
        }
        Self { policy, target, weights }
    }

    /// For every sample, the weighted sum of squares; the error names a sample that is not finite.
    fn sums(&self) -> Result<Vec<f64>, usize> {
        let d = dims(&self.policy);
        let (size, cells) = (d[1] * d[2] * d[3], d[2] * d[3]);
        let (p, t) = (self.policy.row_major(), self.target.row_major());
        let sample = |b: usize| {
            let pairs = p[b * size..(b + 1) * size].iter().zip(&t[b * size..(b + 1) * size]).enumerate();
            let sum: f64 = pairs
                .map(|(i, (p, t))| {
                    let error = f64::from(*p) - f64::from(*t);
                    f64::from(self.weights[b * cells + i % cells]) * error * error
                })
                .sum();
            if sum.is_finite() { Ok(sum) } else { Err(b) }
        };
        (0..d[0]).map(sample).collect()
    }

    /// Are a sample's target and weights, which are given, finite?
    fn is_given(&self, sample: usize) -> bool {
        let finite = |values: &[f32]| {
            let each = values.len() / dims(&self.policy)[0];
            values[sample * each..(sample + 1) * each].iter().all(|v| v.is_finite())
        };
        finite(&self.target.row_major()) && finite(&self.weights)
    }

    fn elements(&self) -> usize {
        HasShape::shape(&self.policy).num_elements()
    }

    fn gradient(&self, ctx: &Ctx<'_>, scale: f64) -> Result<Latents, OpError> {
        let d = dims(&self.policy);
        let (size, cells) = (d[1] * d[2] * d[3], d[2] * d[3]);
        let (p, t) = (self.policy.row_major(), self.target.row_major());
        let by = p.iter().zip(&t).enumerate().map(|(i, (p, t))| {
            let weight = f64::from(self.weights[i / size * cells + i % cells]);
            (scale * weight * (f64::from(*p) - f64::from(*t))) as f32
        });
        tensor(ctx, *HasShape::shape(&self.policy), by.collect())
    }
}

impl Operator for WeightedLoss {
    const NAME: &'static str = "weighted-loss";
    const DOC: &'static str = "PatchDPO as released: squared errors of the generated picture weighted by its patches' \
                               quality, and of the reference picture by one less the quality, over all elements.";
    const IN: [&'static str; 8] =
        ["policy", "target", "q_gen", "policy_ref", "target_ref", "q_ref", "t", "ids"];
    const OUT: [&'static str; 2] = ["loss", "metrics"];
    const METRICS: &'static [MetricDoc] = &[
        MetricDoc::number(
            "loss",
            "What is differentiated: weighted squared errors over all elements of both passes.",
        ),
        MetricDoc::per_sample(
            "err_gen",
            "Squared error on the generated picture, weighted by its patches' quality.",
        ),
        MetricDoc::per_sample(
            "err_ref",
            "Squared error on the reference picture, weighted by one less the quality of its patches.",
        ),
        MetricDoc::per_sample(
            "quality_gen",
            "Mean quality of the generated picture's patches: the cosine with their best match in the reference, at most 1.",
        ),
        MetricDoc::per_sample(
            "quality_ref",
            "Mean quality of the reference's patches: how well the generated picture has them.",
        ),
        recorded::SIGMA,
        recorded::TIMESTEP,
        recorded::ID,
    ];
    type Settings = Nothing;
    type In = (Prediction, Target, Quality, Prediction, Target, Quality, Option<Timesteps>, Option<Texts>);
    type Out = (Scalar, Metrics);
    type Saved = SavedPasses;
    const DIFFERENTIABLE: bool = true;

    fn new(_: Nothing) -> Result<Self, OpError> {
        Ok(Self)
    }

    fn shapes(
        &self,
        (policy, target, q_gen, policy_ref, target_ref, q_ref, time, ids): InShapes<Self>,
        _: usize,
    ) -> Result<OutShapes<Self>, OpError> {
        check("generated", policy, target, (q_gen.0, q_gen.2, q_gen.3))?;
        check("reference", policy_ref, target_ref, (q_ref.0, q_ref.2, q_ref.3))?;
        same("the batch of the reference pass", policy_ref.0, "that of the generated pass", policy.0)?;
        if let Some(time) = time {
            same("the batch of t", time.batch, "that of the generated pass", policy.0)?;
        }
        if let Some(ids) = ids {
            same("the number of ids", ids.batch, "the batch of the generated pass", policy.0)?;
        }
        Ok(((), MetricsShape))
    }

    fn cost(&self, (policy, _, _, policy_ref, ..): &InShapes<Self>, _: &OutShapes<Self>) -> Cost {
        let n = (policy.num_elements() + policy_ref.num_elements()) as f64;
        Cost { forward_flops: 4.0 * n, backward_flops: 3.0 * n, moved_bytes: 8.0 * n, ..Cost::default() }
    }

    fn forward(
        &self,
        ctx: &Ctx<'_>,
        (policy, target, As(_, q_gen), policy_ref, target_ref, As(_, q_ref), time, ids): Self::In,
    ) -> Result<(Self::Out, SavedPasses), OpError> {
        let passes = [
            Pass::new(policy, target, &q_gen, |q| q),
            Pass::new(policy_ref, target_ref, &q_ref, |q| 1.0 - q),
        ];
        let mut metrics = Metrics::default();
        let mut total = 0.0;
        let elements: usize = passes.iter().map(Pass::elements).sum();
        let mut errors = Vec::new();
        for (pass, name) in passes.iter().zip(["err_gen", "err_ref"]) {
            let sums = pass.sums().map_err(|sample| {
                let id = ids.as_ref().and_then(|i| i.0.get(sample)).map_or("", String::as_str);
                let t = time.as_ref().and_then(|t| t.values.get(sample)).copied().unwrap_or(f32::NAN);
                let what = format!("sample {sample} (`{id}`) at time {t}: {name} is not finite");
                // A target or a quality that is not finite is no fault of what is trained.
                match pass.is_given(sample) {
                    true => OpError::not_finite(ctx.step, what),
                    false => OpError::new(format!(
                        "{what}: its target or its quality holds values that are not finite"
                    )),
                }
            })?;
            total += sums.iter().sum::<f64>();
            let each = pass.elements() as f64 / sums.len() as f64;
            errors.push((name, sums.into_iter().map(|s| s / each).collect()));
        }
        let loss = total / elements as f64;
        metrics.number("loss", loss);
        errors.into_iter().for_each(|(name, values)| metrics.per_sample(name, values));
        for (name, quality) in [("quality_gen", &q_gen), ("quality_ref", &q_ref)] {
            let &(batch, ..) = HasShape::shape(quality);
            let values = quality.row_major();
            let mean = |m: &[f32]| m.iter().map(|v| f64::from(*v)).sum::<f64>() / m.len() as f64;
            metrics.per_sample(name, values.chunks_exact(values.len() / batch).map(mean).collect());
        }
        let times = time.as_ref().map(|time| (time.process, &time.values[..]));
        recorded::record(&mut metrics, times, ids.as_ref());
        Ok(((tensor(ctx, (), vec![loss as f32])?, metrics), SavedPasses(passes)))
    }

    fn backward(
        &self,
        ctx: &Ctx<'_>,
        wanted: Wanted<'_>,
        SavedPasses(passes): SavedPasses,
        (loss, _): OutGrads<Self>,
    ) -> Result<InGrads<Self>, OpError> {
        if let Some(other) = [1, 2, 4, 5].into_iter().find(|i| wanted[*i]) {
            return Err(OpError::new(format!(
                "the loss gives no gradient into `{}`: it is a constant",
                Self::IN[other]
            )));
        }
        let Some(loss) = loss else { return Ok(Self::In::no_grads()) };
        let elements: usize = passes.iter().map(Pass::elements).sum();
        let scale = 2.0 * f64::from(loss.row_major()[0]) / elements as f64;
        let by =
            |pass: usize, input: usize| wanted[input].then(|| passes[pass].gradient(ctx, scale)).transpose();
        Ok((by(0, 0)?, None, None, by(1, 3)?, None, None, None, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        operators::testing::{Bench, latents, mask_of},
        testing::GradientCheck,
    };

    #[test]
    fn the_gradient_is_that_of_finite_differences() {
        let bench = Bench::new();
        let ctx = bench.ctx();
        let (shape, small) = ((2, 3, 4, 4), (2, 3, 2, 2));
        let q_gen = mask_of(&ctx, (2, 2, 2), &[0.5, 1.0, -0.25, 0.0, 0.1, 0.2, 0.3, 0.4]);
        let q_ref = mask_of(&ctx, (2, 1, 1), &[0.25, 0.75]);
        let (generated, reference) = (latents(&ctx, shape, 1), latents(&ctx, small, 2));
        let targets = (latents(&ctx, shape, 3), latents(&ctx, small, 4));
        let inputs = (generated, targets.0, q_gen, reference, targets.1, q_ref, None, None);
        GradientCheck::default().inputs(&["policy", "policy_ref"]).run(&WeightedLoss, inputs).unwrap();
    }
}
