//! The FLUX backbone against cases computed in f64 by independent code: passes, gradients, training runs.
//!
//! `PREFGRAPH_FIXTURES` points at a folder of cases; without it those of the project's own `tests/fixtures` are run.

#[path = "golden/case.rs"]
mod case;
#[path = "golden/faint.rs"]
mod faint;
#[path = "golden/training.rs"]
mod training;

use case::{Case, Keep, Scores, assert_near, cases};
use prefgraph_nn::{Backbone, Cpu};

#[test]
fn a_pass_of_the_frozen_base_gives_the_tokens_scores_and_prediction_of_the_reference() {
    for case in cases() {
        let model = case.model(2);
        let values = case.file("forward.safetensors");
        let inputs = case.inputs(&values, "", &["x_t"]);
        let mut keep = Keep::default();
        let prediction = model.predict(&inputs, None, &mut keep).unwrap();
        assert_eq!(keep.blocks.len(), model.layout().blocks);
        for (i, tokens) in keep.blocks.iter().enumerate() {
            let name = format!("layer{i}.image_tokens");
            assert_near(&format!("{} {name}", case.name), tokens, &values.read(&name).unwrap(), 5e-5);
        }
        assert_near(&format!("{} pred", case.name), prediction.values(), &values.read("pred").unwrap(), 5e-5);

        let features = model.features(&inputs).unwrap();
        let last = &keep.blocks[model.config().num_layers - 1];
        let (batch, tokens, width) = features.shape();
        for sample in 0..batch {
            let targets = &last[sample * last.len() / batch..][..tokens * width];
            assert_eq!(targets, &features.values()[sample * tokens * width..][..tokens * width]);
        }

        let mut scores = Scores::new(model.device().clone(), inputs.t.len(), inputs.references.len());
        let again = model.predict(&inputs, None, &mut scores).unwrap();
        assert_eq!(again.values(), prediction.values(), "a pass is a function of its inputs");
        for (k, scores) in scores.means().iter().enumerate() {
            let name = format!("scores.ref{k}");
            assert_near(&format!("{} {name}", case.name), scores, &values.read(&name).unwrap(), 5e-5);
        }
    }
}

#[test]
fn a_prediction_does_not_depend_on_the_threads_on_the_visitor_or_on_an_adapter_whose_b_is_zero() {
    for case in cases() {
        let values = case.file("forward.safetensors");
        let inputs = case.inputs(&values, "", &["x_t"]);
        let model = case.model(1);
        let expected = model.predict(&inputs, None, &mut ()).unwrap();
        let seen = model.predict(&inputs, None, &mut Keep::default()).unwrap();
        assert_eq!(seen.values(), expected.values(), "{}: with a visitor", case.name);
        let threads = case.model(3).predict(&inputs, None, &mut ()).unwrap();
        assert_eq!(threads.values(), expected.values(), "{}: on three threads", case.name);
        let adapter = case.adapter_with_zero_b(&model);
        let adapted = model.predict(&inputs, Some(&adapter), &mut ()).unwrap();
        assert_eq!(adapted.values(), expected.values(), "{}: with B = 0", case.name);
        let (saving, _) = model.predict_saving(&inputs, &adapter, &mut ()).unwrap();
        assert_eq!(saving.values(), expected.values(), "{}: while saving", case.name);
    }
}

#[test]
fn supervised_training_follows_the_reference_run() {
    for case in cases() {
        training::follow(&case, "train_sft.safetensors", training::Objective::Supervised);
    }
}

#[test]
fn preference_training_follows_the_reference_run() {
    for case in cases() {
        training::follow(&case, "train_diffusion_dpo.safetensors", training::Objective::Preference);
    }
}

#[test]
fn a_device_without_a_number_of_threads_uses_all_cores() {
    assert!(Cpu::new(0).unwrap().threads() >= 1);
    assert!(Case::root().is_dir());
}
