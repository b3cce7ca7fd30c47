//! `graph-run` on graphs that draw: strips during a training run, and pictures from its adapter.

use std::{fs, path::Path, process::Command};

use assert_cmd::cargo::cargo_bin;

/// Run a graph into `out`, which must go well; returns what was said.
fn run(graph: &str, out: &Path, more: &[&str]) -> String {
    let mut command = Command::new(cargo_bin("graph-run"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env("NO_COLOR", "1");
    let output = command.arg(graph).arg("--out").arg(out).args(more).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

fn previews(out: &Path) -> Vec<String> {
    let entries = fs::read_dir(out.join("preview")).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn picture(out: &Path, name: &str) -> image::RgbImage {
    image::open(out.join("preview").join(name)).unwrap().into_rgb8()
}

/// What the plan of a recipe says of a step.
fn flops(graph: &str) -> f64 {
    let mut command = Command::new(cargo_bin("graph-run"));
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["plan", graph, "--json"]).output();
    let plan: serde_json::Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
    plan["flops"].as_f64().unwrap()
}

#[test]
fn the_flops_of_a_step_are_those_of_a_step_without_pictures() {
    let (plain, with_strips) = (flops("graphs/focusdpo.ron"), flops("graphs/focusdpo_samples.ron"));
    assert!(plain > 0.0 && plain == with_strips, "{plain} and {with_strips}");
    assert!(flops("graphs/sample.ron") > 0.0);
}

#[test]
fn what_is_drawn_from_the_adapter_of_a_run_is_what_its_strip_showed() {
    const STRIP: &str = "samples-step-000000-demo-000.png";
    let dir = tempfile::tempdir().unwrap();
    let [two, one, drawn] = ["two", "one", "drawn"].map(|name| dir.path().join(name));
    let training =
        ["--set", "strip.every=1", "--set", "sample_reference.steps=3", "--set", "preview.every=100"];
    run("graphs/focusdpo_samples.ron", &two, &[&training[..], &["--steps", "2"]].concat());
    let strips = [STRIP, "samples-step-000001-demo-000.png", "step-000000-demo-000.png"];
    assert_eq!(previews(&two), strips);

    // The same first step, and then the end.
    let end = ["--steps", "1", "--set", "update.steps=2"];
    run("graphs/focusdpo_samples.ron", &one, &[&training[..], &end].concat());
    let adapter = format!("lora.from={}", one.join("adapter.safetensors").display());
    let shown = ["--set", "pairs.batch=3", "--set", "reference.steps=3", "--steps", "1", "--set", &adapter];
    let said = run("graphs/sample.ron", &drawn, &shown);
    assert!(said.contains("complete: 1 step\n") && said.contains("0 trainable values"), "{said}");
    let files = [
        "policy-step-000000-0-demo-000.png",
        "policy-step-000000-1-demo-001.png",
        "policy-step-000000-2-demo-003.png",
        STRIP,
    ];
    assert_eq!(previews(&drawn), files);

    let strip = picture(&drawn, STRIP);
    assert_eq!(strip, picture(&two, strips[1]));
    assert_ne!(strip, picture(&two, strips[0]), "the step has changed nothing that can be seen");
    // The policy's own picture is the last of its row.
    let alone = picture(&drawn, files[0]);
    let side = alone.width();
    let last = image::imageops::crop_imm(&strip, strip.width() - side, 0, side, side).to_image();
    assert_eq!(alone, last);
}

#[test]
fn a_picture_is_drawn_where_the_graph_says_unless_the_command_says_otherwise() {
    if prefgraph_nn::cuda::is_there().is_ok() {
        return eprintln!("skipped: there is a GPU");
    }
    let dir = tempfile::tempdir().unwrap();
    let graph = dir.path().join("on_gpu.ron");
    let parent = Path::new(env!("CARGO_MANIFEST_DIR")).join("graphs/focusdpo_samples.ron");
    fs::write(&graph, format!("Graph(extends: {parent:?}, name: \"x\", run: (device: \"cuda:0\"))")).unwrap();
    let sample = |more: &[&str]| {
        let mut command = Command::new(cargo_bin!("graph-run"));
        command
            .arg("sample")
            .arg(&graph)
            .args(["--prompt", "a red disc", "--steps", "1", "--out"])
            .arg(dir.path().join("out"));
        command.args(["--ref", "data/demo/images/demo-000-ref0.jpg"]).args(more);
        command.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap()
    };
    let output = sample(&[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("--device cpu"), "{said}");
    let output = sample(&["--device", "cpu", "--lora-scale", "0.5"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(2) && said.contains("--adapter"),
        "there is nothing to scale: {said}"
    );
    let output = sample(&["--device", "cpu"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_size_that_the_network_does_not_draw_is_refused_with_the_nearest_that_it_does() {
    let dir = tempfile::tempdir().unwrap();
    for (size, nearest) in [("17x40", "16x32"), ("0x16", "16x16"), ("24x24", "16x16")] {
        let mut command = Command::new(cargo_bin!("graph-run"));
        command.args([
            "sample",
            "graphs/focusdpo_samples.ron",
            "--prompt",
            "a red disc",
            "--size",
            size,
            "--out",
        ]);
        command.arg(dir.path().join("out")).current_dir(env!("CARGO_MANIFEST_DIR"));
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains("multiples of 16 pixels") && said.contains(&format!("--size {nearest}")),
            "{said}"
        );
    }
}
