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
fn plan_promises_no_best_step_to_a_run_that_is_shorter_than_a_measurement() {
    // 16 held-out pairs, 4 a batch.
    let (code, out, err) = graph_run(&["plan", "graphs/sft.ron", "--steps", "3"]);
    assert_eq!(code, 0, "{err}");
    let short = "nothing is summed up, and no best adapter is kept: a measurement takes 4 steps, and the run has 3 steps";
    assert!(out.contains(short) && !out.contains("kept: the adapter"), "{out}");
    let (code, out, err) = graph_run(&["plan", "graphs/sft.ron", "--steps", "4"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("after step 4; kept: the adapter with the lowest error on winners"), "{out}");
}

#[test]
fn diff_says_which_nodes_two_graphs_share_and_what_the_others_say_differently() {
    let (code, out, err) = graph_run(&["diff", "graphs/focusdpo.ron", "graphs/diffusion_dpo.ron"]);
    assert_eq!(code, 0, "{err}");
    let line = |start: &str| {
        out.lines().find(|l| l.starts_with(start)).unwrap_or_else(|| panic!("{start} in {out}"))
    };
    assert!(line("the same in both").contains("backbone, lora"), "{out}");
    assert!(line("only in -").contains("fuse (fuse)"), "{out}");
    assert!(!out.contains("only in +"), "{out}");
    assert!(
        out.contains("\nloss (masked-loss)\n  reads mask from\n    - fuse.mask\n    + nothing\n"),
        "{out}"
    );
    assert!(out.contains("\npolicy (forward)\n  hooks:\n    - all\n    + off\n"), "{out}");

    let (code, out, _) = graph_run(&["diff", SFT, SFT]);
    assert!(code == 0 && out.contains("they say the same"), "{out}");
}

#[test]
fn a_run_differs_from_its_recipe_in_what_was_set_alone() {
    const RECIPE: &str = "graphs/sft.ron";
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let folder = out.to_str().unwrap();
    let (code, _, err) = graph_run(&[RECIPE, "--steps", "1", "--set", "update.warmup=3", "--out", folder]);
    assert_eq!(code, 0, "{err}");
    // The folder stands for the graph in it.
    let (code, found, err) = graph_run(&["diff", RECIPE, folder]);
    assert_eq!(code, 0, "{err}");
    let changed: Vec<&str> =
        found.lines().filter(|l| l.starts_with("  ") && !l.starts_with("    ")).map(str::trim).collect();
    assert!(changed.contains(&"warmup:"), "{found}");
    assert!(changed.iter().all(|what| ["warmup:", "steps:"].contains(what)), "{found}");
    // Of two runs also what they have measured.
    assert!(!found.contains("measured"), "{found}");
    let other = dir.path().join("other");
    let betas = ["--set", "loss.beta=500", "--out", other.to_str().unwrap()];
    let (code, _, err) = graph_run(&[&[RECIPE, "--steps", "2"], &betas[..]].concat());
    assert_eq!(code, 0, "{err}");
    let (_, found, _) = graph_run(&["diff", folder, other.to_str().unwrap()]);
    let line = |start: &str| {
        found.lines().find(|l| l.starts_with(start)).unwrap_or_else(|| panic!("{start} in {found}"))
    };
    assert!(
        line("measured").contains("- after 1 step") && line("measured").contains("+ after 2 steps"),
        "{found}"
    );
    let of_the_loss =
        found.lines().skip_while(|l| !l.starts_with("measured")).find(|l| l.starts_with("loss ")).unwrap();
    assert!(of_the_loss.split_whitespace().nth(1).unwrap().parse::<f64>().is_ok(), "{found}");
    assert!(
        found.contains("held_out.w_diff") && found.contains("the losses are of different settings"),
        "{found}"
    );
    for command in [&["plan", folder][..], &["dot", folder]] {
        let (code, _, err) = graph_run(command);
        assert_eq!(code, 0, "{err}");
    }
}

#[test]
fn a_plan_warns_of_a_run_that_its_nodes_do_not_know() {
    let (code, out, err) = graph_run(&["plan", "graphs/sft.ron", "--set", "update.steps=3"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("WARNING: `update.steps` is 3 and the run has 200 steps"), "{out}");
    let (_, out, _) = graph_run(&["plan", "graphs/sft.ron", "--steps", "8"]);
    assert!(!out.contains("WARNING"), "{out}");
    assert!(out.contains("the warm-up is 10 updates long and the run 8 updates"), "{out}");
    let (_, out, _) = graph_run(&["plan", "graphs/focusdpo.ron", "--set", "loss.objective=mapo"]);
    let of_the_loss: Vec<&str> = out.lines().filter(|line| line.starts_with("loss: ")).collect();
    assert!(matches!(of_the_loss[..], [line] if line.contains("its published value is 0.1")), "{out}");
}

#[test]
fn a_list_without_brackets_is_shown_as_it_is_meant() {
    let (code, _, err) = graph_run(&["plan", "graphs/sft.ron", "--set", "lora.targets=to_q,to_k"]);
    assert!(code != 0 && err.contains(r#"--set lora.targets='["to_q","to_k"]'"#), "{err}");
}

#[test]
fn diff_needs_no_file_that_a_graph_names_and_names_a_graph_that_is_missing() {
    let (code, out, err) =
        graph_run(&["diff", "graphs/focusdpo_samples.ron", "graphs/flux/focusdpo_uno.ron"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("only in +") && out.contains("kind:\n    - dct\n    + kl"), "{out}");
    let (code, _, err) = graph_run(&["diff", SFT, "graphs/nowhere.ron"]);
    assert!(code != 0 && err.contains("graphs/nowhere.ron"), "{err}");
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
    let (code, _, err) = graph_run(&[SFT, "--device", "gpu"]);
    assert!(code == 2 && err.contains("cpu, and cuda:0") && err.contains("auto"), "{err}");
    let (code, _, err) = graph_run(&["plan", SFT, "--set", "noise.proces=flow"]);
    assert!(code == 1 && err.contains("did you mean `process`?") && err.contains("--set:1:7"), "{err}");
    let (code, _, err) = graph_run(&["graphs/none.ron"]);
    assert!(code == 1 && err.contains("graphs/none.ron"), "{err}");
    let (code, _, err) = graph_run(&["graphs/focusdp.ron"]);
    assert!(code == 1 && err.contains("did you mean `graphs/focusdpo.ron`?"), "{err}");
    let (code, _, err) = graph_run(&["plan", "graphs"]);
    assert!(code == 1 && err.contains("it is a folder"), "{err}");
    let (code, _, err) = graph_run(&[]);
    assert!(code == 1 && err.contains("--help"), "{err}");
    let (code, out, _) = graph_run(&["--help"]);
    assert!(code == 0 && out.contains("--resume"), "{out}");
}

#[test]
fn words_of_other_programs_are_answered_with_what_was_meant() {
    for word in ["run", "train", "start"] {
        let (code, _, err) = graph_run(&[word, SFT, "--steps", "3"]);
        assert!(code == 2 && err.contains(&format!("as in `graph-run {SFT} --steps 3`")), "{err}");
    }
    let (code, _, err) = graph_run(&["resume", SFT]);
    assert!(code == 2 && err.contains(&format!("`graph-run {SFT} --resume`")), "{err}");
    let (code, _, err) = graph_run(&["plna", SFT]);
    assert!(code == 2 && err.contains("did you mean `plan`?") && err.contains("`adapter`"), "{err}");
}

#[test]
fn numbers_and_settings_of_the_command_line_are_refused_with_what_they_may_be() {
    let refused = |args: &[&str], parts: &[&str]| {
        let (code, _, err) = graph_run(&[&["plan", SFT], args].concat());
        assert!(code != 0, "{args:?}");
        for part in parts {
            assert!(err.contains(part), "{args:?}: {part} in {err}");
        }
    };
    refused(&["--steps", "-1"], &["'-1' for '--steps", "at least 1"]);
    refused(&["--steps", "0"], &["'0' for '--steps", "at least 1"]);
    refused(&["--seed", "-1"], &["'-1' for '--seed", "0 or more"]);
    refused(&["--lanes", "18446744073709551615"], &["at most 1024"]);
    refused(&["--set", "run.lanes=18446744073709551615"], &["--set:1:11", "at most 1024"]);
    refused(&["--set", "run.ahead=9223372036854775807"], &["--set:1:11", "at most 1024"]);
    refused(&["--set", "run.steps=0"], &["--set:1:11", "run.steps=0", "at least 1 step"]);
    refused(&["--set", "run.keep_checkpoints=0"], &["--set:1:22", "at least 1 is kept"]);
    refused(&["--set", "lora.rank=4.5"], &["--set:1:11", "takes whole number", "a whole number is expected"]);
    refused(&["--set", "noise.process", "flow"], &["equals sign", "`--set noise.process=flow`"]);
    refused(&["--set", "noise.process"], &["equals sign", "`--set noise.process=VALUE`"]);
    refused(&["--set", "steps=10"], &["did you mean `--set run.steps=10`?"]);
    refused(&["--set", "lora.rank="], &["--set:1:11", "`rank` cannot be ``", "the value is empty"]);
    refused(&["--set", "u*e.lr=1"], &["--set:1:1", "no node `u*e`", "the last character of a name"]);
    refused(&["--set", "update.lr=@update.nope"], &["--set:1:19", "(`lora-update`) has no setting `nope`"]);
    // Two settings in one, which RON would read as such.
    refused(
        &["--set", "lora.rank=8,alpha:3"],
        &["--set:1:11", "not one value", "one `--set` sets one setting"],
    );
}

#[test]
fn a_setting_of_the_command_line_is_shown_there_and_not_in_the_file() {
    const GRAPH: &str = "graphs/diffusion_dpo.ron";
    let batch = "pairs.batch=9223372036854775807";
    for set in ["pairs.height=24", "pairs.batch=0", "pairs.width=9223372036854775792", "lora.rank=0", batch] {
        let (code, _, err) = graph_run(&["plan", GRAPH, "--set", set]);
        assert!(code == 1 && err.contains("[--set:1:") && err.contains(set), "{set}: {err}");
        assert!(!err.contains("diffusion_dpo.ron:"), "{set}: {err}");
    }
    // Refused when planned: the operator of the file, and the setting.
    let (code, _, err) = graph_run(&["plan", GRAPH, "--set", "prompt.length=9223372036854775807"]);
    let parts = ["larger than any memory", "[--set:1:", "with this setting", "of this operator"];
    let places: Vec<usize> =
        parts.iter().map(|p| err.find(p).unwrap_or_else(|| panic!("{p}: {err}"))).collect();
    assert!(code == 1 && places.is_sorted(), "{err}");
}

#[test]
fn an_error_far_behind_in_a_long_line_is_shown_with_its_surroundings() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("long.ron");
    std::fs::write(&path, format!("Graph(name: \"{}\", nodes: [(id: \"x\")])", "a".repeat(70_000))).unwrap();
    let (code, _, err) = graph_run(&["plan", path.to_str().unwrap()]);
    assert!(code == 1 && err.contains("node `x` states no `op`") && err.contains("long.ron:1:"), "{err}");
    assert!(err.len() < 2000 && !err.contains("panicked"), "{err}");
}

#[test]
fn a_folder_of_another_model_and_one_that_does_not_exist_are_called_what_they_are() {
    let plan = |weights: &str| {
        let sets = ["winner.kind=kl".to_owned(), format!("winner.weights={weights}")];
        let (code, _, err) =
            graph_run(&["plan", "graphs/diffusion_dpo.ron", "--set", &sets[0], "--set", &sets[1]]);
        assert_eq!(code, 1, "{err}");
        // Messages are broken into lines at blanks.
        err.replace(['\n', '│', '×'], " ").split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let err = plan("tests/fixtures/flux_uno/transformer");
    assert!(err.contains("_class_name is FluxTransformer2DModel: expected AutoencoderKL"), "{err}");
    let err = plan("nowhere/vae");
    assert!(err.contains("does not exist") && err.contains("an autoencoder: its folder"), "{err}");
    let folder = tempfile::tempdir().unwrap();
    let index = r#"{"_class_name": "StableDiffusionXLPipeline"}"#;
    std::fs::write(folder.path().join("model_index.json"), index).unwrap();
    let err = plan(folder.path().to_str().unwrap());
    assert!(err.contains("StableDiffusionXLPipeline") && err.contains("an autoencoder: its folder"), "{err}");
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

#[cfg(unix)]
#[test]
fn a_graph_file_that_is_a_device_or_no_text_is_refused_without_reading_on() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("binary.ron"), [0xff; 64]).unwrap();
    std::fs::write(at("child.ron"), r#"Graph(extends: "/dev/zero", name: "x")"#).unwrap();
    std::fs::File::create(at("long.ron")).unwrap().set_len(1 << 30).unwrap();
    for (path, why) in [
        ("/dev/zero".to_owned(), "not a regular file"),
        (at("child.ron"), "not a regular file"),
        (at("long.ron"), "has 1024 MB"),
        (at("binary.ron"), "UTF-8"),
    ] {
        let output = Command::new(cargo_bin!("graph-run")).args(["plan", &path]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(why) && !said.contains("did you mean"), "{said}");
    }
}
