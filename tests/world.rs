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
    let mut command = Command::new(cargo_bin("graph-run"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env("NO_COLOR", "1").arg("graphs/world/sample.ron");
    command.args(["--steps", "1", "--set", "pairs.batch=1", "--set", "reference.steps=1", "--out"]).arg(&out);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let picture = image::open(out.join("preview/reference-step-000000-0-held-out-000.png")).unwrap();
    assert_eq!((picture.width(), picture.height()), (96, 96));
}

#[test]
fn the_world_stays_under_twelve_and_a_half_megabytes() {
    let bytes = bytes_under(&folder());
    assert!(bytes < 12_500_000, "{bytes} bytes");
}
