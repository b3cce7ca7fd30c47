//! Requests to stop.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use super::{DEMO, OFTEN, TAU, command, good, same, sweep, variants};

#[test]
fn an_interrupted_sweep_goes_on_with_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, again) = (dir.path().join("whole"), dir.path().join("again"));
    // What was written when it was interrupted is not kept to the end.
    let never = ["--set", "run.checkpoint_every=0", "--set", "run.keep_checkpoints=1"];
    sweep(&whole, &[&TAU, &never]);
    let out = again.to_str().unwrap();
    let mut child = command(&[&["sweep"], &DEMO, &OFTEN, &TAU, &never, &["--out", out]])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    for line in lines.by_ref().map(Result::unwrap) {
        said += &format!("{line}\n");
        if line.contains("step 2/6") {
            let pid = child.id().to_string();
            assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
            break;
        }
    }
    said.extend(lines.map(|line| line.unwrap() + "\n"));
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said}");
    assert!(said.contains("--resume continues from there"), "{said}");
    assert!(again.join("sweep.json").is_file() && variants(&again)[1].join("adapter.safetensors").is_file());
    let (_, said) = good(&[&["sweep", "graphs/focusdpo.ron", "--resume", "--out", out]]);
    assert!(said.contains("resumed at step "), "{said}");
    for (a, b) in variants(&whole).iter().zip(variants(&again)) {
        same(a, &b);
    }
}
