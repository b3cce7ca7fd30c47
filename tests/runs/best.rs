//! The adapter of the best measurement of held-out pairs: the same however a run comes to its end.

use crate::*;

/// Four held-out pairs in batches of two, measured every three steps, at a rate at which they soon get worse again.
const OFTEN: [&str; 8] = [
    "--set",
    "held_out.first=4",
    "--set",
    "held_out_log.every=3",
    "--set",
    "update.lr=1e-2",
    "--set",
    "update.warmup=0",
];

/// The files of a folder of a run, by name.
fn inside(out: &Path, folder: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let place = out.join(folder);
    files(&place)
        .into_iter()
        .map(|(path, bytes)| (path.strip_prefix(&place).unwrap().to_owned(), bytes))
        .collect()
}

/// The files of the best adapter, by name.
fn best(out: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    inside(out, "best")
}

fn facts(out: &Path) -> Value {
    serde_json::from_slice(&fs::read(out.join("best/best.json")).unwrap()).unwrap()
}

/// The steps of all measurements, with what is compared: the winner's error.
fn measured(out: &Path) -> Vec<(u64, f64)> {
    let value = |line: &Value| Some((line["step"].as_u64()? + 1, line["held_out.all.w_diff"].as_f64()?));
    metrics(out).iter().filter_map(value).collect()
}

/// What the best of them must be.
fn lowest(measured: &[(u64, f64)]) -> Option<(u64, f64)> {
    measured.iter().copied().filter(|(_, w)| *w <= 0.0).reduce(|a, b| if b.1 < a.1 { b } else { a })
}

#[test]
fn the_best_adapter_is_that_of_the_step_after_which_held_out_winners_had_the_lowest_error() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let said = runs(&out, &[&DEMO, &OFTEN, &EVERY, &["--steps", "13"]]);
    let measured = measured(&out);
    assert_eq!(measured.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [3, 6, 9, 12, 13]);
    let (step, value) = lowest(&measured).expect("training makes some step better than the frozen network");
    assert_ne!(step, 13, "the rate is so high that a later step is worse: {measured:?}");
    let facts = facts(&out);
    assert_eq!((&facts["step"], &facts["criterion"]), (&step.into(), &"winner".into()));
    assert_eq!(facts["value"].as_f64(), Some(value));
    assert_eq!(facts["figures"]["all"]["pairs"], 4.0);
    let file = |name: &str| {
        let path = out.join("best").join(name);
        prefgraph_nn::lora::AdapterFile::open(&path, "", &prefgraph_nn::models::flux::NAMES).unwrap()
    };
    for name in facts["files"].as_array().unwrap() {
        assert_eq!(file(name.as_str().unwrap()).metadata()["prefgraph.step"], step.to_string(), "{name}");
    }
    assert_eq!(facts["files"].as_array().unwrap().len(), 2, "as many formats as the run exports");
    assert!(said.contains(&format!("best step {step} of 13 by the held-out winners' error")), "{said}");
    // The factors are those of that step's checkpoint.
    let cells = out.join(format!("checkpoints/step-{step}/cells.safetensors"));
    let cells = prefgraph_nn::files::TensorFiles::open(&cells).unwrap();
    let kept = prefgraph_nn::files::TensorFiles::open(&out.join("best/adapter.safetensors")).unwrap();
    for name in kept.names() {
        let cell = name.strip_prefix("transformer.").unwrap_or(name);
        assert_eq!(kept.read(name).unwrap(), cells.read(&format!("lora/{cell}")).unwrap(), "{name}");
    }
}

#[test]
fn a_run_that_is_killed_anywhere_and_resumed_has_the_best_adapter_of_one_that_was_not() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    runs(&whole, &[&DEMO, &OFTEN, &EVERY, &["--steps", "10"]]);
    let all = measured(&whole);
    // In the midst of a measurement, at the end of one, and before the first; the files of later steps are still there.
    for step in [1, 2, 5, 6, 8] {
        let out = dir.path().join(format!("killed-{step}"));
        killed_at(&whole, &out, step);
        runs(&out, &[&DEMO, &OFTEN, &EVERY, &["--steps", "10", "--resume"]]);
        assert!(best(&out) == best(&whole), "killed at {step}");
        assert!(metrics(&out) == metrics(&whole), "killed at {step}");
        let newest = |out: &Path| fs::read(out.join("checkpoints/step-10/cells.safetensors")).unwrap();
        assert!(newest(&out) == newest(&whole), "killed at {step}");
    }
    // The files of a later step are none of a run that goes on another way, even if it finds nothing better than before.
    let out = dir.path().join("other");
    killed_at(&whole, &out, 4);
    let worse = ["--steps", "5", "--resume", "--accept-changes", "--set", "update.lr=0.5"];
    runs(&out, &[&DEMO, &OFTEN, &EVERY, &worse]);
    assert_eq!((lowest(&all).unwrap().0, lowest(&measured(&out)).unwrap().0), (6, 3));
    assert_eq!(facts(&out)["step"], 3);
    // A run that ends earlier has nothing of what came later.
    for step in [2, 6] {
        let out = dir.path().join(format!("shorter-{step}"));
        killed_at(&whole, &out, step);
        let fewer = ["--steps", &step.to_string(), "--resume", "--accept-changes"];
        runs(&out, &[&DEMO, &OFTEN, &EVERY, &fewer]);
        let expected = lowest(&all.iter().copied().filter(|(made, _)| *made <= step).collect::<Vec<_>>());
        match expected {
            Some((made, _)) => assert_eq!(facts(&out)["step"], made, "{step}"),
            None => assert!(!out.join("best").exists(), "{step}"),
        }
    }
}

#[cfg(unix)]
#[test]
fn a_run_that_is_interrupted_has_the_best_adapter_so_far_and_goes_on_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let long = ["--steps", "100000", "--threads", "1", "--set", "update.accumulate=2"];
    let mut run = Living::start(command(&out, &[&DEMO, &OFTEN, &long])).until(&out, 7);
    run.send("INT");
    let stopped = run.end();
    assert_eq!(stopped.status.code(), Some(130), "{}", stderr(&stopped));
    let (step, value) = lowest(&measured(&out)).expect("a better step than none");
    assert_eq!((facts(&out)["step"].as_u64(), facts(&out)["value"].as_f64()), (Some(step), Some(value)));
    assert!(stderr(&stopped).contains(&format!("best step {step} of ")), "{}", stderr(&stopped));

    fs::remove_dir_all(out.join("best")).unwrap();
    let made = metrics(&out).len().to_string();
    let said = runs(&out, &[&DEMO, &["--resume", "--steps", &made, "--accept-changes"]]);
    assert!(said.contains("`best` did not hold the best adapter"), "{said}");
    assert_eq!(facts(&out)["step"].as_u64(), Some(step));
}

#[test]
fn without_held_out_nodes_there_is_no_best_adapter_and_training_has_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let (with, out, graph) = (dir.path().join("with"), dir.path().join("r"), dir.path().join("sft.ron"));
    runs(&with, &[&DEMO, &OFTEN, &["--steps", "6"]]);
    let parent = root().join("graphs/sft.ron");
    fs::write(&graph, format!("Graph(extends: {parent:?}, name: \"sft\", remove: [\"held_out*\"])")).unwrap();
    let sets = [&DEMO[1..], &OFTEN[4..]].concat();
    let said = runs(&out, &[&[graph.to_str().unwrap()], &sets, &["--steps", "6"]]);
    assert!(!out.join("best").exists() && !said.contains("best step"), "{said}");
    assert!(
        metrics(&out).iter().all(|line| line.as_object().unwrap().keys().all(|k| !k.contains("held_out")))
    );
    let factors = |out: &Path| {
        let files = prefgraph_nn::files::TensorFiles::open(&out.join("adapter.safetensors")).unwrap();
        files.names().map(|name| (name.to_owned(), files.read(name).unwrap())).collect::<BTreeMap<_, _>>()
    };
    assert!(factors(&out) == factors(&with));
}

#[test]
fn a_best_adapter_that_can_no_longer_be_compared_is_kept_under_another_name() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    runs(&out, &[&DEMO, &OFTEN, &EVERY, &["--steps", "9"]]);
    let (step, kept) = (facts(&out)["step"].as_u64().unwrap(), best(&out));
    // Fewer pairs: what was measured of more of them says nothing of these.
    let fewer = ["--set", "held_out.first=2", "--steps", "12", "--resume"];
    let said = runs(&out, &[&DEMO, &OFTEN, &EVERY, &fewer]);
    let found = inside(&out, &format!("best-step-{step}"));
    assert!(found == kept, "{:?}", found.keys());
    assert!(said.contains(&format!("is in `best-step-{step}`")), "{said}");
    if out.join("best").exists() {
        assert_ne!(facts(&out)["step"].as_u64(), Some(step));
    }
}

/// A copy of the demo's pairs in a folder, and the settings for a run on it.
fn own_pairs(folder: &Path) -> [String; 4] {
    let demo = root().join("data/demo");
    fs::create_dir_all(folder.join("images")).unwrap();
    for file in fs::read_dir(demo.join("images")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), folder.join("images").join(file.file_name())).unwrap();
    }
    for name in ["pairs", "held_out"] {
        fs::copy(demo.join(format!("{name}.jsonl")), folder.join(format!("{name}.jsonl"))).unwrap();
    }
    settings_for(folder)
}

fn settings_for(folder: &Path) -> [String; 4] {
    let path = |node: &str| format!("{node}.path={}", folder.join(format!("{node}.jsonl")).display());
    ["--set".into(), path("pairs"), "--set".into(), path("held_out")]
}

/// Replace the winner of a held-out pair by its loser.
fn swap(folder: &Path, pair: usize) {
    let lines = fs::read_to_string(folder.join("held_out.jsonl")).unwrap();
    let pair: Value = serde_json::from_str(lines.lines().nth(pair).unwrap()).unwrap();
    let picture = |side: &str| folder.join(pair[side]["image"].as_str().expect("a picture"));
    fs::copy(picture("lose"), picture("win")).unwrap();
}

#[test]
fn other_pictures_of_the_same_pairs_are_compared_anew_however_often_they_change() {
    let dir = tempfile::tempdir().unwrap();
    let (out, data) = (dir.path().join("r"), dir.path().join("data"));
    let own = own_pairs(&data);
    let run = |steps: &str, more: &[&str]| {
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        runs(&out, &[&DEMO, &OFTEN, &EVERY, &own, &["--steps", steps], more])
    };
    run("9", &[]);
    let (step, kept) = (facts(&out)["step"].as_u64().unwrap(), best(&out));
    swap(&data, 0);
    // One step is no measurement.
    let said = run("10", &["--resume"]);
    assert!(best(&out) == kept, "{said}");
    swap(&data, 1);
    let said = run("13", &["--resume"]);
    assert!(inside(&out, &format!("best-step-{step}")) == kept, "{said}");
    let counts =
        ["of 1 measurement", "of 2 measurements", "in the only measurement", "in all 2 measurements"];
    assert!(counts.iter().any(|count| said.contains(count)), "{said}");
}

#[test]
fn pairs_that_have_moved_and_more_to_train_on_are_compared_as_before() {
    let dir = tempfile::tempdir().unwrap();
    let (out, data, moved) = (dir.path().join("r"), dir.path().join("data"), dir.path().join("moved"));
    let own = own_pairs(&data);
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    runs(&out, &[&DEMO, &OFTEN, &EVERY, &own, &["--steps", "9"]]);
    fs::rename(&data, &moved).unwrap();
    let own = settings_for(&moved);
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let said = runs(&out, &[&DEMO, &OFTEN, &EVERY, &own, &["--steps", "12", "--resume"]]);
    assert!(said.contains("of 4 measurements") && !said.contains("best-step-"), "{said}");
}

#[test]
fn a_measurement_by_another_loss_is_compared_anew() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    runs(&out, &[&DEMO, &OFTEN, &EVERY, &["--steps", "9"]]);
    let step = facts(&out)["step"].as_u64().unwrap();
    let other = ["--set", "held_out_errors.beta=500", "--steps", "12", "--resume"];
    let said = runs(&out, &[&DEMO, &OFTEN, &EVERY, &other]);
    assert!(out.join(format!("best-step-{step}")).exists(), "{said}");
    // How often it is measured, and how it is computed, changes no figure.
    let free =
        ["--set", "held_out_measure.levels=2", "--set", "backbone.checkpointing=blocks", "--threads", "1"];
    let said = runs(&out, &[&DEMO, &OFTEN, &EVERY, &free, &["--steps", "15", "--resume"]]);
    assert!(said.contains("of 2 measurements") || said.contains("in all 2 measurements"), "{said}");
}

#[test]
fn a_measurement_that_began_with_other_pairs_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    // A measurement takes three steps. The one that would end with step 9 began with others.
    runs(&out, &[&DEMO, &OFTEN, &EVERY, &["--steps", "8"]]);
    let others = [
        "--set",
        "held_out.path=data/demo/pairs.jsonl",
        "--set",
        "held_out.apart_from=data/demo/held_out.jsonl",
    ];
    let said = runs(&out, &[&DEMO, &OFTEN, &EVERY, &others, &["--steps", "9", "--resume"]]);
    let measured: Vec<u64> = measured(&out).into_iter().map(|(step, _)| step).collect();
    assert_eq!(measured, [3, 6, 8], "{said}");
    assert!(!said.contains("held_out, 4 pairs"), "{said}");
    assert!(said.contains("held_out, 1 pair "), "{said}");
}

#[cfg(unix)]
#[test]
fn no_step_is_lost_where_the_best_adapter_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let rarely = ["--set", "held_out_log.every=20", "--steps", "40", "--threads", "1"];
    let run = Living::start(command(&out, &[&DEMO, &OFTEN, &rarely])).until(&out, 1);
    fs::write(out.join("best"), "in the way").unwrap();
    let stopped = run.end();
    let said = stderr(&stopped);
    assert!(!stopped.status.success(), "{said}");
    assert!(said.contains("best` is a file, where the run has a folder: move the file away"), "{said}");
    // It is also seen before a run goes on.
    let resumed = graph_run(&out, &[&["graphs/sft.ron", "--resume"]]);
    assert_eq!(resumed.status.code(), Some(1));
    assert!(stderr(&resumed).contains("best` is a file, where the run has a folder"), "{}", stderr(&resumed));
    fs::remove_file(out.join("best")).unwrap();
    let made = metrics(&out).len().to_string();
    assert!(made.parse::<u64>().unwrap() > 1, "the first better measurement is at step 3 or later");
    assert!(
        out.join(format!("checkpoints/step-{made}")).exists(),
        "{made} steps, and the checkpoint of the last"
    );
}
