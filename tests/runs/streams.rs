//! Closed pipes and full disks behind standard error and standard output do not end a run.

use std::{fs::File, process::Stdio};

use crate::*;

/// The run in `out` is that in `whole`.
fn is_whole(out: &Path, whole: &Path) {
    assert_eq!(metrics(out), metrics(whole));
    assert!(adapter(out) == adapter(whole));
}

#[test]
fn a_run_ends_well_whoever_listens() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    runs(&whole, &[&[CASE]]);

    // `2>&1 >/dev/null | true`
    let out = dir.path().join("no reader");
    let mut child = command(&out, &[&[CASE]]).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    is_whole(&out, &whole);

    let out = dir.path().join("full");
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let ended = command(&out, &[&[CASE]]).stderr(full()).status().unwrap();
    assert_eq!(ended.code(), Some(0));
    is_whole(&out, &whole);

    // `--json | head`: standard output has the metrics, which are in the folder, too.
    let out = dir.path().join("json");
    let mut child = command(&out, &[&[CASE, "--json"]]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    is_whole(&out, &whole);

    let out = dir.path().join("json full");
    let ended = command(&out, &[&[CASE, "--json"]]).stdout(full()).output().unwrap();
    assert_eq!(ended.status.code(), Some(0));
    let said = stderr(&ended);
    assert_eq!(said.matches("cannot write to standard output").count(), 1, "{said}");
    is_whole(&out, &whole);
}

/// `| tee log` and Ctrl-C: the terminal interrupts both, and `tee` is gone first.
#[test]
fn an_interrupted_run_whose_reader_is_gone_leaves_a_checkpoint_and_the_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let mut run = Living::start(command(&out, &[&DEMO, &["--steps", "100000"]])).until(&out, 2);
    drop(run.child().stderr.take());
    run.send("INT");
    assert_eq!(run.end().status.code(), Some(130));
    let made = metrics(&out).len() as u64;
    assert_eq!(checkpoints(&out).last(), Some(&made));
    assert_eq!(adapter_step(&out), made);
}

#[test]
fn an_error_that_nobody_hears_is_an_exit_code_and_no_panic() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let full = File::options().write(true).open("/dev/full").unwrap();
    let ended = command(&out, &[&["no-such-graph.ron"]]).stderr(full).status().unwrap();
    assert_eq!(ended.code(), Some(1));
}
