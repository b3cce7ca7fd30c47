//! Ctrl-C, SIGTERM, SIGHUP.

use std::{os::unix::process::ExitStatusExt, path::Path, process::Command, time::Duration};

use crate::*;

/// So many steps that nobody waits for the end.
const LONG: [&str; 4] = ["--steps", "100000", "--threads", "1"];
/// Pictures of so many pixels a side: the larger, the longer a step.
fn slow(side: usize) -> Vec<String> {
    let sets = [format!("pairs.height={side}"), format!("pairs.width={side}"), "pairs.batch=8".into()];
    let sets = sets.into_iter().flat_map(|set| ["--set".into(), set]);
    ["graphs/sft.ron", "--steps", "3", "--threads", "1"].map(String::from).into_iter().chain(sets).collect()
}

/// What a process ignores, those that it starts ignore, too.
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

fn start(out: &Path, args: &[String]) -> Living {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Living::start(command(out, &[&args])).until(out, 1)
}

#[test]
fn each_request_to_stop_finishes_the_step_and_leaves_a_checkpoint_and_the_adapter() {
    for signal in ["INT", "TERM", "HUP"] {
        if signal == "HUP" && is_hangup_ignored() {
            eprintln!("SIGHUP is ignored here, as under `nohup`: skipped");
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("r");
        let more = ["--set", "run.checkpoint_adapter=false", "--set", "run.checkpoint_every=0"];
        let mut run = Living::start(command(&out, &[&DEMO, &LONG, &more])).until(&out, 2);
        run.send(signal);
        let stopped = run.end();
        let said = stderr(&stopped);
        assert_eq!(stopped.status.code(), Some(130), "{signal}: {said}");
        let made = metrics(&out).len() as u64;
        assert_eq!(checkpoints(&out).last(), Some(&made), "{signal}: {said}");
        assert_eq!(adapter_step(&out), made, "{signal}");
        assert!(said.contains(&format!("SIG{signal}")) && said.contains("--resume"), "{said}");
    }
}

#[test]
fn a_second_signal_within_a_second_is_the_same_request() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let mut run = start(&out, &slow(256));
    run.send("INT");
    std::thread::sleep(Duration::from_millis(100));
    run.send("TERM");
    let stopped = run.end();
    assert_eq!(stopped.status.code(), Some(130), "{}", stderr(&stopped));
    assert_eq!(checkpoints(&out), [0, 2]);
    assert_eq!(adapter_step(&out), 2);
}

#[test]
fn a_signal_more_than_a_second_later_ends_the_run_at_once_as_it_would_any_program() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    // The step must last longer than the pause.
    let mut run = start(&out, &slow(512));
    run.send("TERM");
    std::thread::sleep(Duration::from_millis(1100));
    run.send("TERM");
    let ended = run.end();
    assert_eq!(ended.status.signal(), Some(15), "{}", stderr(&ended));
    assert_eq!(checkpoints(&out), [0]);
}

#[test]
fn a_run_that_was_started_with_nohup_outlives_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let inner = command(&out, &[&DEMO, &LONG]);
    let line: Vec<String> = std::iter::once(inner.get_program())
        .chain(inner.get_args())
        .map(|a| format!("'{}'", a.to_str().unwrap()))
        .collect();
    let mut shell = Command::new("sh");
    shell.current_dir(root()).args(["-c", &format!("trap '' HUP; exec {}", line.join(" "))]);
    let mut run = Living::start(shell).until(&out, 1);
    run.send("HUP");
    let made = metrics(&out).len();
    let mut run = run.until(&out, made + 3);
    run.send("INT");
    assert_eq!(run.end().status.code(), Some(130));
}

#[test]
fn a_run_that_was_interrupted_is_gone_on_with_as_if_it_had_not_been() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("r"));
    let steps = ["--steps", "12"];
    runs(&whole, &[&DEMO, &steps]);
    let mut run = Living::start(command(&out, &[&DEMO, &steps])).until(&out, 2);
    run.send("TERM");
    run.end();
    runs(&out, &[&DEMO, &steps, &["--resume"]]);
    assert_eq!(metrics(&out), metrics(&whole));
    assert!(adapter(&out) == adapter(&whole));
}

#[test]
fn what_is_lost_is_bounded_by_time_too() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    let minutes = ["--set", "run.checkpoint_minutes=0.002", "--set", "run.checkpoint_every=0"];
    let mut run = Living::start(command(&out, &[&DEMO, &LONG, &minutes]));
    let begun = std::time::Instant::now();
    while !Path::new(&out.join("adapter.safetensors")).exists() {
        assert!(begun.elapsed() < Duration::from_secs(300), "no adapter is written");
        std::thread::sleep(Duration::from_millis(5));
    }
    run.send("KILL");
    run.end();
    assert!(checkpoints(&out).last().is_some_and(|step| *step > 0));
}
