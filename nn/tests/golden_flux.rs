//! The FLUX backbone against cases computed in f64 by independent code: passes, gradients, training runs.
//!
//! `PREFGRAPH_FIXTURES` points at a folder of cases; without it those of the project's own `tests/fixtures` are run.

#[allow(dead_code, reason = "what only the U-Net's tests use")]
#[path = "golden/case.rs"]
mod case;
#[path = "golden/every_network.rs"]
mod every_network;
#[path = "golden/faint.rs"]
mod faint;
#[path = "golden/image_tokens.rs"]
mod image_tokens;
#[allow(dead_code, reason = "what only the U-Net's tests use")]
#[path = "golden/training.rs"]
mod training;

use case::{Case, Network, assert_near, by_sample, cases, whole_references};
use prefgraph_nn::{Backbone, Cpu, Probe, backbone::Scoring};

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
    let masks = whole_references(model.layout(), &inputs);
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
    every_network::depends_on_its_inputs_alone(Network::Flux);
}

#[test]
fn in_bf16_a_pass_and_its_gradient_stay_near_the_reference() {
    every_network::stays_near_in_bf16(Network::Flux);
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
