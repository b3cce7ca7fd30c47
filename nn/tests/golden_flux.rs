//! The FLUX backbone against cases computed in f64 by independent code: passes, gradients, training runs.
//!
//! `PREFGRAPH_FIXTURES` points at a folder of cases; without it those of the project's own `tests/fixtures` are run.

#[allow(dead_code, reason = "what only the U-Net's tests use")]
#[path = "golden/case.rs"]
mod case;
#[path = "golden/faint.rs"]
mod faint;
#[path = "golden/image_tokens.rs"]
mod image_tokens;
#[allow(dead_code, reason = "what only the U-Net's tests use")]
#[path = "golden/training.rs"]
mod training;

use case::{Case, Network, assert_near, by_sample, cases, relative, whole_references};
use prefgraph_nn::{Backbone, Cpu, Probe, backbone::Scoring, device::Precision};

#[test]
fn a_pass_of_the_frozen_base_gives_the_tokens_scores_and_prediction_of_the_reference() {
    for case in cases(Network::Flux) {
        for (device, model) in case.on_every_device() {
            follows_the_reference(&case, &device, &*model);
        }
    }
}

fn follows_the_reference(case: &Case, device: &str, model: &dyn Backbone) {
    let of = format!("{} on {device}:", case.name);
    let values = case.file("forward.safetensors");
    let inputs = case.inputs(&values, "", &["x_t"]);
    let blocks = 0..model.layout().blocks;
    let masks = whole_references(&inputs);
    let scoring = Scoring { blocks: blocks.clone(), cells: None, samples: inputs.t.len(), masks: &masks };
    let probe = Probe { scores: Some(scoring), tokens: blocks.clone() };
    let found = model.predict(&inputs, None, &probe).unwrap();
    assert_eq!(found.tokens.len(), blocks.len());
    let tokens: Vec<Vec<f32>> = found.tokens.iter().map(|t| by_sample(t, inputs.t.len())).collect();
    for (i, tokens) in tokens.iter().enumerate() {
        let name = format!("layer{i}.image_tokens");
        assert_near(&format!("{of} {name}"), tokens, &values.read(&name).unwrap(), 5e-5);
    }
    let prediction = found.latents.values();
    assert_near(&format!("{of} pred"), prediction, &values.read("pred").unwrap(), 5e-5);
    for (k, scores) in found.scores.iter().enumerate() {
        let name = format!("scores.ref{k}");
        assert_near(&format!("{of} {name}"), scores, &values.read(&name).unwrap(), 5e-5);
    }
    assert_eq!(found.scores.len(), inputs.references.len());

    let features = model.features(&inputs).unwrap();
    let last = &tokens[case.model(1).config().num_layers - 1];
    let (batch, tokens, width) = features.shape();
    for sample in 0..batch {
        let targets = &last[sample * last.len() / batch..][..tokens * width];
        assert_eq!(targets, &features.values()[sample * tokens * width..][..tokens * width]);
    }
    let again = model.predict(&inputs, None, &probe).unwrap();
    assert_eq!(again.latents.values(), prediction, "{of} a pass is a function of its inputs");
}

#[test]
fn a_prediction_does_not_depend_on_the_threads_on_the_probe_or_on_an_adapter_whose_b_is_zero() {
    for case in cases(Network::Flux) {
        let values = case.file("forward.safetensors");
        let inputs = case.inputs(&values, "", &["x_t"]);
        let [one, three] =
            [1, 3].map(|n| case.model(n).predict(&inputs, None, &Probe::NOTHING).unwrap().latents);
        assert_eq!(one.values(), three.values(), "{}: on three threads", case.name);
        for (device, model) in case.on_every_device() {
            let of = format!("{} on {device}", case.name);
            let expected = model.predict(&inputs, None, &Probe::NOTHING).unwrap().latents;
            let probe = Probe { tokens: 0..model.layout().blocks, ..Probe::NOTHING };
            let seen = model.predict(&inputs, None, &probe).unwrap().latents;
            assert_eq!(seen.values(), expected.values(), "{of}: with a probe");
            let adapter = case.adapter_with_zero_b(&*model);
            let adapted = model.predict(&inputs, Some(&adapter), &Probe::NOTHING).unwrap().latents;
            assert_eq!(adapted.values(), expected.values(), "{of}: with B = 0");
            let (saving, _) = model.predict_saving(&inputs, &adapter, &Probe::NOTHING).unwrap();
            assert_eq!(saving.latents.values(), expected.values(), "{of}: while saving");
        }
    }
}

#[test]
fn in_bf16_a_pass_and_its_gradient_stay_near_the_reference() {
    for case in cases(Network::Flux) {
        let values = case.file("forward.safetensors");
        let inputs = case.inputs(&values, "", &["x_t"]);
        let expected = values.read("pred").unwrap();
        for (device, model) in case.on_every_device_in(Precision::Bf16) {
            let of = format!("{} on {device} in bf16", case.name);
            let found = model.predict(&inputs, None, &Probe::NOTHING).unwrap().latents;
            let off = relative(found.values(), &expected);
            eprintln!("{of}: prediction off by {off:.1e}");
            // A rounding to bf16 is off by at most 4e-3, and activations are rounded after every operation on a GPU.
            assert!(off > 1e-5 && off < 2e-2, "{of}: prediction off by {off:e}");
            let objective = training::Objective::Supervised;
            let name = "train_sft.safetensors";
            let Some(step) = training::first_step(&case, name, objective, &*model) else { continue };
            let off = step.gradient_off;
            eprintln!("{of}: first gradient off by {off:.1e}");
            assert!(off > 1e-5 && off < 5e-2, "{of}: first gradient off by {off:e}");
        }
    }
}

#[test]
fn supervised_training_follows_the_reference_run() {
    for case in cases(Network::Flux) {
        training::follow(&case, "train_sft.safetensors", training::Objective::Supervised);
    }
}

#[test]
fn preference_training_follows_the_reference_run() {
    for case in cases(Network::Flux) {
        training::follow(&case, "train_diffusion_dpo.safetensors", training::Objective::Preference);
    }
}

#[test]
fn a_device_without_a_number_of_threads_uses_all_cores() {
    assert!(Cpu::new(0).unwrap().threads() >= 1);
    assert!(Case::root().is_dir());
}
