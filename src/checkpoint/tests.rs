//! Checkpoints on disk: written ones read back, damaged ones are noticed, unreadable ones are errors.

use std::sync::Arc;

use prefgraph_ops::NamedTensor;

use super::*;

fn sample(step: u64) -> Checkpoint {
    let tensor = |name: &str, values: Vec<f32>| NamedTensor {
        name: name.into(),
        dims: vec![values.len()],
        values: Arc::new(values),
    };
    let lora = NamedState {
        tensors: vec![tensor("b", vec![1.0, -0.0]), tensor("a", vec![f32::MIN_POSITIVE, step as f32])],
        counters: vec![("updates".into(), u64::MAX)],
    };
    let cells = BTreeMap::from([("lora".to_owned(), lora), ("empty".to_owned(), NamedState::default())]);
    let best = Kept { tensors: vec![tensor("a", vec![step as f32, 0.5])], text: "best".into() };
    let kept = BTreeMap::from([("lora".to_owned(), best), ("empty".to_owned(), Kept::default())]);
    Checkpoint { step, seed: 7, graph: "Graph(nodes: [])".into(), sources: None, cells, kept }
}

#[test]
fn what_is_read_is_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let place = sample(3).write(dir.path()).unwrap();
    assert_eq!(Checkpoint::read(&place).unwrap(), sample(3));
    assert_eq!(Checkpoint::newest(dir.path()).unwrap(), (Some(sample(3)), vec![]));
    assert_eq!(Checkpoint::newest(&dir.path().join("none")).unwrap(), (None, vec![]));
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn the_last_few_are_kept_and_nothing_else_is_left() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join(".writing-killed/x")).unwrap();
    for step in [10, 20, 30, 30, 40] {
        sample(step).write(dir.path()).unwrap();
        prune(dir.path(), step, 2);
    }
    assert_eq!(names(dir.path()), ["step-30", "step-40"]);
}

#[test]
fn the_mark_of_a_run_that_begins_goes_when_there_is_another_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let begun = Checkpoint { cells: BTreeMap::new(), kept: BTreeMap::new(), ..sample(0) };
    begun.write(dir.path()).unwrap();
    prune(dir.path(), 0, 3);
    assert_eq!(Checkpoint::newest(dir.path()).unwrap(), (Some(begun), vec![]));
    sample(5).write(dir.path()).unwrap();
    prune(dir.path(), 5, 3);
    assert_eq!(names(dir.path()), ["step-5"]);
}

#[test]
fn one_that_is_set_aside_is_passed_over_until_a_later_one_is_there() {
    let dir = tempfile::tempdir().unwrap();
    for step in [10, 20] {
        sample(step).write(dir.path()).unwrap();
    }
    set_aside(dir.path(), 20).unwrap();
    assert_eq!(Checkpoint::newest(dir.path()).unwrap(), (Some(sample(10)), vec![]));
    assert_eq!(names(dir.path()), ["step-10", "step-20.diverged"]);
    sample(20).write(dir.path()).unwrap();
    prune(dir.path(), 20, 3);
    assert_eq!(names(dir.path()), ["step-10", "step-20"]);
}

/// What the system does not let be read is no reason to take an older one, or none.
#[cfg(unix)]
#[test]
fn a_link_that_leads_nowhere_is_an_error_wherever_it_is() {
    use std::os::unix::fs::symlink;
    let error = |folder: &Path| {
        let error = Checkpoint::newest(folder).unwrap_err();
        assert!(!error.is_damage(), "{error}");
        error.to_string()
    };
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("checkpoints");
    symlink(dir.path().join("away"), &folder).unwrap();
    error(&folder);
    fs::remove_file(&folder).unwrap();
    sample(1).write(&folder).unwrap();
    symlink(dir.path().join("away"), folder.join("step-2")).unwrap();
    assert!(error(&folder).contains("dangling link"));
    fs::remove_file(folder.join("step-2")).unwrap();
    let place = sample(2).write(&folder).unwrap();
    fs::remove_file(place.join(CELLS)).unwrap();
    symlink(dir.path().join("away"), place.join(CELLS)).unwrap();
    assert!(error(&folder).contains("dangling link"));
}

#[cfg(unix)]
#[test]
fn a_pipe_and_a_device_in_a_checkpoint_are_damage_and_nobody_waits_for_them() {
    let dir = tempfile::tempdir().unwrap();
    sample(1).write(dir.path()).unwrap();
    for file in [STATE, CELLS] {
        let place = sample(2).write(dir.path()).unwrap();
        fs::remove_file(place.join(file)).unwrap();
        let made = std::process::Command::new("mkfifo").arg(place.join(file)).status().unwrap();
        assert!(made.success());
        let (found, notes) = Checkpoint::newest(dir.path()).unwrap();
        assert_eq!(found, Some(sample(1)));
        assert!(notes[0].contains("not a regular file"), "{notes:?}");
        fs::remove_dir_all(&place).unwrap();
    }
}

#[test]
fn a_change_of_any_byte_is_noticed_and_the_one_before_is_used() {
    let dir = tempfile::tempdir().unwrap();
    sample(1).write(dir.path()).unwrap();
    let place = sample(2).write(dir.path()).unwrap();
    for file in [STATE, CELLS] {
        let path = place.join(file);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            fs::write(&path, bytes).unwrap();
            assert!(Checkpoint::read(&place).is_err(), "byte {at} of {file}");
        }
        for len in [0, 1, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..len]).unwrap();
            assert!(Checkpoint::read(&place).is_err(), "{file} cut to {len} bytes");
        }
        let (found, notes) = Checkpoint::newest(dir.path()).unwrap();
        assert_eq!(found, Some(sample(1)));
        assert!(notes.len() == 1 && notes[0].contains("step-2"), "{notes:?}");
        fs::write(&path, whole).unwrap();
    }
    assert_eq!(Checkpoint::newest(dir.path()).unwrap().0, Some(sample(2)));
    fs::remove_file(place.join(STATE)).unwrap();
    fs::remove_file(dir.path().join("step-1").join(CELLS)).unwrap();
    let error = Checkpoint::newest(dir.path()).unwrap_err().to_string();
    assert!(error.contains("step-1") && error.contains("step-2"), "{error}");
}

#[test]
fn files_of_two_checkpoints_are_no_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (sample(1).write(dir.path()).unwrap(), sample(2).write(dir.path()).unwrap());
    fs::copy(a.join(CELLS), b.join(CELLS)).unwrap();
    assert!(Checkpoint::read(&b).unwrap_err().to_string().contains("checksum"));
}

#[test]
fn a_torn_newer_checkpoint_does_not_push_good_ones_out() {
    let dir = tempfile::tempdir().unwrap();
    sample(10).write(dir.path()).unwrap();
    fs::create_dir(dir.path().join("step-90")).unwrap();
    sample(20).write(dir.path()).unwrap();
    prune(dir.path(), 20, 1);
    assert_eq!(names(dir.path()), ["step-20", "step-90"]);
    assert_eq!(Checkpoint::newest(dir.path()).unwrap().0, Some(sample(20)));
}
