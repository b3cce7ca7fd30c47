//! `graph-run` without running: `plan`, `dot`, `ops`, and mistakes on the command line.

use std::{path::Path, process::Command};

use assert_cmd::cargo::cargo_bin;
use serde_json::Value;

const SFT: &str = "graphs/replay/sft.ron";

/// Exit code, standard output, standard error.
fn graph_run(args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(cargo_bin("graph-run"));
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR"))).args(args).env("NO_COLOR", "1");
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn plan_shows_shapes_costs_notes_and_memory() {
    let (code, out, err) = graph_run(&["plan", SFT]);
    assert_eq!(code, 0, "{err}");
    for part in
        ["policy", "masked-loss", "lora-update", "FLOP", "trainable values", "predicted peak memory", "AdamW"]
    {
        assert!(out.contains(part), "{part} in {out}");
    }
    let (code, out, err) = graph_run(&["plan", SFT, "--json", "--lanes", "3"]);
    assert_eq!(code, 0, "{err}");
    let plan: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(plan["lanes"], 3);
    assert!(plan["memory"]["peak"].as_u64().unwrap() > 0);
    assert!(plan["trainable_values"].as_u64().unwrap() > 0);
    let policy = plan["nodes"].as_array().unwrap().iter().find(|n| n["id"] == "policy").unwrap();
    assert!(policy["outputs"][0]["shape"].as_str().unwrap().starts_with("f32["), "{policy}");
}

#[test]
fn dot_is_text_that_graphviz_draws() {
    let (code, out, err) = graph_run(&["dot", SFT]);
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with("digraph") && out.trim_end().ends_with('}'), "{out}");
    let (code, out, err) = graph_run(&["dot", SFT, "--format", "svg"]);
    match Command::new("dot").arg("-V").output() {
        Ok(_) => assert!(code == 0 && out.contains("<svg"), "{err}"),
        Err(_) => assert!(code == 1 && err.contains("Graphviz"), "{err}"),
    }
}

#[test]
fn ops_lists_every_operator_and_shows_ports_and_settings_with_defaults() {
    let (code, list, _) = graph_run(&["ops"]);
    assert_eq!(code, 0);
    let names: Vec<&str> = list.lines().filter_map(|l| l.split_whitespace().next()).collect();
    assert!(names.contains(&"noise") && names.contains(&"masked-loss"), "{list}");
    for name in names {
        let (code, out, err) = graph_run(&["ops", name]);
        assert_eq!(code, 0, "{name}: {err}");
        assert!(out.starts_with(name) && out.contains("\noutputs\n"), "{out}");
    }
    let (_, out, _) = graph_run(&["ops", "noise"]);
    assert!(out.contains("process: flow") && out.contains("flow | ddpm_eps | ddpm_v"), "{out}");
    let (code, _, err) = graph_run(&["ops", "nosie"]);
    assert!(code == 1 && err.contains("did you mean `noise`?"), "{err}");
}

#[test]
fn mistakes_on_the_command_line_say_what_would_have_been_accepted() {
    let (code, _, err) = graph_run(&[SFT, "--device", "cuda:0"]);
    assert!(code == 2 && err.contains("computes on the CPU only") && err.contains("--device cpu"), "{err}");
    let (code, _, err) = graph_run(&["plan", SFT, "--set", "noise.proces=flow"]);
    assert!(code == 1 && err.contains("did you mean `process`?") && err.contains("--set:1:7"), "{err}");
    let (code, _, err) = graph_run(&["graphs/none.ron"]);
    assert!(code == 1 && err.contains("graphs/none.ron"), "{err}");
    let (code, _, err) = graph_run(&[]);
    assert!(code == 1 && err.contains("--help"), "{err}");
    let (code, out, _) = graph_run(&["--help"]);
    assert!(code == 0 && out.contains("--resume"), "{out}");
}

#[test]
fn shapes_that_do_not_fit_are_shown_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("g.ron");
    let parent = Path::new(env!("CARGO_MANIFEST_DIR")).join(SFT);
    let text = format!(
        "Graph(extends: {:?}, nodes: [(id: \"noise\", in: (x0_w: \"case.eps_of_nobody\"))])",
        parent.display().to_string()
    );
    std::fs::write(&path, text).unwrap();
    let (code, _, err) = graph_run(&["plan", path.to_str().unwrap()]);
    assert!(code == 1 && err.contains("g.ron:1:") && err.contains("has no output `eps_of_nobody`"), "{err}");
}
