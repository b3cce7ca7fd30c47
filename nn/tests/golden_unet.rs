//! The U-Net with IP-Adapter-Plus against a case computed in f64 by independent code: passes, gradients, training runs.
//!
//! `PREFGRAPH_FIXTURES` points at a folder of cases; without one of a U-Net nothing is run, and said so.

#[allow(dead_code, reason = "what only FLUX's tests use")]
#[path = "golden/case.rs"]
mod case;
#[path = "golden/every_network.rs"]
mod every_network;
#[allow(dead_code, reason = "what only FLUX's tests use")]
#[path = "golden/faint.rs"]
mod faint;
#[path = "golden/image_tokens.rs"]
mod image_tokens;
#[allow(dead_code, reason = "what only FLUX's tests use")]
#[path = "golden/training.rs"]
mod training;

use case::{Case, Network, assert_near, cases, whole_references};
use every_network::every_case;
use prefgraph_nn::{
    Backbone, Probe,
    backbone::{BlockTokens, Scoring},
    layers::{Loading, Packing},
    models::{Checkpointing, unet::UNetOptions},
};

#[test]
fn the_resampler_of_these_tests_gives_the_image_tokens_of_the_reference() {
    for case in cases(Network::UNet) {
        let (adapter, values) =
            (case.file("ip-adapter-plus_sdxl.safetensors"), case.file("forward.safetensors"));
        let found = image_tokens::image_tokens(&adapter, &values, "");
        assert_near(&case.name, &found.values, &values.read("ip_tokens").unwrap(), 1e-6);
    }
}

#[test]
fn a_pass_of_the_frozen_base_gives_the_queries_keys_scores_and_prediction_of_the_reference() {
    for case in every_case(Network::UNet) {
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
    for BlockTokens { block, targets, references } in &found.tokens {
        for (what, found) in [("q", targets), ("k_ip", references)] {
            let name = format!("layer{block}.{what}");
            assert_near(&format!("{of} {name}"), found, &values.read(&name).unwrap(), 5e-5);
        }
    }
    assert_near(&format!("{of} pred"), found.latents.values(), &values.read("pred").unwrap(), 5e-5);
    assert_eq!(found.scores.len(), 1);
    assert_near(&format!("{of} scores"), &found.scores[0], &values.read("scores").unwrap(), 5e-5);
    let again = model.predict(&inputs, None, &probe).unwrap();
    assert_eq!(again.latents.values(), found.latents.values(), "{of} a pass is a function of its inputs");
}

#[test]
fn a_prediction_does_not_depend_on_the_threads_on_the_probe_or_on_an_adapter_whose_b_is_zero() {
    every_network::depends_on_its_inputs_alone(Network::UNet);
}

#[test]
fn in_bf16_a_pass_and_its_gradient_stay_near_the_reference() {
    every_network::stays_near_in_bf16(Network::UNet);
}

#[test]
fn a_gradient_does_not_depend_on_checkpointing_or_on_streamed_weights() {
    for case in every_case(Network::UNet) {
        let inputs = case.inputs(&case.file("forward.safetensors"), "", &["x_t"]);
        let gradient = |options: UNetOptions| {
            let model = case.unet(options);
            let adapter = case.adapter_with_zero_b(&model);
            let (prediction, saved) = model.predict_saving(&inputs, &adapter, &Probe::NOTHING).unwrap();
            let gradient = model.backward(saved, &adapter, &prediction.latents).unwrap();
            gradient.values.host().unwrap().to_vec()
        };
        let expected = gradient(case.unet_options());
        assert!(expected.iter().any(|g| *g != 0.0));
        let checkpointed = UNetOptions { checkpointing: Checkpointing::Blocks, ..case.unet_options() };
        assert_eq!(gradient(checkpointed), expected, "{}: checkpointed", case.name);
        let loading = Loading { packing: Packing::Streamed, ..Loading::default() };
        let streamed = UNetOptions { loading, ..case.unet_options() };
        assert_eq!(gradient(streamed), expected, "{}: streamed", case.name);
    }
}

#[test]
fn supervised_training_follows_the_reference_run() {
    for case in cases(Network::UNet) {
        training::follow(&case.with_resampler(), "train_sft.safetensors", training::Objective::Supervised);
    }
}

#[test]
fn preference_training_follows_the_reference_run() {
    for case in cases(Network::UNet) {
        let name = "train_diffusion_dpo.safetensors";
        training::follow(&case.with_resampler(), name, training::Objective::Preference);
    }
}
