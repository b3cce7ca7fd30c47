//! The world in the repository: its weights load, a step of them runs, and it is small.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use assert_cmd::cargo::cargo_bin;
use prefgraph_nn::{
    Cpu, Tensor,
    vision::{Preprocess, Vit},
};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/world")
}

fn bytes_under(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|e| if e.path().is_dir() { bytes_under(&e.path()) } else { e.metadata().unwrap().len() })
        .sum()
}

#[test]
fn the_identity_encoder_is_one_that_the_library_reads() {
    let vit = Vit::open(&folder().join("identity")).unwrap();
    let (side, device) = (vit.config().picture, Cpu::new(1).unwrap());
    let grey = Preprocess::imagenet(side, side).planes(&vec![128; 64 * 64 * 3], (64, 64));
    let pictures = Tensor::new(&device, (1, 3, side, side), grey).unwrap();
    let tokens = vit.tokens(&device, &device, &pictures).unwrap();
    assert_eq!(tokens.shape(), (1, 1 + vit.config().grid().pow(2), vit.config().width));
}

#[test]
fn the_backbone_draws_a_held_out_subject_in_a_step() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let one =
        ["graphs/world/sample.ron", "--steps", "1", "--set", "pairs.batch=1", "--set", "reference.steps=1"];
    graph_run(&one, &out);
    let picture = image::open(out.join("preview/reference-step-000000-0-held-out-000.png")).unwrap();
    assert_eq!((picture.width(), picture.height()), (96, 96));
}

fn graph_run(arguments: &[&str], out: &Path) {
    let mut command = Command::new(cargo_bin("graph-run"));
    command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("NO_COLOR", "1")
        .args(arguments)
        .arg("--out")
        .arg(out);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_method_of_the_study_trains_an_adapter_that_draws() {
    let dir = tempfile::tempdir().unwrap();
    for method in ["sft", "diffusion_dpo", "patchdpo", "focusdpo"] {
        let (run, drawn) = (dir.path().join(method), dir.path().join(format!("{method}-drawn")));
        let graph = format!("graphs/world/{method}.ron");
        // The pairs that are in the repository stand for those that are drawn for training.
        let pairs = "pairs.path=data/world/held_out.jsonl";
        let few = [
            "--set",
            "pairs.batch=1",
            "--set",
            "held_out.first=2",
            "--set",
            "held_out.apart_from=None",
            "--steps",
            "2",
        ];
        graph_run(&[&[graph.as_str(), "--set", pairs], few.as_slice()].concat(), &run);
        let adapter = format!("lora.from={}", run.join("adapter.safetensors").display());
        let one = ["--set", "pairs.batch=1", "--set", "policy.steps=1", "--steps", "1"];
        graph_run(&[&["graphs/world/draw.ron", "--set", adapter.as_str()], one.as_slice()].concat(), &drawn);
        assert!(
            drawn.join("preview/policy-step-000000-0-held-out-000.png").is_file(),
            "{method} drew nothing"
        );
    }
}

#[test]
fn the_world_stays_under_twelve_and_a_half_megabytes() {
    let bytes = bytes_under(&folder());
    assert!(bytes < 12_500_000, "{bytes} bytes");
}
