//! `graph-run sweep`: the variants of a sweep leave what their own runs leave, to the bit.

mod plans;
#[cfg(unix)]
mod signals;

#[path = "../copy/mod.rs"]
mod copy;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use assert_cmd::cargo::cargo_bin;
use copy::copy;
use serde_json::Value;

/// The demo's pictures, small, and all that a recipe has: masks, held-out pairs, previews, two formats of adapters.
const DEMO: [&str; 17] = [
    "graphs/focusdpo.ron",
    "--steps",
    "6",
    "--set",
    "pairs.height=64",
    "--set",
    "pairs.width=64",
    "--set",
    "pairs.reference_height=32",
    "--set",
    "pairs.reference_width=32",
    "--set",
    "pairs.batch=2",
    "--set",
    "held_out.first=2",
    "--set",
    "preview.every=3",
];
/// Held-out pairs are measured twice; a checkpoint after every other step, and all of them kept.
const OFTEN: [&str; 6] =
    ["--set", "held_out_log.every=3", "--set", "run.checkpoint_every=2", "--set", "run.keep_checkpoints=99"];
const TAU: [&str; 2] = ["--over", "fuse.tau=0.05,0.4"];
const GAMMA: [&str; 2] = ["--over", "fuse.gamma=0,0.6"];

fn command(args: &[&[&str]]) -> Command {
    let mut command = Command::new(cargo_bin("graph-run"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(args.concat());
    command.env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A command that must go well: standard output and standard error.
fn good(args: &[&[&str]]) -> (String, String) {
    let output = command(args).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    (String::from_utf8(output.stdout.clone()).unwrap(), stderr(&output))
}

/// A command that must be refused with exit code 1; what it said.
fn refused(args: &[&[&str]]) -> String {
    let output = command(args).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    stderr(&output)
}

fn sweep(out: &Path, args: &[&[&str]]) -> (String, String) {
    good(&[&[&["sweep"], &DEMO[..], &OFTEN, &["--out", out.to_str().unwrap()]].concat(), &args.concat()])
}

/// The run of one variant by itself.
fn single(out: &Path, args: &[&str]) {
    good(&[&DEMO, &OFTEN, &["--out", out.to_str().unwrap()], args]);
}

/// The folders of the variants, in order.
fn variants(out: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(out).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    found.sort();
    found
}

/// Every file of a run by its path, but those that a clock, the machine or the command line are in: of metrics all but the
/// times.
fn files(run: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut open = vec![run.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let name = entry.strip_prefix(run).unwrap().to_str().unwrap().to_owned();
            match name.as_str() {
                "command.json" | "graph.dot" | "lock" => {}
                "metrics.jsonl" => found.push((name, metrics(&entry))),
                _ if entry.is_dir() => open.push(entry),
                _ => found.push((name, fs::read(entry).unwrap())),
            }
        }
    }
    found.sort();
    found
}

fn metrics(path: &Path) -> Vec<u8> {
    let text = fs::read_to_string(path).unwrap();
    let mut kept = Vec::new();
    for line in text.lines() {
        let times = line.find(", \"seconds\"").expect("the times come last");
        kept.extend_from_slice(&line.as_bytes()[..times]);
        kept.push(b'\n');
    }
    kept
}

/// The same files with the same bytes; what differs is named.
fn same(a: &Path, b: &Path) {
    let (a, b) = (files(a), files(b));
    let names = |files: &[(String, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&a), names(&b));
    for ((name, a), (_, b)) in a.iter().zip(&b) {
        assert!(a == b, "{name} differs");
    }
    assert!(names(&a).iter().any(|name| name == "adapter.safetensors"));
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_sweep_over_two_settings_leaves_the_bits_of_four_runs() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("sweep");
    let (table, said) = sweep(&out, &[&TAU, &GAMMA]);
    let found = variants(&out);
    let names: Vec<&str> = found.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(
        names,
        ["1-tau=0.05,gamma=0", "2-tau=0.05,gamma=0.6", "3-tau=0.4,gamma=0", "4-tau=0.4,gamma=0.6"]
    );
    for (at, (tau, gamma)) in
        [("0.05", "0"), ("0.05", "0.6"), ("0.4", "0"), ("0.4", "0.6")].into_iter().enumerate()
    {
        let alone = dir.path().join(format!("alone-{at}"));
        single(&alone, &["--set", &format!("fuse.tau={tau}"), "--set", &format!("fuse.gamma={gamma}")]);
        same(&found[at], &alone);
    }
    let adapters: std::collections::BTreeSet<Vec<u8>> =
        found.iter().map(|path| fs::read(path.join("adapter.safetensors")).unwrap()).collect();
    assert!(adapters.len() >= 3, "the variants are not one");

    assert!(
        said.contains("every logit is exactly 0") && said.contains("complete: 6 steps of 4 variants"),
        "{said}"
    );
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].contains("fuse.tau") && lines[0].contains("held_out.margin"), "{table}");
    assert_eq!(lines.len(), 6, "a title, four variants, a word: {table}");
    let report = json(&out.join("sweep.json"));
    assert_eq!(report["compared_by"], "held_out.margin");
    assert_eq!(report["variants"][2]["settings"]["fuse.tau"], "0.4");
    let points = report["variants"][0]["measures"]["held_out.margin"]["points"].as_array().unwrap();
    assert_eq!(points.iter().map(|p| p["steps"].as_u64().unwrap()).collect::<Vec<_>>(), [3, 6]);
    let figure = fs::read_to_string(out.join("sweep.svg")).unwrap();
    assert!(figure.starts_with("<svg") && figure.ends_with("</svg>\n"), "{figure}");
    assert!(figure.contains("held_out.margin") && figure.matches("<rect").count() >= 8, "{figure}");
}

#[test]
fn lanes_and_what_runs_ahead_change_no_bit() {
    let dir = tempfile::tempdir().unwrap();
    let first = dir.path().join("1");
    sweep(&first, &[&TAU, &["--lanes", "1"]]);
    for (lanes, ahead) in [("2", "2"), ("3", "0"), ("4", "1")] {
        let other = dir.path().join(lanes);
        sweep(&other, &[&TAU, &["--lanes", lanes, "--set", &format!("run.ahead={ahead}")]]);
        for (a, b) in variants(&first).iter().zip(variants(&other)) {
            for name in ["adapter.safetensors", "adapter.kohya.safetensors"] {
                assert!(
                    fs::read(a.join(name)).unwrap() == fs::read(b.join(name)).unwrap(),
                    "{lanes} lanes: {name}"
                );
            }
            assert!(metrics(&a.join("metrics.jsonl")) == metrics(&b.join("metrics.jsonl")), "{lanes} lanes");
        }
    }
}

/// The sweep as it was when it was killed: each variant with its checkpoints up to some step.
fn killed(from: &Path, to: &Path, steps: &[u64]) {
    copy(from, to);
    for (folder, most) in variants(to).iter().zip(steps) {
        for entry in fs::read_dir(folder.join("checkpoints")).unwrap().map(|e| e.unwrap().path()) {
            let step = entry.file_name().unwrap().to_str().unwrap().strip_prefix("step-").unwrap().to_owned();
            if step.parse::<u64>().unwrap() > *most {
                fs::remove_dir_all(entry).unwrap();
            }
        }
        fs::remove_file(folder.join("adapter.safetensors")).unwrap();
        fs::write(folder.join("lock"), "999999999\n").unwrap();
    }
    fs::remove_file(to.join("sweep.json")).unwrap();
    fs::write(to.join("lock"), "999999999\n").unwrap();
}

#[test]
fn a_sweep_goes_on_from_the_newest_checkpoint_that_all_variants_have() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    let (table, _) = sweep(&whole, &[&TAU]);
    let resumed = |name: &str, steps: &[u64], more: &[&str]| {
        let again = dir.path().join(name);
        killed(&whole, &again, steps);
        let (found, said) =
            good(&[&["sweep", "graphs/focusdpo.ron", "--resume", "--out", again.to_str().unwrap()], more]);
        for (a, b) in variants(&whole).iter().zip(variants(&again)) {
            same(a, &b);
        }
        assert_eq!(found, table);
        said
    };
    // What was said at first is known: settings, lists of values.
    let said = resumed("same", &[4, 4], &[]);
    assert!(said.contains("resumed at step 4"), "{said}");
    let said = resumed("torn", &[2, 4], &TAU);
    assert!(said.contains("checkpoints of steps 2 to 4") && said.contains("resumed at step 2"), "{said}");
    let said = resumed("complete", &[6, 6], &[]);
    assert!(
        said.contains("did not hold the adapter of step 6") && said.contains("the sweep is complete"),
        "{said}"
    );

    let out = whole.to_str().unwrap();
    let resume = ["sweep", "graphs/focusdpo.ron", "--resume", "--out", out];
    let said = refused(&[&resume, &["--over", "fuse.tau=0.05,0.3"]]);
    assert!(said.contains("has other variants: --over \"fuse.tau=0.05,0.4\""), "{said}");
    let said = refused(&[&resume, &["--set", "update.lr=1e-3"]]);
    assert!(
        said.contains("update.lr") && said.contains("--accept-changes") && !said.contains("variant 1"),
        "{said}"
    );
    let said = refused(&[&["graphs/focusdpo.ron", "--resume", "--out", out]]);
    assert!(said.contains("holds a sweep") && said.contains("graph-run sweep"), "{said}");
    let said = refused(&[&["sweep", "graphs/focusdpo.ron", "--out", out], &TAU]);
    assert!(said.contains("already holds a run"), "{said}");
    // Longer, together and one of them alone.
    let alone = dir.path().join("alone");
    copy(&variants(&whole)[1], &alone);
    good(&[&[
        "graphs/focusdpo.ron",
        "--resume",
        "--steps",
        "8",
        "--accept-changes",
        "--out",
        alone.to_str().unwrap(),
    ]]);
    let (_, said) = good(&[&resume, &["--steps", "8", "--accept-changes"]]);
    assert!(said.contains("resumed at step 6"), "{said}");
    same(&variants(&whole)[1], &alone);
}

#[test]
fn a_variant_that_went_on_alone_is_taken_back_only_if_that_is_accepted() {
    for by_folder in [false, true] {
        goes_on_alone(by_folder);
    }
}

/// By the recipe, or by the variant's own folder, whose graph states all values.
fn goes_on_alone(by_folder: bool) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("sweep");
    sweep(&out, &[&TAU]);
    let alone = variants(&out)[0].clone();
    let resume = ["sweep", "graphs/focusdpo.ron", "--resume", "--out", out.to_str().unwrap()];
    let graph = if by_folder { alone.to_str().unwrap() } else { "graphs/focusdpo.ron" };
    let go_on = [graph, "--resume", "--out", alone.to_str().unwrap(), "--steps"];
    good(&[&go_on, &["8"]]);
    let before = files(&alone);
    for steps in ["6", "7"] {
        let said = refused(&[&resume, &["--steps", steps]]);
        assert!(
            said.contains("went on without it") && said.contains("variant 1") && said.contains("step 8"),
            "{said}"
        );
        assert!(!said.contains("variant 2"), "{said}");
    }
    let said = refused(&[&resume, &["--accept-changes"]]);
    assert!(said.contains("the sweep is complete, so there is nothing to go on with"), "{said}");
    assert!(files(&alone) == before, "a refused resume changes nothing");
    let (_, said) = good(&[&resume, &["--steps", "7", "--accept-changes"]]);
    assert!(
        said.contains("lose what they made after step 6") && said.contains("resumed at step 6"),
        "{said}"
    );
    // What it had made is gone, so that nothing goes on from it by mistake.
    let (_, said) = good(&[&go_on, &["8", "--accept-changes"]]);
    assert!(said.contains("resumed at step 7"), "{said}");
}

#[test]
fn a_sweep_that_was_killed_between_two_checkpoints_goes_on_whatever_its_threads_were() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("sweep"));
    sweep(&whole, &[&TAU]);
    killed(&whole, &out, &[4, 4]);
    let resume = ["sweep", "graphs/focusdpo.ron", "--resume", "--out", out.to_str().unwrap()];
    good(&[&resume, &["--threads", "1"]]);
    fs::remove_dir_all(variants(&out)[1].join("checkpoints/step-6")).unwrap();
    let (_, said) = good(&[&resume]);
    assert!(said.contains("checkpoints of steps 4 to 6") && said.contains("resumed at step 4"), "{said}");
    variants(&whole).iter().zip(variants(&out)).for_each(|(a, b)| same_adapters(a, &b));
}

/// Graphs say how many threads there were; what was trained does not.
fn same_adapters(a: &Path, b: &Path) {
    let read = |run: &Path| fs::read(run.join("adapter.safetensors")).unwrap();
    assert!(read(a) == read(b), "{} and {}", a.display(), b.display());
}

#[test]
fn a_sweep_that_has_lost_what_it_must_know_says_so_and_trains_nothing_again() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    let rates = ["--over", "update.lr=1e-4,1e30", "--set", "update.max_grad_norm=0"];
    sweep(&whole, &[&rates]);
    let resumed = |name: &str, spoil: &dyn Fn(&Path), more: &[&str]| {
        let out = dir.path().join(name);
        copy(&whole, &out);
        spoil(&out);
        let before = files(&variants(&out)[0]);
        let said =
            refused(&[&["sweep", "graphs/focusdpo.ron", "--resume", "--out", out.to_str().unwrap()], more]);
        assert!(files(&variants(&out)[0]) == before, "{name}: {said}");
        said
    };
    let said = resumed("damaged", &|out| fs::write(out.join("sweep.json"), "{").unwrap(), &[]);
    assert!(said.contains("sweep.json` is damaged"), "{said}");
    let said = resumed("gone", &|out| fs::remove_file(out.join("sweep.json")).unwrap(), &[]);
    assert!(said.contains("variant 1") && said.contains("has no checkpoint of step 0"), "{said}");
    let said = resumed("forgetful", &|out| fs::remove_file(out.join("command.json")).unwrap(), &[]);
    assert!(said.contains("command.json is gone") && said.contains("--over"), "{said}");

    // Begun anew where one was killed: what a sweep writes at its end is not there.
    let out = dir.path().join("killed");
    copy(&whole, &out);
    fs::remove_file(out.join("sweep.json")).unwrap();
    let said = refused(&[&["sweep", "graphs/focusdpo.ron", "--out", out.to_str().unwrap()], &TAU]);
    assert!(said.contains("already holds a run"), "{said}");
    // Other variants than those of the report.
    let other = ["--resume", "--out", whole.to_str().unwrap()];
    fs::rename(whole.join("command.json"), dir.path().join("command.json")).unwrap();
    let said = refused(&[&["sweep", "graphs/focusdpo.ron"], &other, &TAU]);
    assert!(said.contains("is of other variants"), "{said}");

    let whole = dir.path().join("two");
    sweep(&whole, &[&TAU]);
    let second = variants(&whole)[1].clone();
    fs::rename(&second, dir.path().join("kept")).unwrap();
    let said = refused(&[&["sweep", "graphs/focusdpo.ron", "--resume", "--out", whole.to_str().unwrap()]]);
    assert!(said.contains("the folder of variant 2") && said.contains("is gone"), "{said}");
    assert!(!second.exists(), "nothing stands where the folder has to be put back");
}

#[test]
fn losses_of_different_settings_are_not_compared() {
    let dir = tempfile::tempdir().unwrap();
    let table = |name: &str, over: &str| sweep(&dir.path().join(name), &[&["--over", over]]);
    let (of_rates, said) = table("rates", "update.lr=1e-4,1e-3");
    assert!(!of_rates.contains("cannot be compared"), "{of_rates}");
    assert!(said.contains("numbers on the way are means over 2 variants"), "{said}");
    let (of_betas, said) = table("betas", "loss.beta=500,2000");
    assert!(of_betas.contains("the losses are of different settings and cannot be compared"), "{of_betas}");
    assert!(said.contains("their losses differ in what they are"), "{said}");
    let loss_of = |table: &str| {
        table.lines().next().unwrap().split("  ").filter(|t| !t.is_empty()).position(|t| t.trim() == "loss")
    };
    let starred = |table: &str| {
        let at = loss_of(table).unwrap();
        table.lines().skip(1).take(2).any(|line| {
            let cells: Vec<&str> = line.split("  ").filter(|cell| !cell.trim().is_empty()).collect();
            cells[at].ends_with('*')
        })
    };
    assert!(starred(&of_rates) && !starred(&of_betas), "{of_rates}\n{of_betas}");
}

#[test]
fn a_variant_that_diverges_is_left_out_and_the_others_have_the_bits_that_they_would_have() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("sweep");
    // Without clipping, one step of this rate moves the adapter beyond any number that makes sense.
    let rates = ["--over", "update.lr=1e-4,1e30,2e-4", "--set", "update.max_grad_norm=0"];
    let (table, said) = sweep(&out, &[&rates]);
    assert!(said.contains("WARNING: variant 2 (update.lr=1e30) is left out"), "{said}");
    assert!(said.contains("complete: 6 steps of 2 variants"), "{said}");
    assert!(table.lines().nth(2).unwrap().contains("diverged"), "{table}");
    let report = json(&out.join("sweep.json"));
    let states: Vec<bool> =
        report["variants"].as_array().unwrap().iter().map(|v| v["diverged"].is_string()).collect();
    assert_eq!(states, [false, true, false]);
    let found = variants(&out);
    for (variant, rate) in [(0, "1e-4"), (2, "2e-4")] {
        let alone = dir.path().join(rate);
        single(&alone, &["--set", &format!("update.lr={rate}"), "--set", "update.max_grad_norm=0"]);
        same(&found[variant], &alone);
    }
    let (again, said) =
        good(&[&["sweep", "graphs/focusdpo.ron", "--resume", "--out", out.to_str().unwrap()]]);
    assert!(said.contains("variant 2 (update.lr=1e30) has diverged and stays left out"), "{said}");
    assert_eq!(again, table);
}

#[test]
fn paired_lists_a_cache_and_json() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("sweep");
    let cache = format!("cache.path={}", dir.path().join("cache").display());
    let cached = ["--set", &cache, "--json", "--over", "loss.objective=dpo,ipo; loss.beta=2000,10"];
    let mut demo = DEMO;
    demo[0] = "graphs/focusdpo_cached.ron";
    let (text, _) = good(&[&["sweep"], &demo, &OFTEN, &cached, &["--out", out.to_str().unwrap()]]);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report, json(&out.join("sweep.json")));
    assert_eq!(report["variants"].as_array().unwrap().len(), 2);
    assert_eq!(report["variants"][1]["settings"]["loss.objective"], "ipo");
    // Encoders that run beforehand give the same adapters.
    let alone = dir.path().join("alone");
    single(&alone, &["--set", "loss.objective=ipo", "--set", "loss.beta=10"]);
    let adapter = |folder: &Path| fs::read(folder.join("adapter.kohya.safetensors")).unwrap();
    let tensors = |bytes: &[u8]| {
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        bytes[8 + header..].to_vec()
    };
    // The headers name the graph, which is another one.
    assert!(tensors(&adapter(&variants(&out)[1])) == tensors(&adapter(&alone)));
}

#[test]
fn variants_that_a_setting_does_not_tell_apart_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("s");
    // `epsilon` is of another objective than the recipe's; the third variant has another rate.
    let over = ["--over", "loss.epsilon=0.1,0.2,0.2; update.lr=1e-4,1e-4,1e-3"];
    let (table, _) = sweep(&out, &[&over]);
    assert!(table.contains("1, 2 have the same figures to the last digit"), "{table}");
    assert!(!table.contains("1, 2, 3"), "{table}");
    let (table, _) = sweep(&dir.path().join("rates"), &[&["--over", "update.lr=1e-4,1e-3"]]);
    assert!(!table.contains("the same figures"), "{table}");
    // Of two that are the same, none is the best.
    let ties = dir.path().join("ties");
    let (table, _) = sweep(&ties, &[&["--over", "loss.epsilon=0.1,0.2"]]);
    assert!(!table.contains('*') && json(&ties.join("sweep.json"))["best"].is_null(), "{table}");
}

#[test]
fn a_variant_that_diverges_at_the_first_step_is_left_out_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("s");
    // Held-out pairs are measured with the adapter that the first step makes.
    let (table, said) = sweep(
        &out,
        &[&["--set", "held_out_log.every=1", "--set", "update.warmup=0", "--over", "update.lr=1e-4,1e20"]],
    );
    assert!(table.contains("diverged"), "{table}{said}");
    assert!(
        said.contains("at the first step") && said.contains("a learning rate that is far too large"),
        "{said}"
    );
}

#[test]
fn a_sweep_keeps_the_steps_before_a_picture_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("demo"), dir.path().join("s"));
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("data/demo"), &data);
    let text = fs::read_to_string(data.join("pairs.jsonl")).unwrap();
    for line in text.lines().skip(6) {
        let row: Value = serde_json::from_str(line).unwrap();
        let picture = data.join(row["win"]["image"].as_str().unwrap());
        let bytes = fs::read(&picture).unwrap();
        fs::write(&picture, &bytes[..bytes.len() / 2]).unwrap();
    }
    let path = format!("pairs.path={}", data.join("pairs.jsonl").display());
    let more = ["--set", &path, "--set", "pairs.shuffle=false", "--over", "update.lr=1e-4,1e-3"];
    let said = refused(&[&["sweep"], &DEMO, &more, &["--out", out.to_str().unwrap()]]);
    assert!(said.contains("is intact; --resume continues from there"), "{said}");
    assert!(!said.contains("starts over"), "{said}");
    for variant in variants(&out) {
        let steps: Vec<_> =
            fs::read_dir(variant.join("checkpoints")).unwrap().flatten().map(|e| e.file_name()).collect();
        assert!(steps.iter().any(|name| name != "step-0"), "{steps:?}");
    }
}
