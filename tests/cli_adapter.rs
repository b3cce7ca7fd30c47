//! Adapter files from a run: in the formats that a graph asks for, shown, converted and refused.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use assert_cmd::cargo::cargo_bin;
use prefgraph_nn::files::TensorFiles;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn graph_run(args: &[&str]) -> Output {
    Command::new(cargo_bin("graph-run")).current_dir(root()).args(args).env("NO_COLOR", "1").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn succeeds(args: &[&str]) -> Output {
    let output = graph_run(args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    output
}

#[track_caller]
fn refused(args: &[&str]) -> String {
    let output = graph_run(args);
    assert!(!output.status.success());
    text(&output.stderr)
}

/// A graph that extends a golden replay by an export after every step.
fn graph(folder: &Path, formats: &str) -> PathBuf {
    let path = folder.join("exporting.ron");
    let parent = root().join("graphs/replay/sft.ron");
    let text = format!(
        "Graph(extends: {:?}, name: \"exporting\", nodes: [(id: \"export\", op: \"export\", in: (adapter: \"update.adapter\"), \
         with: (every: 1, formats: {formats}))])",
        parent.to_str().unwrap()
    );
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn a_run_leaves_a_file_in_each_format_and_conversion_leads_from_one_to_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let file = graph(dir.path(), "[diffusers, kohya]");
    succeeds(&[file.to_str().unwrap(), "--out", &at("run"), "--steps", "1"]);
    let (ours, kohya) = (at("run/adapter.safetensors"), at("run/adapter.kohya.safetensors"));
    let names = TensorFiles::open(Path::new(&kohya)).unwrap();
    assert_eq!(
        names.info("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight").unwrap().shape,
        [12, 32]
    );
    let header = TensorFiles::open(Path::new(&ours)).unwrap().metadata().clone();
    assert_eq!(header["prefgraph.graph"], "exporting");
    assert_eq!(header["prefgraph.step"], "1");
    assert!(header["prefgraph.base"].contains("4 blocks"), "{header:?}");

    // To the other names and back: the same bytes, header and all.
    let weights = "tests/fixtures/flux_uno/transformer";
    succeeds(&["adapter", "convert", &ours, &at("k"), "--to", "kohya", "--weights", weights]);
    assert!(fs::read(at("k")).unwrap() == fs::read(&kohya).unwrap());
    succeeds(&["adapter", "convert", &kohya, &at("d"), "--to", "diffusers"]);
    assert!(fs::read(at("d")).unwrap() == fs::read(&ours).unwrap());

    let shown = text(&succeeds(&["adapter", "show", &kohya]).stdout);
    for part in [
        "kohya names, 34 linears of 14 kinds",
        "rank 4, alpha 4",
        "   4  attn.to_q",
        "prefgraph.graph: exporting",
    ] {
        assert!(shown.contains(part), "{shown}");
    }

    // q, k and v were trained apart.
    let error = refused(&["adapter", "convert", &ours, &at("u"), "--to", "uno"]);
    assert!(error.contains("UNO's names cannot hold this adapter"), "{error}");
    assert!(!Path::new(&at("u")).exists());
    let error = refused(&["adapter", "convert", &ours, &at("u"), "--to", "peft"]);
    assert!(error.contains("the formats are: diffusers, kohya, uno"), "{error}");
    let error = refused(&["adapter", "show", "tests/fixtures/flux_uno/forward.safetensors"]);
    assert!(error.contains("holds no factors"), "{error}");
    let other = "data/demo/backbone";
    let error = refused(&["adapter", "convert", &ours, &at("u"), "--to", "kohya", "--weights", other]);
    assert!(error.contains("adapter.safetensors"), "{error}");
}

#[test]
fn a_format_that_cannot_hold_what_is_trained_is_refused_before_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let file = graph(dir.path(), "[uno]");
    let error = refused(&["plan", file.to_str().unwrap()]);
    assert!(error.contains("UNO's names cannot hold") && error.contains("diffusers' or kohya's"), "{error}");
}
