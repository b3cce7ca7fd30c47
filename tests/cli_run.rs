//! `graph-run` on a golden case: folders, metrics, checkpoints, resuming, interruptions.

mod copy;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use assert_cmd::cargo::cargo_bin;
use copy::copy;
use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(cargo_bin("graph-run"));
    command.current_dir(root()).args(args).env("NO_COLOR", "1");
    command
}

fn graph_run(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const SFT: &str = "graphs/replay/sft.ron";
const DPO: &str = "graphs/replay/diffusion_dpo.ron";

/// Run into `out`, which must go well.
fn run(graph: &str, out: &Path, more: &[&str]) -> Output {
    let out = out.to_str().unwrap();
    let output = graph_run(&[&[graph, "--out", out], more].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    output
}

/// The lines of the metrics, without what a clock says.
fn metrics(out: &Path) -> Vec<Value> {
    let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        for key in ["seconds", "data_seconds"] {
            assert!(line[key].as_f64().unwrap() >= 0.0);
            line.as_object_mut().unwrap().remove(key);
        }
        line
    });
    lines.collect()
}

/// The run in `from` as it was when it had made `step` steps and was killed in the next.
fn killed_at(from: &Path, to: &Path, step: u64) {
    copy(from, to);
    for entry in fs::read_dir(to.join("checkpoints")).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if name.strip_prefix("step-").unwrap().parse::<u64>().unwrap() > step {
            fs::remove_dir_all(entry.path()).unwrap();
        }
    }
    fs::remove_file(to.join("adapter.safetensors")).unwrap();
    fs::write(to.join("lock"), "999999999\n").unwrap();
}

const EVERY: [&str; 4] = ["--set", "run.checkpoint_every=1", "--set", "run.keep_checkpoints=99"];

#[test]
fn a_run_leaves_its_folder_and_a_resumed_one_leaves_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    run(SFT, &whole, &EVERY);
    let lines = metrics(&whole);
    assert_eq!(lines.len(), 6);
    for (step, line) in lines.iter().enumerate() {
        assert_eq!(line["step"], step);
        assert!(line["loss"].as_f64().unwrap() > 0.0, "{line}");
    }
    assert!(lines[5]["loss"].as_f64() != lines[0]["loss"].as_f64());
    let dot = fs::read_to_string(whole.join("graph.dot")).unwrap();
    assert!(dot.contains("digraph"), "{dot}");
    let adapter = fs::read(whole.join("adapter.safetensors")).unwrap();
    assert_eq!(fs::read(whole.join("lock")).unwrap(), b"");

    for (step, lanes, ahead) in [(1, "1", "0"), (4, "3", "2")] {
        let again = dir.path().join(format!("from-{step}"));
        killed_at(&whole, &again, step);
        let ahead = format!("run.ahead={ahead}");
        let output =
            run(SFT, &again, &[&EVERY[..], &["--resume", "--lanes", lanes, "--set", &ahead]].concat());
        let said = stderr(&output);
        assert!(said.contains(&format!("resumed at step {step}")), "{said}");
        assert!(said.contains("did not end by itself"), "{said}");
        assert!(said.contains("run.ahead: 1 -> "), "{said}");
        assert_eq!(metrics(&again), lines, "from step {step}");
        assert!(fs::read(again.join("adapter.safetensors")).unwrap() == adapter, "from step {step}");
    }

    // The resolved graph is a graph that does the same.
    let resolved = dir.path().join("resolved");
    run(whole.join("graph.ron").to_str().unwrap(), &resolved, &[]);
    assert_eq!(metrics(&resolved), lines);
    assert!(fs::read(resolved.join("adapter.safetensors")).unwrap() == adapter);

    // A complete run has nothing to do.
    let output = run(SFT, &whole, &[&EVERY[..], &["--resume"]].concat());
    assert!(stderr(&output).contains("the run is complete"), "{}", stderr(&output));
}

#[test]
fn a_torn_checkpoint_is_named_and_the_one_before_used() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    run(DPO, &whole, &EVERY);
    let again = dir.path().join("again");
    killed_at(&whole, &again, 5);
    let state = again.join("checkpoints/step-5/state.bin");
    let bytes = fs::read(&state).unwrap();
    fs::write(&state, &bytes[..bytes.len() / 2]).unwrap();
    let output = run(DPO, &again, &[&EVERY[..], &["--resume"]].concat());
    let said = stderr(&output);
    assert!(said.contains("step-5") && said.contains("torn"), "{said}");
    assert!(said.contains("resumed at step 4"), "{said}");
    assert_eq!(metrics(&again), metrics(&whole));
    assert_eq!(
        fs::read(again.join("adapter.safetensors")).unwrap(),
        fs::read(whole.join("adapter.safetensors")).unwrap()
    );
}

#[test]
fn a_changed_graph_is_not_resumed_without_a_word_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    run(SFT, &whole, &EVERY);
    let again = dir.path().join("again");
    killed_at(&whole, &again, 3);
    let changed = ["--resume", "--seed", "5", "--set", "loss.reduction=sum", "--lanes", "1"];
    let out = again.to_str().unwrap();
    let refused = graph_run(&[&[SFT, "--out", out], &EVERY[..], &changed[..]].concat());
    let said = stderr(&refused);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    for part in ["run.seed: 0 -> 5", "loss.reduction: ", "-> sum", "--accept-changes", "step 3"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert_eq!(metrics(&again).len(), 6, "a refused run changes nothing");
    let output = run(SFT, &again, &[&EVERY[..], &changed[..], &["--accept-changes"]].concat());
    assert!(stderr(&output).contains("accepted"), "{}", stderr(&output));
    assert_eq!(metrics(&again)[..3], metrics(&whole)[..3]);
    assert_ne!(metrics(&again)[3], metrics(&whole)[3]);
}

#[test]
fn a_used_folder_is_refused_and_a_busy_one_too() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    let out = dir.path().to_str().unwrap();
    let refused = graph_run(&[SFT, "--out", out]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("holds files, and none of a run"), "{}", stderr(&refused));

    let lock = fs::OpenOptions::new().create(true).append(true).open(dir.path().join("lock")).unwrap();
    lock.lock().unwrap();
    let refused = graph_run(&[SFT, "--out", out, "--resume"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("is at work in"), "{}", stderr(&refused));
    assert_eq!(fs::read_to_string(dir.path().join("notes.txt")).unwrap(), "mine");
}

#[test]
fn a_checkpoint_that_cannot_be_written_ends_the_run_and_leaves_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    run(SFT, &whole, &EVERY);
    let again = dir.path().join("again");
    killed_at(&whole, &again, 2);
    // No place for step 4: neither a rename over a file nor the removal of a folder can work there.
    fs::write(again.join("checkpoints/step-4"), "in the way").unwrap();
    let out = again.to_str().unwrap();
    let failed = graph_run(&[&[SFT, "--out", out, "--resume"], &EVERY[..]].concat());
    let said = stderr(&failed);
    assert_eq!(failed.status.code(), Some(1), "{said}");
    assert!(said.contains("step-4") && said.contains("the checkpoint of step 3"), "{said}");
    fs::remove_file(again.join("checkpoints/step-4")).unwrap();
    run(SFT, &again, &[&EVERY[..], &["--resume"]].concat());
    assert_eq!(metrics(&again), metrics(&whole));
}

/// A shell leaves the tilde of `--out=~/run` as it is.
#[cfg(unix)]
#[test]
fn a_tilde_is_the_home_folder_in_arguments_too() {
    let home = tempfile::tempdir().unwrap();
    let done = command(&[SFT, "--out=~/run", "--steps", "1"]).env("HOME", home.path()).output().unwrap();
    assert!(done.status.success(), "{}", stderr(&done));
    assert!(home.path().join("run/adapter.safetensors").exists());
}

#[test]
fn a_place_where_nothing_can_be_written_is_an_error() {
    let failed = graph_run(&[SFT, "--out", "/dev/null/run"]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(stderr(&failed).contains("/dev/null/run"), "{}", stderr(&failed));
}

#[test]
fn with_json_standard_output_is_the_metrics_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let output = run(DPO, &out, &["--json", "--steps", "2"]);
    assert_eq!(output.stdout, fs::read(out.join("metrics.jsonl")).unwrap());
    let lines = metrics(&out);
    assert_eq!(lines.len(), 2);
    assert!(lines[0]["logit"].is_array() && lines[0]["ref_w"].is_array(), "{}", lines[0]);
    // The golden adapter does not start at zero, so nothing is claimed about the first step.
    assert!(stderr(&output).contains("does not start at zero"), "{}", stderr(&output));
    assert!(stderr(&output).contains("step 2/2"), "{}", stderr(&output));
}

#[cfg(unix)]
#[test]
fn ctrl_c_finishes_the_step_writes_a_checkpoint_and_the_rest_is_made_later() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    // A golden case's six steps could end before the signal is there: those of the demo take longer.
    let (slow, six) = ("graphs/sft.ron", ["--steps", "6"]);
    run(slow, &whole, &six);
    let out: PathBuf = dir.path().join("stopped");
    let child = command(&[slow, "--out", out.to_str().unwrap(), "--threads", "1", "--lanes", "1"])
        .args(six)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while fs::metadata(out.join("metrics.jsonl")).map_or(0, |m| m.len()) == 0 {
        assert!(begun.elapsed() < Duration::from_secs(120), "the run does not begin");
        std::thread::sleep(Duration::from_millis(1));
    }
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let stopped = child.wait_with_output().unwrap();
    let said = stderr(&stopped);
    assert_eq!(stopped.status.code(), Some(130), "{said}");
    let made = metrics(&out).len();
    assert!(made < 6 && out.join(format!("checkpoints/step-{made}/state.bin")).exists(), "{said}");
    run(slow, &out, &[&six[..], &["--resume"]].concat());
    assert_eq!(metrics(&out), metrics(&whole));
    assert_eq!(
        fs::read(out.join("adapter.safetensors")).unwrap(),
        fs::read(whole.join("adapter.safetensors")).unwrap()
    );
}

/// A full disk, as far as one can be had without being root: no file may grow beyond some kilobytes.
#[cfg(unix)]
#[test]
fn a_disk_that_fills_up_ends_the_run_and_leaves_the_checkpoint_before() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    run(SFT, &whole, &EVERY);
    let again = dir.path().join("again");
    killed_at(&whole, &again, 2);
    let line = format!(
        "trap '' XFSZ; ulimit -f 100; exec {:?} {SFT} --out {:?} --resume {}",
        cargo_bin("graph-run"),
        again,
        EVERY.join(" ")
    );
    let failed = Command::new("sh").current_dir(root()).args(["-c", &line]).output().unwrap();
    let said = stderr(&failed);
    assert_eq!(failed.status.code(), Some(1), "{said}");
    assert!(said.contains("cells.safetensors") && said.contains("the checkpoint of step 2"), "{said}");
    let left = fs::read_dir(again.join("checkpoints")).unwrap().map(|e| e.unwrap().file_name());
    assert!(
        !left.into_iter().any(|name| name.to_string_lossy().starts_with('.')),
        "nothing unfinished is left"
    );
    run(SFT, &again, &[&EVERY[..], &["--resume"]].concat());
    assert_eq!(metrics(&again), metrics(&whole));
}

#[test]
fn the_first_step_of_a_fresh_preference_run_is_ln_2_exactly_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let output = run("graphs/focusdpo.ron", &out, &["--steps", "1", "--set", "pairs.batch=1"]);
    let said = stderr(&output);
    assert!(said.contains("every logit is exactly 0 and the loss exactly ln 2"), "{said}");
    let line = &metrics(&out)[0];
    assert_eq!(line["logit"], serde_json::json!([0.0]));
    assert_eq!(line["loss"].as_f64().unwrap() as f32, std::f32::consts::LN_2);
    assert!(fs::read_dir(out.join("preview")).unwrap().count() > 0, "the first step has a preview");
}
