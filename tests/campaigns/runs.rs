//! A short run of the command, and what it leaves.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
};

use assert_cmd::cargo::cargo_bin;
use serde_json::Value;

/// Steps of the run.
pub const STEPS: usize = 6;
/// The run: a golden case, with a checkpoint after every step, all of them kept.
const RUN: [&str; 5] =
    ["graphs/replay/sft.ron", "--set", "run.checkpoint_every=1", "--set", "run.keep_checkpoints=99"];

/// The run into `out`; `--resume` continues whatever is there.
pub fn command(out: &Path, resume: bool) -> Command {
    let mut command = Command::new(cargo_bin("graph-run"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(RUN).arg("--out").arg(out);
    command.args(resume.then_some("--resume"));
    command.env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

/// The same run without any incident, made once.
pub fn undisturbed() -> &'static Path {
    static FOLDER: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let make = || {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let out = folder.path().join("run");
        let output = command(&out, false).output().expect("the command starts");
        assert!(output.status.success(), "{}", stderr(&output));
        (folder, out)
    };
    &FOLDER.get_or_init(make).1
}

/// What the command said.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Exit code 0 or 1, without a panic; whether it was 0.
pub fn ended_well(output: &Output) -> Result<bool, String> {
    let said = stderr(output);
    match output.status.code() {
        _ if said.contains("panicked") => Err(format!("a panic:\n{said}")),
        Some(0) => Ok(true),
        Some(1) if said.trim().is_empty() => Err("it failed without a word".into()),
        Some(1) => Ok(false),
        _ => Err(format!("{}:\n{said}", output.status)),
    }
}

/// Every file below a folder, with its bytes.
pub fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for path in fs::read_dir(&folder).into_iter().flatten().map(|e| e.expect("an entry").path()) {
            if path.is_dir() {
                open.push(path);
            } else {
                let bytes = fs::read(&path).expect("a readable file");
                found.insert(path, bytes);
            }
        }
    }
    found
}

/// The lines of the metrics from step `first` on, without what a clock says.
fn metrics(out: &Path, first: usize) -> Result<Vec<Value>, String> {
    let text = fs::read_to_string(out.join("metrics.jsonl")).map_err(|e| format!("metrics.jsonl: {e}"))?;
    let line = |line: &str| {
        let mut line: Value =
            serde_json::from_str(line).map_err(|e| format!("metrics.jsonl: {e}: {line}"))?;
        let fields = line.as_object_mut().ok_or("metrics.jsonl: a line that is no object")?;
        fields.retain(|key, _| key != "seconds" && key != "data_seconds");
        Ok(line)
    };
    let lines: Result<Vec<Value>, String> = text.lines().map(line).collect();
    let late = |line: &Value| line["step"].as_u64().is_none_or(|step| step >= first as u64);
    Ok(lines?.into_iter().filter(late).collect())
}

/// A complete run must be, bit for bit, the one without an incident: its adapter, and its metrics from step `first` on.
pub fn is_exact(out: &Path, first: usize) -> Result<(), String> {
    let adapter = |out: &Path| fs::read(out.join("adapter.safetensors")).map_err(|e| format!("adapter: {e}"));
    if adapter(out)? != adapter(undisturbed())? {
        return Err("the adapter differs from that of an undisturbed run".into());
    }
    if metrics(out, first)? != metrics(undisturbed(), first)? {
        return Err("the metrics differ from those of an undisturbed run".into());
    }
    let left: Vec<PathBuf> = files(out).into_keys().filter(|path| is_unfinished(path)).collect();
    if left.is_empty() { Ok(()) } else { Err(format!("unfinished files stay: {left:?}")) }
}

fn is_unfinished(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".writing-"))
}
