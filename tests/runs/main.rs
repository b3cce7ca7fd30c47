//! Runs that are interrupted, resumed, changed, or lose their files or the disk: what they leave must be intact, and
//! what they say must be true.

mod best;
mod changes;
#[path = "../copy/mod.rs"]
mod copy;
mod faults;
mod folders;
mod longer;
mod missing;
#[cfg(unix)]
mod signals;
#[cfg(unix)]
mod streams;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use assert_cmd::cargo::cargo_bin;
use copy::copy;
use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A golden case of six steps, each of some milliseconds.
const CASE: &str = "graphs/replay/sft.ron";
/// The demo's pictures, small, so that a step takes some tens of milliseconds.
const DEMO: [&str; 11] = [
    "graphs/sft.ron",
    "--set",
    "pairs.height=64",
    "--set",
    "pairs.width=64",
    "--set",
    "pairs.reference_height=32",
    "--set",
    "pairs.reference_width=32",
    "--set",
    "pairs.batch=2",
];
/// A checkpoint after every step, and all of them kept.
const EVERY: [&str; 4] = ["--set", "run.checkpoint_every=1", "--set", "run.keep_checkpoints=99"];

fn command(out: &Path, args: &[&[&str]]) -> Command {
    let mut command = Command::new(cargo_bin("graph-run"));
    command.current_dir(root()).args(args.concat()).arg("--out").arg(out);
    command.env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

fn graph_run(out: &Path, args: &[&[&str]]) -> Output {
    command(out, args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Run, which must go well; what it said.
fn runs(out: &Path, args: &[&[&str]]) -> String {
    let output = graph_run(out, args);
    assert!(output.status.success(), "{}", stderr(&output));
    stderr(&output)
}

/// Run, which must be refused with exit code 1 and leave the folder as it was; what it said.
fn refused(out: &Path, args: &[&[&str]]) -> String {
    let before = files(out);
    let output = graph_run(out, args);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(files(out) == before, "a run that is refused changes nothing: {said}");
    said
}

/// Everything below a folder, by path, with its bytes.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for path in fs::read_dir(&folder).into_iter().flatten().map(|e| e.unwrap().path()) {
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            if kind.is_dir() {
                open.push(path);
            } else if kind.is_symlink() {
                found.insert(
                    path.clone(),
                    fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes(),
                );
            } else {
                found.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// The lines of the metrics, without what a clock says.
fn metrics(out: &Path) -> Vec<Value> {
    let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        let fields = line.as_object_mut().unwrap();
        fields.retain(|key, _| key != "seconds" && key != "data_seconds");
        line
    };
    text.lines().map(line).collect()
}

fn adapter(out: &Path) -> Vec<u8> {
    fs::read(out.join("adapter.safetensors")).unwrap()
}

/// The steps that made the adapter, as its header says.
fn adapter_step(out: &Path) -> u64 {
    let file = prefgraph_nn::lora::AdapterFile::open(
        &out.join("adapter.safetensors"),
        "",
        &prefgraph_nn::models::flux::NAMES,
    )
    .unwrap();
    file.metadata()["prefgraph.step"].parse().unwrap()
}

/// Numbers of the checkpoints that are there.
fn checkpoints(out: &Path) -> Vec<u64> {
    let entries = fs::read_dir(out.join("checkpoints")).unwrap().map(|e| e.unwrap().file_name());
    let mut steps: Vec<u64> =
        entries.filter_map(|n| n.to_str()?.strip_prefix("step-")?.parse().ok()).collect();
    steps.sort_unstable();
    steps
}

/// A run in `from` that made a checkpoint after every step, as it was when it was killed after `step` steps.
fn killed_at(from: &Path, to: &Path, step: u64) {
    copy(from, to);
    for later in checkpoints(to).into_iter().filter(|s| *s > step) {
        fs::remove_dir_all(to.join(format!("checkpoints/step-{later}"))).unwrap();
    }
    fs::write(to.join("lock"), "999999999\n").unwrap();
}

/// A run that is at work; it is killed when a test ends before it does.
struct Living(Option<Child>);

impl Living {
    fn start(mut command: Command) -> Self {
        Self(Some(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()))
    }

    /// Wait until so many steps are in the metrics in `out`.
    fn until(self, out: &Path, steps: usize) -> Self {
        let begun = Instant::now();
        let lines = || fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default().lines().count();
        while lines() < steps {
            assert!(begun.elapsed() < Duration::from_secs(300), "the run does not come to step {steps}");
            std::thread::sleep(Duration::from_millis(2));
        }
        self
    }

    fn child(&mut self) -> &mut Child {
        self.0.as_mut().unwrap()
    }

    fn send(&mut self, signal: &str) {
        let id = self.child().id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
    }

    /// Wait for its end; one that does not come is a failure of the test.
    fn end(mut self) -> Output {
        const PATIENCE: Duration = Duration::from_secs(300);
        let id = self.child().id().to_string();
        let (sender, output) = mpsc::channel();
        let child = self.0.take().unwrap();
        std::thread::spawn(move || sender.send(child.wait_with_output()));
        output.recv_timeout(PATIENCE).map(Result::unwrap).unwrap_or_else(|_| {
            Command::new("kill").args(["-s", "KILL", &id]).status().unwrap();
            panic!("the run does not end")
        })
    }
}

impl Drop for Living {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
