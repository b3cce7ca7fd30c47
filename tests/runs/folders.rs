//! Where a run writes: its folder may be moved, its name may lead elsewhere.

use crate::*;

const LONG: [&str; 4] = ["--steps", "100000", "--set", "run.checkpoint_every=2"];

/// Remove a folder into which a run is writing.
#[cfg(unix)]
fn remove(folder: &Path) {
    while let Err(e) = fs::remove_dir_all(folder) {
        assert_eq!(e.kind(), std::io::ErrorKind::DirectoryNotEmpty, "{e}");
    }
}

#[cfg(unix)]
#[test]
fn a_run_whose_folder_is_moved_or_removed_stops_and_says_where_what_it_saved_is() {
    let dir = tempfile::tempdir().unwrap();
    let (out, moved) = (dir.path().join("r"), dir.path().join("moved"));
    let run = Living::start(command(&out, &[&DEMO, &LONG])).until(&out, 4);
    fs::rename(&out, &moved).unwrap();
    let ended = run.end();
    let said = stderr(&ended);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("is gone") && !said.contains("complete"), "{said}");
    assert!(!out.exists(), "nothing is begun where it was");
    if cfg!(target_os = "linux") {
        let place = moved.canonicalize().unwrap();
        assert!(said.contains(place.to_str().unwrap()), "{said}");
        assert!(said.contains("the checkpoint of step"), "{said}");
    }
    let last = *checkpoints(&moved).last().unwrap();
    let longer = (last + 2).to_string();
    runs(&moved, &[&["graphs/sft.ron", "--resume", "--steps", &longer]]);

    let run = Living::start(command(&out, &[&DEMO, &LONG])).until(&out, 2);
    remove(&out);
    let ended = run.end();
    let said = stderr(&ended);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    let noticed = said.contains("it was removed") && said.contains("went with the folder");
    // Removing takes several calls, and a write between two of them fails by itself.
    let fails = ["No such file or directory", "cannot be written: make its folder first"]
        .iter()
        .any(|why| said.contains(why));
    assert!(noticed || fails, "{said}");
}

#[cfg(unix)]
#[test]
fn a_new_run_at_the_path_of_one_whose_folder_was_moved_shares_nothing_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let (out, moved, whole) = (dir.path().join("r"), dir.path().join("moved"), dir.path().join("whole"));
    runs(&whole, &[&[CASE]]);
    // A long step: the new run is complete before the old one looks.
    let slow = ["--set", "pairs.height=384", "--set", "pairs.width=384", "--set", "pairs.batch=8"];
    let old = Living::start(command(&out, &[&DEMO, &LONG, &slow])).until(&out, 1);
    fs::rename(&out, &moved).unwrap();
    runs(&out, &[&[CASE]]);
    let ended = old.end();
    let said = stderr(&ended);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("another folder is at"), "{said}");
    assert_eq!(metrics(&out), metrics(&whole));
    assert!(adapter(&out) == adapter(&whole));
    assert_eq!(fs::read(out.join("lock")).unwrap(), b"");
}

#[test]
fn the_name_of_a_graph_does_not_lead_out_of_the_folder_of_runs() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["../../../x", "/tmp/x", "", " ", "..", "a/b", "a\\\\b", "a\\nb"] {
        let path = dir.path().join("graph.ron");
        let parent = root().join("graphs/sft.ron");
        let text = format!("Graph(extends: {parent:?}, name: \"{name}\")");
        fs::write(&path, &text).unwrap();
        let mut command = Command::new(cargo_bin("graph-run"));
        let output = command.current_dir(dir.path()).arg(&path).env("NO_COLOR", "1").output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{name}: {said}");
        assert!(said.contains("cannot be the name of a graph") && said.contains("--out"), "{name}: {said}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "{name}: nothing is made");
    }
}

#[cfg(unix)]
#[test]
fn a_working_folder_that_no_text_can_name_is_said_where_it_matters() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().join(OsStr::from_bytes(b"work\xff"));
    fs::create_dir(&here).unwrap();
    let mut command = Command::new(cargo_bin("graph-run"));
    command.current_dir(&here).env("NO_COLOR", "1").arg(root().join(CASE)).args(["--steps", "1"]);
    // All paths of this graph are elsewhere.
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(here.join("runs/replay_sft/adapter.safetensors").exists());
    let output = command.args(["--out", "other", "--set", "case.path=flux"]).output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("not UTF-8") && said.contains("case.path"), "{said}");
}

#[test]
fn unfinished_files_of_killed_runs_go_when_the_run_is_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("r"));
    runs(&whole, &[&[CASE], &EVERY]);
    killed_at(&whole, &out, 3);
    let left = [
        out.join(".writing-a"),
        out.join("checkpoints/.writing-b/cells.safetensors"),
        out.join("preview/.writing-c"),
    ];
    for path in &left {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "half").unwrap();
    }
    runs(&out, &[&[CASE, "--resume"], &EVERY]);
    assert!(left.iter().all(|path| !path.exists()));
    assert_eq!(metrics(&out), metrics(&whole));
}

#[test]
fn a_folder_with_other_files_is_not_called_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("notes.txt"), "mine").unwrap();
    let said = refused(&out, &[&DEMO, &["--steps", "1"]]);
    assert!(said.contains("holds files, and none of a run") && !said.contains("--resume"), "{said}");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
}
