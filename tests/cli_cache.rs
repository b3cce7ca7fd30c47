//! The cache on the command line: the demo's encoders run once, `plan` shows the status, a folder is maintained.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use assert_cmd::cargo::cargo_bin;
use serde_json::Value;

const GRAPH: &str = "graphs/focusdpo_cached.ron";
/// Small pictures, several lanes, and far ahead.
const SMALL: [&str; 7] = [
    "pairs.height=64",
    "pairs.width=64",
    "pairs.reference_height=32",
    "pairs.reference_width=32",
    "pairs.batch=2",
    "run.lanes=3",
    "run.ahead=2",
];

fn graph_run(args: &[&str]) -> Output {
    let mut command = Command::new(cargo_bin("graph-run"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(args).env("NO_COLOR", "1").output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stderr[..], &output.stdout].concat()).into_owned()
}

/// The graph with a cache in `folder` and these settings.
fn with(folder: &Path, before: &[&str], more: &[&str]) -> Output {
    let path = format!("cache.path={}", folder.display());
    let sets = SMALL.iter().copied().chain([path.as_str()]).chain(more.iter().copied());
    let sets: Vec<&str> = sets.flat_map(|set| ["--set", set]).collect();
    graph_run(&[before, &sets].concat())
}

/// Metrics without what a clock says, and the adapter's bytes.
fn result(out: &Path) -> (Vec<Value>, Vec<u8>) {
    let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        for key in ["seconds", "data_seconds"] {
            line.as_object_mut().unwrap().remove(key);
        }
        line
    };
    (text.lines().map(line).collect(), fs::read(out.join("adapter.safetensors")).unwrap())
}

struct Runs(tempfile::TempDir);

impl Runs {
    fn cache(&self) -> PathBuf {
        self.0.path().join("cache")
    }

    fn run(&self, name: &str, more: &[&str]) -> (String, (Vec<Value>, Vec<u8>)) {
        let out = self.0.path().join(name);
        let before = [GRAPH, "--steps", "4", "--seed", "3", "--out", out.to_str().unwrap()];
        let output = with(&self.cache(), &before, more);
        assert!(output.status.success(), "{}", said(&output));
        (said(&output), result(&out))
    }

    fn plan(&self, more: &[&str]) -> Value {
        let output = with(&self.cache(), &["plan", GRAPH, "--json"], more);
        assert!(output.status.success(), "{}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn states(&self, more: &[&str]) -> Vec<(String, String)> {
        let plan = self.plan(more);
        let nodes = plan["cache"]["nodes"].as_array().unwrap().iter();
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        nodes.map(|n| (format!("{} {}", text(&n["node"]), text(&n["state"])), text(&n["why"]))).collect()
    }
}

#[test]
fn a_run_is_the_same_to_the_bit_without_a_cache_and_with_an_empty_and_a_full_one() {
    let runs = Runs(tempfile::tempdir().unwrap());
    let (said, without) = runs.run("without", &["cache.nodes=[]", "run.lanes=1", "run.ahead=0"]);
    assert!(!said.contains("cache `") && !said.contains("filling"), "{said}");
    assert!(!runs.cache().exists());
    let of = ["winner", "loser", "references", "prompt"];
    let all = of.iter().map(|n| (*n).to_owned()).chain(of.iter().map(|n| format!("held_out_{n}")));
    let all: Vec<String> = all.collect();
    let states = |state: &str| -> Vec<String> { all.iter().map(|n| format!("{n} {state}")).collect() };
    let missed = runs.states(&[]);
    assert_eq!(missed.iter().map(|s| s.0.clone()).collect::<Vec<_>>(), states("miss"));
    assert!(missed.iter().all(|s| s.1 == "no entries yet"));
    assert!(!runs.cache().exists(), "a plan writes nothing");

    let (said, cold) = runs.run("cold", &[]);
    assert!(said.contains("filling the cache: 48 of 48 samples"), "{said}");
    assert!(said.contains("the cache is filled: 48 samples were read"), "{said}");
    let (said, warm) = runs.run("warm", &[]);
    let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("winner hit: all 32 samples loser"), "{said}");
    assert!(words.contains("held_out_winner hit: all 16 samples"), "{said}");
    assert!(!said.contains("filling"), "{said}");
    assert!(without == cold && without == warm, "the same metrics and the same adapter");

    assert_eq!(runs.states(&[]).iter().map(|s| s.0.clone()).collect::<Vec<_>>(), states("hit"));
    assert_eq!(runs.plan(&[])["cache"]["fill_bytes"], Value::Null);
    // Another geometry is other data, another length another text.
    let changed = runs.states(&["pairs.height=48", "prompt.length=8"]);
    assert_eq!(changed[0].0, "winner unknown");
    assert_eq!(changed[3], ("prompt miss".into(), "settings changed: length 16 -> 8; settings changed: shape \"text [16, 48], pooled [32]\" -> \"text [8, 48], pooled [32]\"".into()));
}

#[test]
fn a_folder_can_be_shown_verified_and_cleaned() {
    let runs = Runs(tempfile::tempdir().unwrap());
    runs.run("first", &[]);
    let cache = runs.cache();
    let path = cache.to_str().unwrap();
    let shown = said(&graph_run(&["cache", "show", path]));
    assert!(shown.contains("`encode` at held_out_loser, held_out_winner, loser, winner"), "{shown}");
    assert!(shown.contains("`prompt` at held_out_prompt, prompt") && shown.contains("length: 16"), "{shown}");
    let groups: Value =
        serde_json::from_slice(&graph_run(&["cache", "show", path, "--json"]).stdout).unwrap();
    let group = groups.as_array().unwrap().iter().find(|g| g["recipe"]["operator"] == "encode").unwrap();
    let folder = cache.join("entries").join(group["id"].as_str().unwrap());
    let shard = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).find(|p| p.is_dir()).unwrap();
    let entry = fs::read_dir(shard).unwrap().next().unwrap().unwrap().path();
    fs::write(&entry, b"torn").unwrap();

    let output = graph_run(&["cache", "verify", path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains(entry.file_name().unwrap().to_str().unwrap()), "{}", said(&output));
    let (said_then, _) = runs.run("healed", &[]);
    assert!(said_then.contains("a damaged cache entry is recomputed"), "{said_then}");
    assert!(graph_run(&["cache", "verify", path]).status.success());

    let kept = with(&cache, &["cache", "clean", path, "--keep", GRAPH], &[]);
    assert!(kept.status.success() && said(&kept).contains("removed 0 entries"), "{}", said(&kept));
    let none = with(&cache, &["cache", "clean", path, "--keep", GRAPH], &["prompt.length=8"]);
    assert!(said(&none).contains("removed") && !said(&none).contains("removed 0"), "{}", said(&none));
    let all = graph_run(&["cache", "clean", path, "--all"]);
    assert!(all.status.success(), "{}", said(&all));
    let empty = graph_run(&["cache", "verify", path]);
    assert!(said(&empty).contains(": 0 whole entries"), "{}", said(&empty));
}

#[test]
fn what_a_file_says_wrong_about_its_cache_is_shown_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let parent = Path::new(env!("CARGO_MANIFEST_DIR")).join("graphs/focusdpo.ron");
    let plan = |cache: &str| {
        let file = dir.path().join("mine.ron");
        let text =
            format!("Graph(extends: {:?}, name: \"mine\", cache: {cache})", parent.display().to_string());
        fs::write(&file, text).unwrap();
        let output = graph_run(&["plan", file.to_str().unwrap()]);
        (output.status.success(), said(&output).split_whitespace().collect::<Vec<_>>().join(" "))
    };
    for (cache, parts) in [
        (r#"(path: "c", nodes: ["winer"])"#, vec!["there is no node `winer`", "winner", "mine.ron:1"]),
        (
            r#"(path: "c", nodes: ["winner", "noise"])"#,
            vec!["`noise` cannot be cached", "random", "`references`"],
        ),
        (r#"(path: "c", nodes: ["policy"])"#, vec!["`policy` cannot be cached", "forward"]),
        (r#"(path: "c", nodes: ["lora"])"#, vec!["`lora` cannot be cached: it is a cell"]),
        (r#"(path: "c", nodes: ["detail"])"#, vec!["`detail` cannot be cached", "entropy"]),
        (r#"(nodes: ["winner"])"#, vec!["`cache` has no `path`", "relative to the file"]),
        (r#"(path: "c")"#, vec!["names no nodes"]),
        (r#"(paht: "c")"#, vec!["a cache has no setting `paht`", "did you mean `path`"]),
        (r#"(path: "c", nodes: "winner")"#, vec!["`nodes` of `cache` cannot be"]),
    ] {
        let (good, text) = plan(cache);
        assert!(!good, "{cache}");
        parts.iter().for_each(|part| assert!(text.contains(part), "{part} in {text}"));
    }
    // A relative path is relative to the file.
    let (good, text) = plan(r#"(path: "c", nodes: ["winner"])"#);
    let folder = fs::canonicalize(dir.path()).unwrap().join("c");
    assert!(good && text.contains(&format!("cache `{}`", folder.display())), "{text}");
    let replay = graph_run(&[
        "plan",
        "graphs/replay/sft.ron",
        "--set",
        "cache.path=c",
        "--set",
        "cache.nodes=[\"noise\"]",
    ]);
    assert!(said(&replay).contains("cannot be cached"), "{}", said(&replay));
    let other = graph_run(&["plan", GRAPH, "--set", "cache.pat=1"]);
    assert!(said(&other).contains("a cache has no setting `pat`"), "{}", said(&other));
}
