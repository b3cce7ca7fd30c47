//! Damaged files: those of a run that is to be resumed, and those that a run reads.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    campaign::{Outcome, is_whole, run},
    copy::copy,
    random::Choices,
    runs::{STEPS, command, ended_well, files, is_exact, stderr, undisturbed},
};

/// Damage a file in one of the ways that disks, copies and people do; what was done.
fn damage(path: &Path, others: &[PathBuf], choices: &mut Choices) -> Result<String, String> {
    let fault = |e: std::io::Error| e.to_string();
    let mut bytes = fs::read(path).map_err(fault)?;
    let length = bytes.len();
    let done = match choices.below(8) {
        0 => {
            bytes.truncate(choices.below(length));
            format!("cut to {} of {length} bytes", bytes.len())
        }
        1 if length > 0 => {
            let (at, bit) = (choices.below(length), choices.below(8));
            bytes[at] ^= 1 << bit;
            format!("bit {bit} of byte {at} of {length} flipped")
        }
        2 if length > 0 => {
            // A block that never reached the disk.
            let from = choices.below(length);
            let end = (from + 1 + choices.below(4096)).min(length);
            bytes[from..end].fill(0);
            format!("bytes {from} to {end} of {length} zeroed")
        }
        3 => {
            let more = 1 + choices.below(300);
            bytes.extend((0..more).map(|_| choices.below(256) as u8));
            format!("{more} bytes appended")
        }
        4 => {
            bytes = vec![0; choices.below(2) * length];
            format!("{} zeros", bytes.len())
        }
        5 => {
            let other = &others[choices.below(others.len())];
            bytes = fs::read(other).map_err(fault)?;
            format!("replaced by {}", other.display())
        }
        6 => {
            fs::remove_file(path).map_err(fault)?;
            return Ok("removed".into());
        }
        _ => {
            fs::remove_file(path).map_err(fault)?;
            fs::create_dir(path).map_err(fault)?;
            return Ok("a folder in its place".into());
        }
    };
    fs::write(path, bytes).map_err(fault)?;
    Ok(done)
}

/// Leave a copy of the undisturbed run as if it had been killed after `made` steps.
fn cut_off(out: &Path, made: usize) -> Result<(), String> {
    copy(undisturbed(), out);
    for step in made + 1..=STEPS {
        fs::remove_dir_all(out.join(format!("checkpoints/step-{step}"))).map_err(|e| e.to_string())?;
    }
    fs::remove_file(out.join("adapter.safetensors")).map_err(|e| e.to_string())
}

fn resumed(choices: &mut Choices) -> Outcome {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let out = folder.path().join("run");
    let made = 1 + choices.below(STEPS - 1);
    cut_off(&out, made)?;
    let (mut places, mut damaged) = (Vec::new(), Vec::new());
    let mut own_metrics = true;
    for _ in 0..1 + choices.below(2) {
        let all: Vec<PathBuf> = files(&out).into_keys().collect();
        let path = &all[choices.below(all.len())];
        let done = damage(path, &all, choices)?;
        own_metrics &= !path.ends_with("metrics.jsonl");
        places.push(format!("{}: {done}", path.display()));
        damaged.push(path.clone());
    }
    let before = files(&out);
    let output = command(&out, true).output().map_err(|e| e.to_string())?;
    let told = |fault: String| format!("{places:?}: {fault}");
    let first = if own_metrics { 0 } else { made };
    if ended_well(&output).map_err(told)? {
        // What an earlier step said may have been altered on the disk; what is computed now may not.
        return is_exact(&out, first).map(|()| "exact").map_err(told);
    }
    let after = files(&out);
    // The lock may hold the name of the process that gave up.
    let is_kept =
        |(path, bytes): (&PathBuf, &Vec<u8>)| path.ends_with("lock") || after.get(path) == Some(bytes);
    if before.iter().all(is_kept) {
        return Ok("refused");
    }
    // It got further before it met the damage: once that is put right, nothing may be missing.
    for blocked in damaged.iter().filter(|path| path.is_dir()) {
        fs::remove_dir(blocked).map_err(|e| e.to_string())?;
    }
    let output = command(&out, true).output().map_err(|e| e.to_string())?;
    if !ended_well(&output).map_err(told)? {
        return Err(told(format!("it failed, and cannot be resumed: {}", stderr(&output))));
    }
    is_exact(&out, first).map(|()| "failed, then exact").map_err(told)
}

#[test]
fn a_damaged_run_is_resumed_exactly_or_refused_and_left_alone() {
    let ends = run("damaged runs", 40, resumed);
    let both = ["exact", "refused"].iter().all(|end| ends.contains_key(end));
    assert!(!is_whole() || both, "{ends:?}");
}

/// Files that a run of the demo reads, in a folder of their own.
fn inputs(folder: &Path) -> Result<(), String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fault = |e: std::io::Error| e.to_string();
    let demo = root.join("data/demo");
    let text = fs::read_to_string(demo.join("pairs.jsonl")).map_err(fault)?;
    let few: Vec<&str> = text.lines().take(2).collect();
    fs::create_dir_all(folder.join("images")).map_err(fault)?;
    fs::write(folder.join("pairs.jsonl"), few.join("\n")).map_err(fault)?;
    for entry in fs::read_dir(demo.join("images")).map_err(fault)?.map(|e| e.expect("an entry")) {
        let name = entry.file_name();
        if few.iter().any(|line| line.contains(&*name.to_string_lossy())) {
            fs::copy(entry.path(), folder.join("images").join(name)).map_err(fault)?;
        }
    }
    copy(&demo.join("backbone"), &folder.join("backbone"));
    let adapter = undisturbed().join("adapter.safetensors");
    fs::copy(adapter, folder.join("adapter.safetensors")).map(drop).map_err(fault)
}

/// Commands that read one of the files.
fn readers(folder: &Path, damaged: &Path) -> Vec<Command> {
    let text = |path: &str| folder.join(path).display().to_string();
    let lines = if damaged.ends_with("adapter.safetensors") {
        let (adapter, out) = (text("adapter.safetensors"), text("out.safetensors"));
        vec![
            ["adapter", "show", &adapter].map(str::to_owned).to_vec(),
            ["adapter", "convert", &adapter, &out, "--to", "kohya"].map(str::to_owned).to_vec(),
        ]
    } else if damaged.starts_with(folder.join("backbone")) {
        let (weights, out) = (format!("backbone.weights={}", text("backbone")), text("run"));
        let small = ["pairs.batch=1", "pairs.height=64", "pairs.width=64", &weights];
        let sets = small.iter().flat_map(|set| ["--set", set]);
        let run = ["graphs/sft.ron", "--steps", "1", "--out", &out];
        vec![
            ["plan", "graphs/sft.ron", "--set", &weights].map(str::to_owned).to_vec(),
            run.into_iter().chain(sets).map(str::to_owned).collect(),
        ]
    } else {
        vec![["data", "check", &text("pairs.jsonl")].map(str::to_owned).to_vec()]
    };
    let command = |line: Vec<String>| {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin("graph-run"));
        command.current_dir(env!("CARGO_MANIFEST_DIR")).args(line).env("NO_COLOR", "1");
        command
    };
    lines.into_iter().map(command).collect()
}

fn read(choices: &mut Choices) -> Outcome {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    inputs(folder.path())?;
    let all: Vec<PathBuf> = files(folder.path()).into_keys().collect();
    let path = all[choices.below(all.len())].clone();
    let done = damage(&path, &all, choices)?;
    let mut end = "read";
    for mut command in readers(folder.path(), &path) {
        let output = command.output().map_err(|e| e.to_string())?;
        let told = |fault: String| format!("{}: {done}: {fault}", path.display());
        if !ended_well(&output).map_err(told)? {
            end = "refused";
        }
    }
    Ok(end)
}

#[test]
fn a_damaged_input_is_read_or_refused_with_a_message() {
    let ends = run("damaged inputs", 40, read);
    assert!(!is_whole() || ends.contains_key("refused"), "{ends:?}");
}
