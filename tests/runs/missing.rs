//! A run whose checkpoints cannot be read is not started over, and the message says what is missing.

use crate::*;

/// A finished run of the golden case.
fn finished(dir: &Path) -> PathBuf {
    let out = dir.join("r");
    runs(&out, &[&[CASE], &EVERY]);
    out
}

#[test]
fn a_run_whose_checkpoints_are_gone_is_not_begun_again() {
    let dir = tempfile::tempdir().unwrap();
    let out = finished(dir.path());
    fs::rename(out.join("checkpoints"), dir.path().join("away")).unwrap();
    let said = refused(&out, &[&[CASE, "--resume"]]);
    for part in ["adapter.safetensors", "graph.ron", "metrics.jsonl", "no checkpoint", "nothing was changed"]
    {
        assert!(said.contains(part), "{part} in {said}");
    }
    refused(&out, &[&[CASE, "--resume", "--accept-changes"]]);

    // An empty folder of checkpoints is no better, nor is a link to a disk that is not there.
    fs::create_dir(out.join("checkpoints")).unwrap();
    refused(&out, &[&[CASE, "--resume"]]);
    #[cfg(unix)]
    {
        fs::remove_dir(out.join("checkpoints")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("nowhere"), out.join("checkpoints")).unwrap();
        refused(&out, &[&[CASE, "--resume"]]);
        fs::remove_file(out.join("checkpoints")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("away"), out.join("checkpoints")).unwrap();
        let said = runs(&out, &[&[CASE, "--resume"]]);
        assert!(said.contains("the run is complete"), "{said}");
    }
}

#[test]
fn a_run_that_was_killed_before_its_first_checkpoint_is_begun_again() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("r"));
    let steps = ["--steps", "8"];
    runs(&whole, &[&DEMO, &steps]);
    let mut run = Living::start(command(&out, &[&DEMO, &steps])).until(&out, 1);
    run.send("KILL");
    run.end();
    assert_eq!(checkpoints(&out), [0]);
    let said = runs(&out, &[&DEMO, &steps, &["--resume"]]);
    assert!(said.contains("resumed at step 0") && said.contains("cut off"), "{said}");
    assert_eq!(metrics(&out), metrics(&whole));
    assert!(adapter(&out) == adapter(&whole));
}

#[test]
fn an_empty_folder_and_one_with_other_files_hold_no_run() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    let said = runs(dir.path(), &[&[CASE, "--resume"]]);
    assert!(said.contains("holds no run yet"), "{said}");
    assert_eq!(fs::read_to_string(dir.path().join("notes.txt")).unwrap(), "mine");
}

/// Whatever file is the one too many, nothing is begun again and nothing is changed.
#[cfg(unix)]
#[test]
fn a_process_that_may_open_too_few_files_goes_on_or_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let whole = finished(dir.path());
    let (before, metrics_before) = (adapter(&whole), metrics(&whole));
    let out = dir.path().join("killed");
    killed_at(&whole, &out, 4);
    let mut went_on = 0;
    for limit in 4..40 {
        let again = dir.path().join(format!("{limit}"));
        copy(&out, &again);
        let inner = command(&again, &[&[CASE], &EVERY, &["--resume"]]);
        let words = std::iter::once(inner.get_program()).chain(inner.get_args());
        let line: Vec<String> = words.map(|a| format!("'{}'", a.to_str().unwrap())).collect();
        let line = format!("ulimit -n {limit}; exec {}", line.join(" "));
        let output = Command::new("sh").current_dir(root()).args(["-c", &line]).output().unwrap();
        let said = stderr(&output);
        assert!(
            !said.contains("starting at step 0") && !said.contains("resumed at step 0"),
            "{limit}: {said}"
        );
        if output.status.success() {
            went_on += 1;
            assert_eq!(metrics(&again), metrics_before, "{limit}");
            assert!(adapter(&again) == before, "{limit}");
        } else {
            // What was written before the failure is a run that can be resumed.
            let left = metrics(&again);
            assert_eq!(left[..], metrics_before[..left.len()], "{limit}: {said}");
            assert!(left.len() >= 4, "{limit}: {said}");
            runs(&again, &[&[CASE], &EVERY, &["--resume"]]);
            assert_eq!(metrics(&again), metrics_before, "{limit}");
        }
        fs::remove_dir_all(again).unwrap();
    }
    assert!((1..36).contains(&went_on), "{went_on} limits were enough: the test has to meet both");
}

#[test]
fn a_refusal_after_acceptance_leaves_the_folder_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let whole = finished(dir.path());
    let out = dir.path().join("killed");
    killed_at(&whole, &out, 3);
    // Another rank: the change can be accepted, but the cells cannot be restored.
    let rank = ["--resume", "--accept-changes", "--set", "lora.rank=3", "--set", "lora.from=None"];
    let said = refused(&out, &[&[CASE], &rank]);
    assert!(said.contains("cell `lora` cannot be restored"), "{said}");
    refused(&out, &[&[CASE, "--resume", "--seed", "9"]]);
    runs(&out, &[&[CASE, "--resume"]]);
    assert_eq!(metrics(&out), metrics(&whole));
}

#[test]
fn lines_of_metrics_that_are_lost_or_none_are_said_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let whole = finished(dir.path());
    let text = fs::read_to_string(whole.join("metrics.jsonl")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let holed = [&lines[..1], &["what is this"], &lines[3..]].concat().join("\n") + "\n";
    fs::write(whole.join("metrics.jsonl"), &holed).unwrap();
    let said = runs(&whole, &[&[CASE, "--resume"]]);
    assert!(said.contains("lacks the lines of steps 1 to 2: they are lost"), "{said}");
    assert!(said.contains("line 2 of metrics.jsonl is not a line of metrics: `what is this`"), "{said}");
    assert_eq!(fs::read_to_string(whole.join("metrics.jsonl")).unwrap(), holed, "nothing had to be written");

    let out = dir.path().join("killed");
    killed_at(&whole, &out, 5);
    let said = runs(&out, &[&[CASE, "--resume"]]);
    assert!(
        said.contains("1 line of metrics.jsonl, from step 5 on, is cut off; this step runs again"),
        "{said}"
    );
    assert_eq!(metrics(&out).len(), 4, "the line that was none is gone");
}

#[test]
fn a_complete_run_that_lacks_its_adapter_writes_it() {
    let dir = tempfile::tempdir().unwrap();
    let out = finished(dir.path());
    let whole = adapter(&out);
    fs::remove_file(out.join("adapter.safetensors")).unwrap();
    let said = runs(&out, &[&[CASE, "--resume"]]);
    assert!(said.contains("the adapter of step 6 was missing"), "{said}");
    assert!(adapter(&out) == whole);

    // One that is torn, or of an earlier step, is not that of the run; nor is one that was being written.
    fs::write(out.join(".writing-abc"), "half").unwrap();
    fs::write(out.join("adapter.safetensors"), &whole[..whole.len() / 2]).unwrap();
    runs(&out, &[&[CASE, "--resume"]]);
    assert!(adapter(&out) == whole);
    let early = dir.path().join("early");
    runs(&early, &[&[CASE], &["--steps", "3"]]);
    fs::copy(early.join("adapter.safetensors"), out.join("adapter.safetensors")).unwrap();
    runs(&out, &[&[CASE, "--resume"]]);
    assert!(adapter(&out) == whole);
    let said = runs(&out, &[&[CASE, "--resume"]]);
    assert!(!said.contains("was missing") && !out.join(".writing-abc").exists(), "{said}");
}

#[cfg(unix)]
#[test]
fn a_pipe_where_a_file_should_be_keeps_nobody_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let whole = finished(dir.path());
    for name in ["checkpoints/step-4/cells.safetensors", "checkpoints/step-4/state.bin"] {
        let out = dir.path().join("piped");
        killed_at(&whole, &out, 4);
        fs::remove_file(out.join(name)).unwrap();
        assert!(Command::new("mkfifo").arg(out.join(name)).status().unwrap().success());
        let said = runs(&out, &[&[CASE, "--resume"], &EVERY]);
        assert!(said.contains("not a regular file") && said.contains("resumed at step 3"), "{said}");
        assert_eq!(metrics(&out), metrics(&whole));
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn a_run_that_was_killed_while_it_marked_its_folder_is_begun() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    fs::create_dir_all(out.join("checkpoints/.writing-abc")).unwrap();
    fs::write(out.join("checkpoints/.writing-abc/cells.safetensors"), "half").unwrap();
    fs::write(out.join("lock"), "999999999\n").unwrap();
    let said = runs(&out, &[&[CASE, "--resume"]]);
    assert!(said.contains("holds no run yet") && said.contains("complete: 6 steps"), "{said}");
    assert_eq!(checkpoints(&out), [6]);
    assert!(!out.join("checkpoints/.writing-abc").exists());
}
