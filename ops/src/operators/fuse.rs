//! `fuse`: the focus mask (FocusDPO, Eq. 9 and 11, and the ablations).
//!
//! Shape letters: `B` batch, `h` `w` focus grid.

use dfdx::shapes::{Const, HasShape, Shape};

use super::tensors::{mask, same, tensor};
use crate::{
    choices,
    operator::{Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{Detail, Mask, MetricDoc, Metrics, MetricsShape, PerSample, Prior, Structure},
    role::As,
    row_major::RowMajor,
    settings,
};

choices! {
    /// Which masks make the focus mask.
    pub enum Mode {
        /// Eq. 9: the structure while much of the subject is not found, then a blend with the detail.
        Adaptive = "adaptive",
        /// M_s alone.
        Structure = "structure",
        /// M_d alone.
        Detail = "detail",
        /// M_d inside the prior.
        DetailInPrior = "detail_in_prior",
        /// The prior alone.
        Prior = "prior",
    }
}

settings! {
    /// Settings of [`Fuse`].
    pub struct FuseSettings {
        /// Which masks make the focus mask; those it does not name need not be connected.
        pub mode: Mode = Mode::Adaptive,
        /// Of `adaptive`: a coverage above this keeps the structure mask alone.
        pub tau: f64 = 0.1,
        /// Of `adaptive`: the share of the structure mask in the blend.
        pub gamma: f64 = 0.3,
        /// Of `adaptive`: is detail kept inside the prior (Eq. 9) or not (Eq. 11)?
        pub constrain: bool = true,
    }
}

/// The focus mask `M`, and the coverage: the share of the prior that was not found.
pub struct Fuse(FuseSettings);

/// Sum of a mask's cells, in f64.
fn area(mask: &[f32]) -> f64 {
    mask.iter().map(|m| f64::from(*m)).sum()
}

impl Fuse {
    fn needs(&self) -> (bool, bool) {
        let structure = matches!(self.0.mode, Mode::Adaptive | Mode::Structure);
        (structure, !matches!(self.0.mode, Mode::Structure | Mode::Prior))
    }

    /// The mask of one sample, and whether it is a blend.
    fn sample(&self, structure: &[f32], detail: &[f32], prior: &[f32], coverage: f64) -> (Vec<f32>, bool) {
        let product = || detail.iter().zip(prior).map(|(d, p)| d * p).collect();
        match self.0.mode {
            Mode::Structure => (structure.to_vec(), false),
            Mode::Detail => (detail.to_vec(), false),
            Mode::DetailInPrior => (product(), false),
            Mode::Prior => (prior.to_vec(), false),
            Mode::Adaptive if coverage > self.0.tau => (structure.to_vec(), false),
            Mode::Adaptive => {
                let detail: Vec<f32> = if self.0.constrain { product() } else { detail.to_vec() };
                let (keep, rest) = (self.0.gamma as f32, (1.0 - self.0.gamma) as f32);
                (structure.iter().zip(&detail).map(|(s, d)| keep * s + rest * d).collect(), true)
            }
        }
    }
}

impl Operator for Fuse {
    const NAME: &'static str = "fuse";
    const DOC: &'static str = "The focus mask: M_s while coverage is above tau, else a blend of M_s and M_d \
                               (FocusDPO, Eq. 9). A sample without a prior gets ones, which is plain DPO.";
    const IN: [&'static str; 4] = ["structure", "detail", "prior", "has_prior"];
    const OUT: [&'static str; 3] = ["mask", "coverage", "metrics"];
    const METRICS: &'static [MetricDoc] = &[
        MetricDoc::per_sample(
            "coverage",
            "Share of the subject's cells that the policy has *not* found (the paper's A): 0 is all found, 1 is none. It grows with \
             the time sigma.",
        ),
        MetricDoc::per_sample(
            "fused",
            "1 where the coverage is at most tau, so that detail is blended in; 0 where the structure mask is used alone, or none of both: in `mode: \
             detail`, and of samples without a prior.",
        ),
        MetricDoc::per_sample(
            "mask_mean",
            "Mean of the focus mask over all cells: 1 is the whole picture, 0 is no gradient of the preference.",
        ),
        MetricDoc::per_sample(
            "prior_mean",
            "Mean of the prior over all cells: the share of the picture that its subjects occupy.",
        ),
        MetricDoc::number(
            "without_prior",
            "Samples of the batch without a prior: their mask is 1 everywhere, which is plain DPO.",
        ),
    ];
    type Settings = FuseSettings;
    type In = (Option<Structure>, Option<Detail>, Prior, Option<PerSample>);
    type Out = (Mask, PerSample, Metrics);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(s: FuseSettings) -> Result<Self, OpError> {
        if !(0.0..=1.0).contains(&s.tau) || !(0.0..=1.0).contains(&s.gamma) {
            return Err(OpError::new(format!("tau {} and gamma {}: both must be in [0, 1]", s.tau, s.gamma)));
        }
        Ok(Self(s))
    }

    fn shapes(
        &self,
        (structure, detail, prior, has_prior): InShapes<Self>,
        _: usize,
    ) -> Result<OutShapes<Self>, OpError> {
        for (name, needed, found) in
            [("structure", self.needs().0, structure), ("detail", self.needs().1, detail)]
        {
            match found {
                Some(found) => same(&format!("`{name}`"), found.concrete(), "`prior`", prior.concrete())?,
                None if needed => {
                    return Err(OpError::new(format!(
                        "mode `{}` needs the input `{name}`",
                        self.0.mode.name()
                    )));
                }
                None => {}
            }
        }
        if let Some((batch,)) = has_prior {
            same("the batch of `has_prior`", batch, "that of `prior`", prior.0)?;
        }
        Ok((prior, (prior.0,), MetricsShape))
    }

    fn forward(
        &self,
        ctx: &Ctx<'_>,
        (structure, detail, As(_, prior), has_prior): Self::In,
    ) -> Result<(Self::Out, ()), OpError> {
        let &(batch, Const, height, width) = HasShape::shape(&prior);
        let cells = height * width;
        let covered = structure.is_some();
        let prior = prior.row_major();
        let values = |mask: Option<Mask>| mask.map_or_else(|| vec![0.0; prior.len()], |m| m.row_major());
        let (structure, detail) = (values(structure.map(|As(_, s)| s)), values(detail.map(|As(_, d)| d)));
        let has_prior = has_prior.map_or_else(|| vec![1.0; batch], |h| h.row_major());
        let (mut out, mut coverages) = (Vec::with_capacity(batch * cells), Vec::with_capacity(batch));
        let [mut fused, mut means, mut priors] = [(); 3].map(|()| Vec::with_capacity(batch));
        for (b, has_prior) in has_prior.iter().enumerate() {
            let at = b * cells..(b + 1) * cells;
            let (structure, prior) = (&structure[at.clone()], &prior[at.clone()]);
            let whole = area(prior);
            let coverage = match whole > 0.0 {
                true if covered => area(structure) / whole,
                true => 1.0,
                false => 0.0,
            };
            let (mask, blend) = if *has_prior > 0.0 {
                self.sample(structure, &detail[at], prior, coverage)
            } else {
                (vec![1.0; cells], false)
            };
            means.push(area(&mask) / cells as f64);
            priors.push(whole / cells as f64);
            fused.push(f64::from(u8::from(blend)));
            coverages.push(coverage);
            out.extend(mask);
        }
        let coverage = tensor(ctx, (batch,), coverages.iter().map(|c| *c as f32).collect())?;
        let mut metrics = Metrics::default();
        if covered {
            metrics.per_sample("coverage", coverages);
        }
        metrics.per_sample("fused", fused);
        metrics.per_sample("mask_mean", means);
        metrics.per_sample("prior_mean", priors);
        metrics.number("without_prior", has_prior.iter().filter(|h| **h == 0.0).count() as f64);
        Ok(((mask(ctx, (batch, height, width), out)?, coverage, metrics), ()))
    }
}

#[cfg(test)]
mod tests {
    use prefgraph_nn::files::TensorFiles;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        operators::{
            hook_attention::HookAttention,
            mask_field::MaskField,
            testing::{Bench, case, mask_of, worst},
        },
        ports::{List, Metric, Scores},
    };

    fn fuse(settings: FuseSettings) -> Fuse {
        Fuse::new(settings).unwrap()
    }

    /// From golden scores to the focus mask.
    #[test]
    fn focus_masks_and_coverage_are_those_of_the_golden_cases() {
        let bench = Bench::new();
        let ctx = bench.ctx();
        for (name, references) in [("flux_uno", 1), ("flux_uno_multi", 2)] {
            let files = TensorFiles::open(&case(name).join("forward.safetensors")).unwrap();
            let dims = files.info("m_prior").unwrap().shape.clone();
            let shape = (dims[0], dims[2], dims[3]);
            let golden = |name: &str| mask_of(&ctx, shape, &files.read(name).unwrap());
            let scores: Vec<Scores> = (0..references)
                .map(|r| {
                    let scores = files.read(&format!("scores.ref{r}")).unwrap();
                    tensor(&ctx, (dims[0], dims[2] * dims[3]), scores).unwrap()
                })
                .collect();
            let priors = List((0..references).map(|r| golden(&format!("m_prior{r}"))).collect());
            let ((matched,), ()) = HookAttention.forward(&ctx, (List(scores), priors.clone())).unwrap();
            let ((structure, prior), ()) = MaskField.forward(&ctx, (Some(matched), priors)).unwrap();
            assert_eq!(structure.as_vec(), golden("m_s").as_vec(), "{name}");
            assert_eq!(prior.as_vec(), golden("m_prior").as_vec(), "{name}");
            for (tau, expected) in [(0.1, "m_tau01"), (0.9, "m_tau09")] {
                let op = fuse(FuseSettings { tau, ..Default::default() });
                let inputs = (Some(structure.clone()), Some(golden("m_d").into()), prior.clone(), None);
                let ((mask, coverage, metrics), ()) = op.forward(&ctx, inputs).unwrap();
                assert!(worst(&mask.as_vec(), &golden(expected).as_vec()) < 1e-6, "{name} {expected}");
                assert!(worst(&coverage.as_vec(), &files.read("coverage").unwrap()) < 1e-6, "{name}");
                assert!(metrics.get("coverage").is_some());
            }
        }
    }

    #[test]
    fn every_mode_is_what_it_says() {
        let bench = Bench::new();
        let ctx = bench.ctx();
        let m = |v: &[f32]| -> Mask { mask_of(&ctx, (1, 1, 4), v) };
        let (s, d, p) = (m(&[1., 0., 0., 0.]), m(&[0.5, 1., 0., 0.25]), m(&[1., 1., 1., 0.]));
        let run = |settings: FuseSettings| {
            let inputs = (Some(s.clone().into()), Some(d.clone().into()), p.clone().into(), None);
            fuse(settings).forward(&ctx, inputs).unwrap().0.0.as_vec()
        };
        let mode = |mode| run(FuseSettings { mode, ..Default::default() });
        assert_eq!(mode(Mode::Structure), s.as_vec());
        assert_eq!(mode(Mode::Detail), d.as_vec());
        assert_eq!(mode(Mode::DetailInPrior), [0.5, 1., 0., 0.]);
        assert_eq!(mode(Mode::Prior), p.as_vec());
        assert_eq!(mode(Mode::Adaptive), s.as_vec());
        let blend = FuseSettings { tau: 0.5, gamma: 0.5, ..Default::default() };
        assert_eq!(run(blend.clone()), [0.75, 0.5, 0., 0.]);
        assert_eq!(run(FuseSettings { constrain: false, ..blend }), [0.75, 0.5, 0., 0.125]);
    }

    #[test]
    fn a_sample_without_a_prior_is_plain_dpo_and_is_counted() {
        let bench = Bench::new();
        let ctx = bench.ctx();
        let m = |v: &[f32]| -> Mask { mask_of(&ctx, (2, 1, 2), v) };
        let has_prior = tensor(&ctx, (2,), vec![1.0, 0.0]).unwrap();
        let (structure, detail) = (m(&[1., 0., 0., 0.]).into(), m(&[0.; 4]).into());
        let inputs = (Some(structure), Some(detail), m(&[1.; 4]).into(), Some(has_prior));
        let ((mask, _, metrics), ()) = fuse(FuseSettings::default()).forward(&ctx, inputs).unwrap();
        assert_eq!(mask.as_vec(), [1., 0., 1., 1.]);
        assert_eq!(metrics.get("without_prior").unwrap().mean(), Some(1.0));
    }

    #[test]
    fn the_shares_of_the_picture_are_those_of_the_mask_and_of_the_prior() {
        let bench = Bench::new();
        let ctx = bench.ctx();
        let m = |v: &[f32]| -> Mask { mask_of(&ctx, (2, 1, 4), v) };
        let structure = m(&[1., 0., 0., 0., 0., 0., 0., 0.]);
        let prior = m(&[1., 1., 1., 0., 1., 0., 0., 0.]);
        let op = fuse(FuseSettings { mode: Mode::Structure, ..Default::default() });
        let inputs = (Some(structure.into()), None, prior.into(), None);
        let ((_, _, metrics), ()) = op.forward(&ctx, inputs).unwrap();
        let shares = |name: &str| metrics.get(name).cloned();
        assert_eq!(shares("mask_mean"), Some(Metric::PerSample(vec![0.25, 0.0])));
        assert_eq!(shares("prior_mean"), Some(Metric::PerSample(vec![0.75, 0.25])));
    }

    #[test]
    fn a_mode_names_the_input_it_lacks() {
        let prior = (1, Const::<1>, 2, 2);
        let error = fuse(FuseSettings::default()).shapes((None, None, prior, None), 0).unwrap_err();
        assert!(error.to_string().contains("`structure`"), "{error}");
    }

    proptest! {
        #[test]
        fn masks_and_coverage_stay_in_the_unit_interval(
            cells in prop::collection::vec((any::<bool>(), any::<bool>(), 0f32..=1.0), 12),
            tau in 0f64..=1.0,
            gamma in 0f64..=1.0,
            constrain in any::<bool>(),
        ) {
            let bench = Bench::new();
            let ctx = bench.ctx();
            let m = |f: &dyn Fn(&(bool, bool, f32)) -> f32| -> Mask {
                mask_of(&ctx, (1, 3, 4), &cells.iter().map(f).collect::<Vec<_>>())
            };
            let prior = m(&|c| f32::from(u8::from(c.0)));
            let structure = m(&|c| f32::from(u8::from(c.0 && c.1)));
            let settings = FuseSettings { tau, gamma, constrain, ..Default::default() };
            let inputs = (Some(structure.into()), Some(m(&|c| c.2).into()), prior.into(), None);
            let ((mask, coverage, _), ()) = fuse(settings).forward(&ctx, inputs).unwrap();
            prop_assert!((0.0..=1.0).contains(&coverage.as_vec()[0]));
            prop_assert!(mask.as_vec().iter().all(|m| (0.0..=1.0).contains(m)));
        }
    }
}
