//! Runs that are killed at random moments, again and again, until one of them comes to its end.

use std::{process::Stdio, thread, time::Duration};

use crate::{
    campaign::run,
    runs::{STEPS, command, ended_well, is_exact, undisturbed},
};

/// Kills of one run; what is left of it then runs undisturbed.
const KILLS: usize = 6;
/// The longest that a run lives before it is killed. On a machine where it ends sooner, it is killed less often.
const LIFE: usize = 400;

#[test]
fn a_run_that_is_killed_again_and_again_ends_as_if_it_never_had_been() {
    undisturbed();
    let ends = run("kills", 6, |choices| {
        let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
        let out = folder.path().join("run");
        let mut killed = 0;
        for _ in 0..KILLS {
            let mut command = command(&out, out.exists());
            let mut child =
                command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().map_err(|e| e.to_string())?;
            thread::sleep(Duration::from_millis(choices.below(LIFE) as u64));
            child.kill().map_err(|e| e.to_string())?;
            let status = child.wait().map_err(|e| e.to_string())?;
            match status.code() {
                None => killed += 1,
                Some(0) => break,
                Some(code) => return Err(format!("a resumed run ended with {code}")),
            }
        }
        let output = command(&out, out.exists()).output().map_err(|e| e.to_string())?;
        if !ended_well(&output)? {
            return Err(format!("what is left cannot be resumed: {}", crate::runs::stderr(&output)));
        }
        is_exact(&out, 0)?;
        Ok(if killed > 0 { "killed and exact" } else { "complete before it was killed" })
    });
    assert!(!crate::campaign::is_whole() || ends.contains_key("killed and exact"), "{ends:?}");
    assert_eq!(STEPS, 6, "the golden case has six steps");
}
