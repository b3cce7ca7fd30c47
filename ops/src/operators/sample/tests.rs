//! Sampling makes exactly the passes that training makes.

use std::sync::Arc;

use super::*;
use crate::{
    operators::{
        backbone::{Backbone, BackboneSettings},
        forward::{Forward, ForwardSettings},
        lora::{Lora, LoraSettings},
        reference::{Reference, ReferenceSettings},
        replay::{Replay, ReplaySettings},
        tensors::tensor,
        testing::{Bench, case},
    },
    ports::{AdapterShape, BackboneShape},
    settings::DataPath,
};

/// With all axes at run time.
type Op = Sample;

/// The network and the conditions of a golden case, whose latents give the size.
struct Case {
    bench: Bench,
    backbone: BackboneHandle,
    guidance: Option<f64>,
    like: Latents,
    text: TextTokens,
    pooled: Pooled,
    references: List<Latents>,
}

fn cases() -> Vec<Case> {
    ["flux_uno", "flux_uno_multi"].map(open).into()
}

fn open(name: &str) -> Case {
    let bench = Bench::new();
    let path = DataPath(case(name));
    let replay = Replay::new(ReplaySettings { path: path.clone(), ..Default::default() }).unwrap();
    let (like, _, references, _, _, text, pooled, ..) = replay.forward(&bench.ctx(), ()).unwrap().0;
    let settings = BackboneSettings { weights: path, ..Default::default() };
    let backbone = Backbone::new(settings).unwrap().forward(&bench.ctx(), ()).unwrap().0.0;
    let guidance = backbone.0.layout().guidance.then_some(3.5);
    Case { bench, backbone, guidance, like: like.1, text, pooled, references }
}

impl Case {
    fn settings(&self, schedule: SampleSchedule, steps: usize) -> SampleSettings {
        SampleSettings { steps, schedule, guidance: self.guidance, ..Default::default() }
    }

    /// Conditions to keep away from: those of the case, turned round.
    fn negative(&self) -> (TextTokens, Pooled) {
        let ctx = self.bench.ctx();
        let (text, pooled) = (&self.text, &self.pooled);
        let minus = |values: Vec<f32>| values.into_iter().map(|v| -v).collect();
        (
            tensor(&ctx, *HasShape::shape(text), minus(text.as_vec())).unwrap(),
            tensor(&ctx, *HasShape::shape(pooled), minus(pooled.as_vec())).unwrap(),
        )
    }

    fn sample_at(&self, ctx: &Ctx<'_>, settings: SampleSettings, adapter: Option<Adapter>) -> Vec<f32> {
        let (text, pooled) = (self.text.clone(), self.pooled.clone());
        let references = Some(self.references.clone());
        let (negative_text, negative_pooled) = self.negative();
        let inputs = (
            self.backbone.clone(),
            adapter,
            self.like.clone(),
            text,
            pooled,
            references,
            Some(negative_text),
            Some(negative_pooled),
            None,
            None,
            None,
        );
        Op::new(settings).unwrap().forward(ctx, inputs).unwrap().0.0.as_vec()
    }

    fn sample(&self, settings: SampleSettings, adapter: Option<Adapter>) -> Vec<f32> {
        self.sample_at(&self.bench.ctx(), settings, adapter)
    }

    fn noise(&self) -> Vec<f32> {
        let count = HasShape::shape(&self.like).num_elements();
        Random::new(self.bench.ctx().seed, "sample", u64::MAX, "noise").normals(count)
    }

    /// What the `reference` node, or with an adapter the `forward` node, predicts.
    fn predict(&self, process: Process, x: &[f32], time: f32, adapter: Option<&Adapter>) -> Vec<f32> {
        self.predict_for((self.text.clone(), self.pooled.clone()), (process, time), x, adapter)
    }

    fn predict_for(
        &self,
        (text, pooled): (TextTokens, Pooled),
        (process, time): (Process, f32),
        x: &[f32],
        adapter: Option<&Adapter>,
    ) -> Vec<f32> {
        let ctx = self.bench.ctx();
        let shape = *HasShape::shape(&self.like);
        let x = tensor(&ctx, shape, x.to_vec()).unwrap().into();
        let t = Timesteps::new(process, vec![time; shape.0]);
        let references = Some(self.references.clone());
        let (backbone, guidance) = (self.backbone.clone(), self.guidance);
        match adapter {
            None => {
                let op = Reference::new(ReferenceSettings { guidance }).unwrap();
                op.forward(&ctx, (backbone, x, t, text, pooled, references, None, None)).unwrap().0.0
            }
            Some(adapter) => {
                let op = Forward::new(ForwardSettings { guidance, ..Default::default() }).unwrap();
                let inputs = (backbone, adapter.clone(), x, t, text, pooled, references, None, None, None);
                op.forward(&ctx, inputs).unwrap().0.0
            }
        }
        .as_vec()
    }

    /// An adapter that changes nothing yet, and one that does.
    fn adapters(&self) -> [Adapter; 2] {
        let lora = Lora::new(LoraSettings { rank: 2, ..Default::default() }).unwrap();
        let zero = lora.forward(&self.bench.ctx(), (self.backbone.clone(),)).unwrap().0.0;
        let values = Random::new(1, "b", 0, "").normals(zero.values.len());
        let values = values
            .iter()
            .zip(zero.values.host().unwrap().iter())
            .map(|(r, v)| v + 0.05 * r)
            .collect::<Vec<_>>();
        let moved = Adapter { layout: zero.layout.clone(), values: values.into() };
        [zero, moved]
    }
}

#[test]
fn a_sample_is_eulers_steps_over_the_predictions_of_the_reference_bit_for_bit() {
    for case in cases() {
        let sigmas = flow::sigmas(3, 2.5);
        let mut x = case.noise();
        for [here, there] in sigmas.array_windows() {
            let v = case.predict(Process::Flow, &x, *here, None);
            let d_sigma = there - here;
            x.iter_mut().zip(&v).for_each(|(x, v)| *x += d_sigma * v);
        }
        let settings = SampleSettings { shift: 2.5, ..case.settings(SampleSchedule::Static, 3) };
        assert_eq!(case.sample(settings, None), x);
    }
}

#[test]
fn a_policy_samples_what_its_forward_predicts_and_is_the_reference_while_b_is_zero() {
    for case in cases() {
        let [zero, moved] = case.adapters();
        let settings = || case.settings(SampleSchedule::Dynamic, 1);
        let base = case.sample(settings(), None);
        assert_eq!(case.sample(settings(), Some(zero)), base);
        let policy = case.sample(settings(), Some(moved.clone()));
        assert_ne!(policy, base);
        // One step goes from sigma 1 to 0.
        let noise = case.noise();
        let v = case.predict(Process::Flow, &noise, 1.0, Some(&moved));
        assert_eq!(policy, noise.iter().zip(&v).map(|(x, v)| x - v).collect::<Vec<_>>());
    }
}

#[test]
fn a_network_that_predicts_eps_is_asked_at_timesteps_of_sdxls_schedule() {
    let case = open("flux_uno");
    let network = Ddpm::eps(3);
    let fresh = |step: usize| {
        let count = HasShape::shape(&case.like).num_elements();
        Random::new(case.bench.ctx().seed, "sample", u64::MAX, &format!("noise of step {step}"))
            .normals(count)
    };
    for (kind, schedule) in [
        (SampleSchedule::Ddim, Schedule::ddim(&network)),
        (SampleSchedule::Euler, Schedule::euler(&network)),
        (SampleSchedule::EulerAncestral, Schedule::euler_ancestral(&network)),
        (SampleSchedule::Dpmpp2mKarras, Schedule::dpmpp_2m_karras(&network)),
    ] {
        let by_hand = schedule.sample(case.noise(), fresh, |x, time| {
            Ok::<_, std::convert::Infallible>(case.predict(Process::DdpmEps, &x, time, None))
        });
        assert_eq!(case.sample(case.settings(kind, 3), None), by_hand.unwrap(), "{kind:?}");
    }
}

#[test]
fn classifier_free_guidance_goes_on_from_the_negative_prediction_through_the_prediction() {
    let case = open("flux_uno");
    let noise = case.noise();
    // One step of a flow goes from sigma 1 to 0.
    let found = case.sample(SampleSettings { cfg: 2.5, ..case.settings(SampleSchedule::Dynamic, 1) }, None);
    let toward = case.predict(Process::Flow, &noise, 1.0, None);
    let away = case.predict_for(case.negative(), (Process::Flow, 1.0), &noise, None);
    let expected = noise.iter().zip(toward.iter().zip(&away)).map(|(x, (t, a))| x - (a + 2.5 * (t - a)));
    assert_eq!(found, expected.collect::<Vec<_>>());
    assert_ne!(toward, away);
}

#[test]
fn the_noise_is_that_of_the_seed_at_every_step_and_in_every_node() {
    let case = open("flux_uno");
    let settings = || case.settings(SampleSchedule::Uno, 1);
    let first = case.sample(settings(), None);
    let elsewhere = Ctx { node: "elsewhere", ..case.bench.at(17) };
    assert_eq!(case.sample_at(&elsewhere, settings(), None), first);
    let seeded = SampleSettings { seed: Some(7), ..settings() };
    assert_eq!(case.sample_at(&Ctx { seed: 1, ..case.bench.ctx() }, seeded, None), first);
    let seeded = SampleSettings { seed: Some(8), ..settings() };
    assert_ne!(case.sample(seeded, None), first);
}

#[test]
fn an_adapter_of_no_scale_is_the_frozen_network_and_half_of_it_is_one_with_half_the_alpha() {
    for case in cases() {
        let [_, trained] = case.adapters();
        let settings = |lora_scale| SampleSettings { lora_scale, ..case.settings(SampleSchedule::Static, 2) };
        let at = |scale, adapter: Option<&Adapter>| case.sample(settings(scale), adapter.cloned());
        assert!(at(0.0, Some(&trained)) == at(1.0, None), "bit for bit");
        let layout = AdapterLayout { alpha: trained.layout.alpha / 2.0, ..(*trained.layout).clone() };
        let half = Adapter { layout: layout.into(), ..trained.clone() };
        assert!(at(0.5, Some(&trained)) == at(1.0, Some(&half)));
        assert!(at(0.5, Some(&trained)) != at(1.0, Some(&trained)));
    }
}

#[test]
fn what_cannot_be_sampled_is_refused_before_the_first_pass() {
    let message = |settings| Op::new(settings).err().unwrap().to_string();
    assert!(message(SampleSettings { steps: 0, ..Default::default() }).contains("steps 0"));
    assert!(message(SampleSettings { steps: 1000, ..Default::default() }).contains("1 to 999"));
    assert!(message(SampleSettings { shift: -1.0, ..Default::default() }).contains("shift -1"));
    assert!(
        message(SampleSettings { ip_scale: Some(f64::INFINITY), ..Default::default() }).contains("ip_scale")
    );
    assert!(message(SampleSettings { cfg: f64::NAN, ..Default::default() }).contains("cfg NaN"));
    let of_flow = SampleSettings { process: Some(Process::DdpmV), ..Default::default() };
    assert!(message(of_flow).contains("settings of ddim"));
    let eps = SampleSettings { zero_snr: true, schedule: SampleSchedule::Ddim, ..Default::default() };
    assert!(message(eps).contains("process: ddpm_v"));

    let case = open("flux_uno_multi");
    let shapes = |settings: SampleSettings, like, adapter: Option<AdapterShape>| {
        let (text, pooled) = (*HasShape::shape(&case.text), *HasShape::shape(&case.pooled));
        let backbone = BackboneShape(case.backbone.0.clone());
        Op::new(settings)
            .unwrap()
            .shapes((backbone, adapter, like, text, pooled, None, None, None, None, None, None), 0)
    };
    let good = case.settings(SampleSchedule::Dynamic, 2);
    let like = *HasShape::shape(&case.like);
    assert_eq!(shapes(good.clone(), like, None).unwrap().0, like);
    let error =
        shapes(SampleSettings { guidance: None, ..good.clone() }, like, None).unwrap_err().to_string();
    assert!(error.contains("guidance"), "{error}");
    let error = shapes(SampleSettings { cfg: 5.0, ..good.clone() }, like, None).unwrap_err().to_string();
    assert!(error.contains("negative_text"), "{error}");
    let scaled = SampleSettings { ip_scale: Some(0.5), ..good.clone() };
    let error = shapes(scaled, like, None).unwrap_err().to_string();
    assert!(error.contains("has no IP-Adapter to scale"), "{error}");
    let error = shapes(good.clone(), (like.0, like.1 + 1, like.2, like.3), None).unwrap_err().to_string();
    assert!(error.contains("channels"), "{error}");
    let mut layout = (*case.adapters()[0].layout).clone();
    layout.modules[0].name = "elsewhere.linear".into();
    let error = shapes(good, like, Some(AdapterShape(Arc::new(layout)))).unwrap_err().to_string();
    assert!(error.contains("elsewhere.linear"), "{error}");
}
