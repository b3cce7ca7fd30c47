//! Replaying golden cases, and refusing broken ones.

use std::{fs, path::Path};

use prefgraph_nn::files::{NamedTensor, write_safetensors};

use super::*;
use crate::operators::testing::{Bench, case};

fn settings(path: &Path) -> ReplaySettings {
    ReplaySettings { path: DataPath(path.into()), ..Default::default() }
}

fn refusal(settings: ReplaySettings) -> String {
    Replay::new(settings).err().expect("a refusal").to_string()
}

#[test]
fn a_case_gives_its_batches_constants_and_weights() {
    let bench = Bench::new();
    for (name, references) in [("flux_uno", 1), ("flux_uno_multi", 2)] {
        let op = Replay::new(settings(&case(name))).unwrap();
        let (out, ()) = op.forward(&bench.at(3), ()).unwrap();
        assert_eq!(out.0.as_vec(), op.files.read("step3.x0_w").unwrap());
        assert_eq!((out.2.0.len(), out.7.0.len()), (references, references));
        assert!(!out.9.as_vec().is_empty());
        let exports: Map<String, Value> = op.exports().into_iter().collect();
        assert_eq!(exports["rank"], 4);
        assert_eq!(exports["refs"], references);
        assert!(exports["init"].as_str().unwrap().contains("train_"));
        assert!(exports["weights"].as_str().unwrap().ends_with("transformer"));
        let beyond = op.forward(&bench.at(6), ()).err().unwrap().to_string();
        assert!(beyond.contains("the case has 6 steps"), "{beyond}");
    }
}

#[test]
fn a_graph_that_fixes_something_else_is_told_what_to_set() {
    let base = settings(&case("flux_uno"));
    let agreeing = ReplaySettings {
        reduction: Some(Reduction::FullMean),
        entropy: Some(Counting::Gaussian),
        hooks: Some(Hooks::All),
        betas: Some([0.9, 0.999]),
        weight_decay: Some(0.01),
        ..base.clone()
    };
    Replay::new(agreeing).unwrap();
    let error = refusal(ReplaySettings { reduction: Some(Reduction::Sum), ..base.clone() });
    assert!(error.contains("--set loss.reduction=full_mean"), "{error}");
    let error = refusal(ReplaySettings { entropy: Some(Counting::Histogram), ..base.clone() });
    assert!(error.contains("--set detail.kind=gaussian"), "{error}");
    let error = refusal(ReplaySettings { betas: Some([0.9, 0.99]), ..base });
    assert!(error.contains("--set update.betas=(0.9, 0.999)"), "{error}");
}

#[test]
fn broken_cases_are_refused_with_the_tensor() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("case.json"), "{}").unwrap();
    let write = |tensors: &[(&str, Vec<usize>)]| {
        let tensors: Vec<_> = tensors
            .iter()
            .map(|(n, s)| NamedTensor::f32(*n, s.clone(), &vec![0.0; s.iter().product()]))
            .collect();
        write_safetensors(&folder.path().join("batches.safetensors"), &tensors, &[]).unwrap();
        refusal(settings(folder.path()))
    };
    let x = vec![1, 1, 2, 2];
    assert!(write(&[("x0_w", x.clone())]).contains("no tensor named"));
    let gap = write(&[("step0.x0_w", x.clone()), ("step2.x0_w", x.clone())]);
    assert!(gap.contains("no `step1.x0_w`"), "{gap}");
    let grown = write(&[("step0.x0_w", x.clone()), ("step1.x0_w", vec![1, 1, 2, 4])]);
    assert!(grown.contains("[1, 1, 2, 4]") && grown.contains("alike"), "{grown}");
    let more = write(&[("step0.x0_w", x.clone()), ("step1.x0_w", x.clone()), ("step1.x_r0", x.clone())]);
    assert!(more.contains("no `step0.x_r0`"), "{more}");
    let priors = write(&[("step0.x0_w", x.clone()), ("step0.x_r0", x)]);
    assert!(priors.contains("1 reference (") && priors.contains("0 priors"), "{priors}");
    fs::remove_file(folder.path().join("case.json")).unwrap();
    assert!(refusal(settings(folder.path())).contains("case.json"));
}

#[test]
fn a_case_of_a_u_net_gives_timesteps_sizes_and_what_an_image_encoder_saw() {
    let bench = Bench::new();
    let op = Replay::new(settings(&case("sdxl_ipa"))).unwrap();
    let (out, ()) = op.forward(&bench.at(1), ()).unwrap();
    assert_eq!((out.2.0.len(), out.7.0.len()), (1, 1));
    assert_eq!(crate::Port::shape(&out.4).process, Process::DdpmEps);
    assert!(out.4.values.iter().all(|t| t.fract() == 0.0));
    assert_eq!(out.11.as_vec(), op.files.read("step1.time_ids").unwrap());
    assert_eq!(out.12.as_vec(), op.files.read("step1.image_embeds").unwrap());
    let exports: Map<String, Value> = op.exports().into_iter().collect();
    assert!(exports["weights"].as_str().unwrap().ends_with("unet"));
    assert!(exports["ip_adapter"].as_str().unwrap().ends_with(IP_ADAPTER));
    let (_, given, _) = op.image_prompt().unwrap();
    assert_eq!(exports["picture_tokens"], given);
    assert!(exports["lora_targets"].as_array().unwrap().contains(&json!("to_q")));
}
