//! Whole training runs of golden cases, wired by hand: every operator of a FocusDPO step against independent code.

use std::path::Path;

use prefgraph_nn::{Adapter, AdapterGrad, files::TensorFiles};

use super::{
    backbone::{Backbone, BackboneSettings},
    entropy::Entropy,
    forward::{Forward, ForwardSettings},
    fuse::{Fuse, FuseSettings, Mode},
    hook_attention::HookAttention,
    lora::{Lora, LoraSettings},
    lora_update::{LoraUpdate, LoraUpdateSettings},
    mask_field::MaskField,
    masked_loss::{MaskedLoss, MaskedLossSettings, Objective, Reduction},
    moments::ZeroMoments,
    noise::Noise,
    patch_quality::PatchQuality,
    pick::Pick,
    reference::{Reference, ReferenceSettings},
    replay::{Replay, ReplaySettings},
    scores::Hooks,
    tensors::tensor,
    testing::{Bench, case},
    weighted_loss::WeightedLoss,
};
use crate::{
    operator::{Ctx, Operator},
    port::{Cotangent, Grad},
    ports::{Metric, Metrics, Moments},
    settings::{DataPath, Nothing},
};

/// How a golden run differs from FocusDPO.
#[derive(Clone, Default)]
struct Recipe {
    fuse: Option<FuseSettings>,
    loss: MaskedLossSettings,
    /// PatchDPO, which has a loss of its own.
    patches: bool,
}

/// Metrics of the loss, norm of the adapter's gradient, and the gradient.
type Stepped = (Metrics, f64, Vec<f32>);

struct Trainer {
    replay: Replay,
    backbone: Backbone,
    noise: Noise,
    forward: Forward,
    reference: Reference,
    entropy: Entropy,
    recipe: Recipe,
    loss: MaskedLoss,
    update: LoraUpdate,
}

fn number(replay: &Replay, key: &str) -> Option<f64> {
    replay.exports().into_iter().find(|(k, _)| k == key).and_then(|(_, v)| v.as_f64())
}

impl Trainer {
    fn new(folder: &Path, recipe: Recipe) -> Self {
        let path = DataPath(folder.into());
        let replay = Replay::new(ReplaySettings { path: path.clone(), ..Default::default() }).unwrap();
        let guidance = number(&replay, "guidance");
        let hooks = if recipe.fuse.is_some() { Hooks::All } else { Hooks::Off };
        let update = LoraUpdateSettings {
            lr: number(&replay, "lr").unwrap(),
            weight_decay: number(&replay, "weight_decay").unwrap(),
            max_grad_norm: 0.0,
            ..Default::default()
        };
        Self {
            backbone: Backbone::new(BackboneSettings { weights: path, ..Default::default() }).unwrap(),
            noise: Noise::new(Default::default()).unwrap(),
            forward: Forward::new(ForwardSettings { guidance, hooks, ..Default::default() }).unwrap(),
            reference: Reference::new(ReferenceSettings { guidance }).unwrap(),
            entropy: Entropy::new(Default::default()).unwrap(),
            loss: MaskedLoss::new(recipe.loss.clone()).unwrap(),
            update: LoraUpdate::new(update).unwrap(),
            recipe,
            replay,
        }
    }

    /// One step of PatchDPO: a pass on the loser, and one on the first reference as its own target.
    fn patch_step(&self, ctx: &Ctx<'_>, adapter: &mut Adapter, moments: &mut Moments) -> Stepped {
        let batch = self.replay.forward(ctx, ()).unwrap().0;
        let (_, x0_l, references, eps, t, text, pooled, _, _, f_gen, f_ref, ..) = batch;
        let backbone = self.backbone.forward(ctx, ()).unwrap().0.0;
        let (q_gen, q_ref) = PatchQuality.forward(ctx, (f_gen, f_ref)).unwrap().0;
        let first = Pick::new(Default::default()).unwrap().forward(ctx, (references.clone(),)).unwrap().0.0;
        let passes = [x0_l, first].map(|x0| {
            let noised = self.noise.forward(ctx, (x0, None, t.clone(), Some(eps.clone()))).unwrap().0;
            let (x_t, target, times, _) = noised;
            let conditions = (text.clone(), pooled.clone(), Some(references.clone()));
            let (text, pooled, references) = conditions;
            let inputs =
                (backbone.clone(), adapter.clone(), x_t, times, text, pooled, references, None, None, None);
            let ((policy, _), saved) = self.forward.forward(ctx, inputs).unwrap();
            (policy, target, saved)
        });
        let [(policy, target, saved), (policy_ref, target_ref, saved_ref)] = passes;
        let inputs = (policy, target, q_gen, policy_ref, target_ref, q_ref, None, None);
        let ((_, metrics), kept) = WeightedLoss.forward(ctx, inputs).unwrap();
        let one = tensor(ctx, (), vec![1.0]).unwrap();
        let wanted = [true, false, false, true, false, false, false, false];
        let grads = WeightedLoss.backward(ctx, &wanted, kept, (Some(one), None)).unwrap();
        let wanted = [false, true, false, false, false, false, false, false, false, false];
        let by = |saved, grad| self.forward.backward(ctx, &wanted, saved, (grad, None)).unwrap().1.unwrap();
        let grad = by(saved, grads.0).add(by(saved_ref, grads.3)).unwrap();
        self.moved(ctx, metrics, grad, adapter, moments)
    }

    fn moved(
        &self,
        ctx: &Ctx<'_>,
        metrics: Metrics,
        grad: AdapterGrad,
        adapter: &mut Adapter,
        moments: &mut Moments,
    ) -> Stepped {
        let values = grad.values.host().unwrap().to_vec();
        let inputs = (adapter.clone(), Grad(Some(grad)), moments.clone());
        let moved = self.update.forward(ctx, inputs).unwrap().0;
        *adapter = moved.0;
        *moments = moved.1;
        let norm = moved.2.get("grad_norm").and_then(Metric::mean).unwrap();
        (metrics, norm, values)
    }

    /// One step of everything else.
    fn step(&self, ctx: &Ctx<'_>, adapter: &mut Adapter, moments: &mut Moments) -> Stepped {
        if self.recipe.patches {
            return self.patch_step(ctx, adapter, moments);
        }
        let batch = self.replay.forward(ctx, ()).unwrap().0;
        let (x0_w, x0_l, references, eps, t, text, pooled, priors, winner, ..) = batch;
        let backbone = self.backbone.forward(ctx, ()).unwrap().0.0;
        let loser = (self.recipe.loss.objective != Objective::Sft).then_some(x0_l);
        let (x_t, target, times, _) = self.noise.forward(ctx, (x0_w, loser, t, Some(eps))).unwrap().0;
        let inputs = (
            backbone.clone(),
            adapter.clone(),
            x_t.clone(),
            times.clone(),
            text.clone(),
            pooled.clone(),
            Some(references.clone()),
            None,
            None,
            None,
        );
        let ((policy, scores), saved) = self.forward.forward(ctx, inputs.clone()).unwrap();
        let alone = Ctx { backward_follows: false, ..*ctx };
        let ((measured, _), nothing) = self.forward.forward(&alone, inputs).unwrap();
        assert!(
            nothing.is_none() && measured.as_vec() == policy.as_vec(),
            "a pass without a backward differs"
        );
        let inputs = (backbone, x_t, times.clone(), text, pooled, Some(references), None, None);
        let frozen = self.reference.forward(ctx, inputs).unwrap().0.0;
        let mask = self.recipe.fuse.clone().map(|settings| {
            let (matched,) = HookAttention.forward(ctx, (scores, priors.clone())).unwrap().0;
            let (structure, prior) = MaskField.forward(ctx, (Some(matched), priors)).unwrap().0;
            let (detail,) = self.entropy.forward(ctx, (winner,)).unwrap().0;
            let fuse = Fuse::new(settings).unwrap();
            fuse.forward(ctx, (Some(structure), Some(detail), prior, None)).unwrap().0
        });
        let (mask, coverage) = mask.map_or((None, None), |(mask, coverage, _)| (Some(mask), Some(coverage)));
        let inputs = (policy, target, Some(frozen), mask, Some(times), None);
        let ((_, mut metrics), kept) = self.loss.forward(ctx, inputs).unwrap();
        if let Some(coverage) = coverage {
            metrics.per_sample("coverage", coverage.as_vec().iter().map(|c| f64::from(*c)).collect());
        }
        let one = tensor(ctx, (), vec![1.0]).unwrap();
        let wanted = [true, false, false, false, false, false];
        let by_policy = self.loss.backward(ctx, &wanted, kept, (Some(one), None)).unwrap().0;
        let wanted = [false, true, false, false, false, false, false, false, false, false];
        let grad = self.forward.backward(ctx, &wanted, saved, (by_policy, None)).unwrap().1.unwrap();
        self.moved(ctx, metrics, grad, adapter, moments)
    }
}

fn relative(found: &[f32], expected: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let off: f64 = found.iter().zip(expected).map(|(a, b)| square(f64::from(a - b))).sum();
    (off / expected.iter().map(|b| square(f64::from(*b))).sum::<f64>()).sqrt()
}

/// Tolerances on (gradient, change of the adapter), as relative L2 norms.
type Bars = (f64, f64);

/// Does the run follow `train_{name}.safetensors`? False where there is no such file.
fn follows(case_name: &str, name: &str, recipe: Recipe, bars: Bars) -> bool {
    let folder = case(case_name);
    let file = folder.join(format!("train_{name}.safetensors"));
    if !file.exists() {
        return false;
    }
    let golden = TensorFiles::open(&file).unwrap();
    let bench = Bench::new();
    let trainer = Trainer::new(&folder, recipe);
    let rank = number(&trainer.replay, "rank").unwrap() as usize;
    let lora = |prefix: &str| {
        let settings = LoraSettings {
            rank,
            from: Some(DataPath(file.clone())),
            from_prefix: prefix.into(),
            ..Default::default()
        };
        let backbone = trainer.backbone.forward(&bench.ctx(), ()).unwrap().0;
        Lora::new(settings).unwrap().forward(&bench.ctx(), backbone).unwrap().0.0
    };
    let (first, last, grad0) = (lora("init."), lora("final."), lora("grad0."));
    let mut adapter = first.clone();
    let zero = ZeroMoments::new(Nothing {}).unwrap();
    let mut moments = zero.forward(&bench.ctx(), (adapter.clone(),)).unwrap().0.0;
    let at = |name: &str, step: usize| {
        let all = golden.read(&format!("log.{name}")).unwrap();
        let width = golden.info(&format!("log.{name}")).unwrap().shape[1];
        all[step * width..(step + 1) * width].to_vec()
    };
    for step in 0..6 {
        let (metrics, norm, grad) = trainer.step(&bench.at(step as u64), &mut adapter, &mut moments);
        let loss = metrics.get("loss").and_then(Metric::mean).unwrap();
        let expected = f64::from(at("loss", step)[0]);
        let what = format!("{case_name} {name} step {step}");
        assert!((loss - expected).abs() <= 1e-3 * expected.max(1e-2), "{what}: loss {loss}, not {expected}");
        let expected = f64::from(at("grad_norm", step)[0]);
        assert!((norm - expected).abs() <= 5e-3 * expected.max(1e-3), "{what}: norm {norm}, not {expected}");
        for (ours, theirs, bar) in [("logit", "margin", 5e-3), ("coverage", "coverage", 1e-6)] {
            if let Some(Metric::PerSample(found)) = metrics.get(ours) {
                for (found, expected) in found.iter().zip(at(theirs, step)) {
                    assert!(
                        (found - f64::from(expected)).abs() < bar,
                        "{what}: {ours} {found}, not {expected}"
                    );
                }
            }
        }
        if step == 0 {
            let off = relative(&grad, &grad0.values.host().unwrap());
            assert!(off < bars.0, "{what}: the gradient is off by {off}");
        }
    }
    let change = |to: &Adapter| -> Vec<f32> {
        to.values
            .host()
            .unwrap()
            .iter()
            .zip(first.values.host().unwrap().iter())
            .map(|(a, b)| a - b)
            .collect()
    };
    let off = relative(&change(&adapter), &change(&last));
    assert!(off < bars.1, "{case_name} {name}: the adapter's change is off by {off}");
    true
}

fn focus(fuse: FuseSettings) -> Recipe {
    Recipe { fuse: Some(fuse), ..Default::default() }
}

fn mode(mode: Mode) -> Recipe {
    focus(FuseSettings { mode, ..Default::default() })
}

#[test]
fn training_follows_diffusion_dpo() {
    assert!(follows("flux_uno", "diffusion_dpo", Recipe::default(), (1e-3, 5e-3)));
}

#[test]
fn training_follows_focusdpo_with_one_reference_and_with_two() {
    for case in ["flux_uno", "flux_uno_multi"] {
        assert!(follows(case, "focusdpo", focus(FuseSettings::default()), (1e-3, 5e-3)));
    }
}

#[test]
fn training_follows_supervised_fine_tuning() {
    let loss = MaskedLossSettings { objective: Objective::Sft, ..Default::default() };
    assert!(follows("flux_uno", "sft", Recipe { loss, ..Default::default() }, (1e-5, 1e-4)));
}

#[test]
fn training_follows_patchdpo() {
    assert!(follows("flux_uno", "patchdpo", Recipe { patches: true, ..Default::default() }, (1e-3, 5e-3)));
}

/// The cases of these are large, and are not all kept with the sources.
#[test]
fn training_follows_the_ablations_whose_cases_are_there() {
    for case_name in ["flux_uno", "flux_uno_multi"] {
        let replay = ReplaySettings { path: DataPath(case(case_name)), ..Default::default() };
        let tau = number(&Replay::new(replay).unwrap(), "tau_mid").unwrap();
        let mid = FuseSettings { tau, ..Default::default() };
        let masked = MaskedLossSettings { reduction: Reduction::MaskMean, ..Default::default() };
        let runs = [
            ("patchdpo", Recipe { patches: true, ..Default::default() }, 5e-3),
            ("focusdpo_prior_only", mode(Mode::Prior), 5e-3),
            ("focusdpo_detail_only", mode(Mode::Detail), 5e-3),
            ("focusdpo_detail_in_prior", mode(Mode::DetailInPrior), 5e-3),
            ("focusdpo_tau_mid", focus(mid.clone()), 5e-3),
            ("focusdpo_unconstrained_tau_mid", focus(FuseSettings { constrain: false, ..mid }), 5e-3),
            ("focusdpo_mask_mean", Recipe { loss: masked, ..focus(FuseSettings::default()) }, 2e-2),
        ];
        for (name, recipe, change) in runs {
            follows(case_name, name, recipe, (1e-3, change));
        }
    }
}
