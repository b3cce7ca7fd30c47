//! A training run without a graph: a hand-written loss, the backbone's backward, AdamW.

#![allow(clippy::disallowed_methods, reason = "expected values: their last bits do not matter")]

use std::sync::Arc;

use prefgraph_nn::{
    Adapter, Backbone, Cpu, Probe,
    backbone::Latents,
    files::TensorFiles,
    optim::{AdamW, OptimizerState},
    sampling::scaled_linear,
};

use crate::{
    case::{Case, Network, assert_near, relative},
    faint::Faint,
};

/// What is minimised.
#[derive(Clone, Copy, PartialEq)]
pub enum Objective {
    /// The mean squared error of the winner.
    Supervised,
    /// Diffusion-DPO with errors as means.
    Preference,
}

/// Repeat a run, and compare first gradient, losses, logits and the adapter's change.
pub fn follow(case: &Case, name: &str, objective: Objective) {
    let Some(run) = case.try_file(name) else { return };
    for (device, model) in case.on_every_device() {
        eprintln!("{} on {device}:", case.name);
        follow_on(case, name, objective, &run, &*model);
    }
}

/// The first step of a run: its loss, its logits, and how far its gradient is from the reference, relative to its norm.
pub struct FirstStep {
    pub loss: f64,
    pub logits: Vec<f32>,
    pub gradient_off: f64,
}

/// The first step of a run, if its file was copied with the case.
pub fn first_step(case: &Case, name: &str, objective: Objective, model: &dyn Backbone) -> Option<FirstStep> {
    let run = case.try_file(name)?;
    let layout = case.adapter_layout(model);
    let adapter =
        Adapter { layout: Arc::clone(&layout), values: case.factors(&layout, &run, "init.").into() };
    let batches = case.file("batches.safetensors");
    let sample = Step::read(case, &batches, "step0.", objective);
    let (loss, logits, cotangent, saved) = sample.loss(case, model, &adapter, objective);
    let gradient = model.backward(saved, &adapter, &cotangent).unwrap();
    let expected = case.factors(&layout, &run, "grad0.");
    let gradient_off = relative(&gradient.values.host().unwrap(), &expected);
    Some(FirstStep { loss, logits, gradient_off })
}

fn follow_on(case: &Case, name: &str, objective: Objective, run: &TensorFiles, model: &dyn Backbone) {
    let host = Cpu::new(2).unwrap();
    let layout = case.adapter_layout(model);
    let batches = case.file("batches.safetensors");
    let settings = AdamW {
        lr: case.number("lr"),
        beta1: case.constants["betas"][0].as_f64().unwrap(),
        beta2: case.constants["betas"][1].as_f64().unwrap(),
        eps: case.number("eps"),
        weight_decay: case.number("weight_decay"),
    };
    let initial = case.factors(&layout, run, "init.");
    let mut adapter = Adapter { layout: Arc::clone(&layout), values: initial.clone().into() };
    let mut state = OptimizerState::new(layout.len());
    let mut faint = Faint::default();
    let losses = run.read("log.loss").unwrap();
    for (step, expected) in losses.iter().enumerate() {
        let prefix = format!("step{step}.");
        let sample = Step::read(case, &batches, &prefix, objective);
        let (found, logits, cotangent, saved) = sample.loss(case, model, &adapter, objective);
        let error = (found - f64::from(*expected)).abs() / f64::from(expected.abs()).max(1e-2);
        assert!(error < 1e-3, "{} {name} step {step}: loss {found}, expected {expected}", case.name);
        if objective == Objective::Preference {
            let all = run.read("log.margin").unwrap();
            let count = logits.len();
            assert_near(
                &format!("{} {name} logits of step {step}", case.name),
                &logits,
                &all[step * count..(step + 1) * count],
                5e-3,
            );
        }
        let gradient = model.backward(saved, &adapter, &cotangent).unwrap();
        // Not every case states it.
        if let Ok(norms) = run.read("log.grad_norm") {
            let (norm, expected) = (gradient.norm(&host).unwrap(), f64::from(norms[step]));
            assert!(
                (norm - expected).abs() < 5e-3 * expected,
                "{} {name} step {step}: gradient norm {norm}, expected {expected}",
                case.name
            );
        }
        if step == 0 {
            let error = relative(&gradient.values.host().unwrap(), &case.factors(&layout, run, "grad0."));
            let bar = if objective == Objective::Supervised { 1e-5 } else { 1e-3 };
            eprintln!("{} {name}: first gradient off by {error:.1e}", case.name);
            assert!(error < bar, "{} {name}: first gradient off by {error:e}", case.name);
        }
        faint.see(&gradient, settings.lr);
        state.step(&host, &settings, &mut adapter, &gradient).unwrap();
    }
    let change = |to: &[f32]| -> Vec<f64> {
        to.iter().zip(&initial).map(|(t, i)| f64::from(*t) - f64::from(*i)).collect()
    };
    let bar = if objective == Objective::Supervised { 1e-4 } else { 5e-3 };
    let found = change(&adapter.values.host().unwrap());
    let error = faint.compare(&found, &change(&case.factors(&layout, run, "final.")), bar);
    eprintln!("{} {name}: change off by {error:.1e}", case.name);
}

/// A batch: inputs and targets, winners first.
struct Step {
    inputs: prefgraph_nn::Inputs,
    targets: Vec<f32>,
}

impl Step {
    fn read(case: &Case, batches: &TensorFiles, prefix: &str, objective: Objective) -> Self {
        let sides: &[&str] = match objective {
            Objective::Supervised => &["x0_w"],
            Objective::Preference => &["x0_w", "x0_l"],
        };
        let mut inputs = case.inputs(batches, prefix, sides);
        let kept = scaled_linear::kept();
        let eps = batches.read(&format!("{prefix}eps")).unwrap().repeat(sides.len());
        let each = eps.len() / inputs.t.len();
        let mut targets = inputs.x_t.values().to_vec();
        for (i, (x, target)) in inputs.x_t.values_mut().iter_mut().zip(&mut targets).enumerate() {
            let t = inputs.t[i / each];
            if case.network == Network::UNet {
                let kept = kept[t as usize];
                *target = eps[i];
                *x = (kept.sqrt() * f64::from(*x) + (1.0 - kept).sqrt() * f64::from(eps[i])) as f32;
                continue;
            }
            *target = eps[i] - *x;
            *x = (1.0 - t) * *x + t * eps[i];
        }
        Self { inputs, targets }
    }

    /// Loss, logits, the derivative by the prediction, and what the policy's pass kept.
    fn loss(
        &self,
        case: &Case,
        model: &dyn Backbone,
        adapter: &Adapter,
        objective: Objective,
    ) -> (f64, Vec<f32>, Latents, prefgraph_nn::backbone::Saved) {
        let (policy, saved) = model.predict_saving(&self.inputs, adapter, &Probe::NOTHING).unwrap();
        let policy = policy.latents;
        let samples = self.inputs.t.len();
        let each = self.targets.len() / samples;
        let mut cotangent = policy.clone();
        let (loss, logits, weights) = match objective {
            Objective::Supervised => {
                let squares = policy.values().iter().zip(&self.targets);
                let sum: f64 = squares.map(|(p, t)| (f64::from(*p) - f64::from(*t)).powi(2)).sum();
                (sum / self.targets.len() as f64, Vec::new(), vec![1.0 / samples as f64; samples])
            }
            Objective::Preference => {
                let reference = model.predict(&self.inputs, None, &Probe::NOTHING).unwrap().latents;
                self.preference(case.number("beta"), &policy, &reference)
            }
        };
        for (i, (d, target)) in cotangent.values_mut().iter_mut().zip(&self.targets).enumerate() {
            let weight = weights[i / each] * 2.0 / each as f64;
            *d = (weight * (f64::from(*d) - f64::from(*target))) as f32;
        }
        (loss, logits, cotangent, saved)
    }

    /// Loss, logits, and the derivative of the loss by each sample's error.
    fn preference(&self, beta: f64, policy: &Latents, reference: &Latents) -> (f64, Vec<f32>, Vec<f64>) {
        let samples = self.inputs.t.len();
        let each = self.targets.len() / samples;
        // e - r as the mean of (reference - policy)(2 target - policy - reference): no difference of large sums.
        let differences: Vec<f64> = (0..samples)
            .map(|s| {
                let term = |i: usize| {
                    let (p, r) = (f64::from(policy.values()[i]), f64::from(reference.values()[i]));
                    (r - p) * (2.0 * f64::from(self.targets[i]) - p - r)
                };
                (s * each..(s + 1) * each).map(term).sum::<f64>() / each as f64
            })
            .collect();
        let pairs = samples / 2;
        let (winners, losers) = differences.split_at(pairs);
        let logits: Vec<f64> = winners.iter().zip(losers).map(|(w, l)| -beta / 2.0 * (w - l)).collect();
        let loss =
            logits.iter().map(|z| (-z).max(0.0) + (-z.abs()).exp().ln_1p()).sum::<f64>() / pairs as f64;
        let slope = |z: &f64| beta / 2.0 / (1.0 + z.exp()) / pairs as f64;
        let weights = logits.iter().map(slope).chain(logits.iter().map(|z| -slope(z))).collect();
        (loss, logits.iter().map(|z| *z as f32).collect(), weights)
    }
}
