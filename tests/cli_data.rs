//! `graph-run data check`: what it counts, when it fails, and what its `--bad` leaves alone.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use assert_cmd::cargo::cargo_bin;
use image::{GrayImage, Luma, Rgb, RgbImage};
use serde_json::{Value, json};

/// Exit code, standard output, standard error.
fn graph_run_at(home: &Path, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(cargo_bin("graph-run"));
    command
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .args(args)
        .env("NO_COLOR", "1")
        .env("HOME", home);
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn graph_run(args: &[&str]) -> (i32, String, String) {
    graph_run_at(Path::new("/"), args)
}

/// A message without the frame and the line breaks that errors in a graph file are drawn with.
fn flat(text: &str) -> String {
    text.split_whitespace().filter(|word| *word != "│").collect::<Vec<_>>().join(" ")
}

/// A folder with pictures of 48 x 32 pixels, a prior of its left half, and rows that name them.
struct Data {
    folder: tempfile::TempDir,
    rows: Vec<Value>,
}

impl Data {
    fn new() -> Self {
        let data = Self { folder: tempfile::tempdir().unwrap(), rows: Vec::new() };
        for (name, colour) in [("win.png", [200, 100, 50]), ("lose.png", [10, 20, 30])] {
            RgbImage::from_pixel(48, 32, Rgb(colour)).save(data.path(name)).unwrap();
        }
        let left = GrayImage::from_fn(48, 32, |x, _| Luma([if x < 24 { 255 } else { 0 }]));
        left.save(data.path("prior.png")).unwrap();
        data
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn row(&mut self, references: usize) -> &mut Value {
        self.rows.push(json!({
            "id": format!("row-{}", self.rows.len()), "prompt": "a dog",
            "refs": vec![json!({"image": "win.png"}); references],
            "win": {"image": "win.png", "prior": vec!["prior.png"; references]},
            "lose": {"image": "lose.png", "prior": null},
        }));
        self.rows.last_mut().unwrap()
    }

    /// The path of the written file.
    fn written(&self) -> String {
        let text: String = self.rows.iter().map(|r| format!("{r}\n")).collect();
        fs::write(self.path("pairs.jsonl"), text).unwrap();
        self.path("pairs.jsonl").to_str().unwrap().to_owned()
    }
}

#[test]
fn data_check_counts_what_is_there_and_names_what_cannot_be_used() {
    let (code, out, err) = graph_run(&["data", "check", "data/demo"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("good samples, 0 bad") && out.contains("priors by the share"), "{out}");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pairs.jsonl");
    std::fs::write(&path, "{\"id\": \"a\", \"prompt\": \"x\"}\nnot json\n").unwrap();
    let bad = folder.path().join("bad.jsonl");
    let (code, out, err) =
        graph_run(&["data", "check", path.to_str().unwrap(), "--bad", bad.to_str().unwrap(), "--json"]);
    assert_eq!(code, 1, "{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((report["good"].as_u64(), report["bad"].as_array().unwrap().len()), (Some(0), 2));
    assert!(err.contains("pairs.jsonl: line 2"), "{err}");
    assert_eq!(std::fs::read_to_string(bad).unwrap().lines().count(), 2);
    let (code, _, err) = graph_run(&["data", "check", "no/such/place"]);
    assert!(code == 1 && err.contains("no/such/place"), "{err}");
}

#[test]
fn every_count_of_the_listing_is_in_the_json() {
    let mut data = Data::new();
    data.row(1);
    data.row(1)["lose"]["image"] = json!("win.png");
    data.row(2);
    data.row(0);
    data.row(1)["win"]["image"] = json!("gone.png");
    data.row(1)["win"]["prior"] = json!(["white.png"]);
    GrayImage::from_pixel(48, 32, Luma([255])).save(data.path("white.png")).unwrap();
    let path = data.written();
    let (code, out, err) = graph_run(&["data", "check", &path]);
    assert_eq!(code, 1);
    assert!(err.contains("line 5 (`row-4`)") && err.contains("gone.png: there is no such file"), "{err}");
    for part in [
        "5 good samples, 1 bad",
        "  3 with 1 reference",
        "  5 with a winner of 48 x 32 pixels (width x height)",
        "warning: 1 sample whose winner and loser have the same pixels: a preference loss learns nothing there (line 2)",
        "warning: 1 sample with a prior that covers the whole winner: it marks no part of it (line 6)",
        "warning: 1 sample without references: a graph with focus masks refuses that (line 4)",
    ] {
        assert!(out.contains(part), "{part} is not in {out}");
    }
    let (code, out, _) = graph_run(&["data", "check", &path, "--json"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, 1);
    for (key, expected) in [
        ("would_run", json!(false)),
        ("good", json!(5)),
        ("identical_pairs", json!(1)),
        ("identical_pairs_lines", json!([2])),
        ("whole_priors_lines", json!([6])),
        ("without_references_lines", json!([4])),
        ("sizes", json!([{"width": 48, "height": 32, "samples": 5}])),
        ("refusal", Value::Null),
    ] {
        assert_eq!(report[key], expected, "{key}");
    }
}

#[test]
fn data_that_no_run_would_take_fail_the_check() {
    let data = Data::new();
    let path = data.written();
    let (code, out, err) = graph_run(&["data", "check", &path]);
    assert!(
        code == 1 && out.contains("0 good samples, 0 bad") && err.contains("holds no samples"),
        "{out}{err}"
    );
    let (code, out, _) = graph_run(&["data", "check", &path, "--json"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, &report["would_run"], &report["refusal"]),
        (1, &json!(false), &json!("holds no samples"))
    );
    fs::write(data.path("pairs.jsonl"), "{\n  \"id\": \"a\"\n}\n").unwrap();
    let (code, _, err) = graph_run(&["data", "check", &path]);
    assert!(code == 1 && err.contains("one object a line"), "{err}");
    fs::remove_file(data.path("pairs.jsonl")).unwrap();
    let (code, _, err) = graph_run(&["data", "check", data.folder.path().to_str().unwrap()]);
    assert!(
        code == 1 && err.contains("is a folder without a pairs.jsonl") && err.contains("\"win\":"),
        "{err}"
    );
}

#[test]
fn the_file_of_bad_samples_replaces_an_earlier_one_and_nothing_else() {
    let mut data = Data::new();
    data.row(1);
    data.row(1)["lose"] = json!({"image": "gone.png", "prior": ["lose_prior.png"]});
    fs::copy(data.path("prior.png"), data.path("lose_prior.png")).unwrap();
    let path = data.written();
    fs::write(data.path("notes.txt"), "mine\n").unwrap();
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(data.path("pairs.jsonl"), data.path("link")).unwrap();
        fs::hard_link(data.path("pairs.jsonl"), data.path("hard")).unwrap();
    }
    let before = |name: &str| fs::read(data.path(name)).unwrap();
    let mut cases = vec![
        ("pairs.jsonl", "is the data file itself"),
        ("win.png", "is a picture that the data file names"),
        ("lose_prior.png", "is a picture that the data file names"),
        ("notes.txt", "exists, and is not a file of bad samples"),
    ];
    if cfg!(unix) {
        cases.extend([("link", "is the data file itself"), ("hard", "is the data file itself")]);
    }
    for (name, expected) in cases {
        let kept = before(name);
        for path in [&path, data.folder.path().to_str().unwrap()] {
            let (code, _, err) =
                graph_run(&["data", "check", path, "--bad", data.path(name).to_str().unwrap()]);
            assert!(code == 1 && err.contains(expected), "{name}: {err}");
        }
        assert_eq!(before(name), kept, "{name}");
    }
    if cfg!(unix) {
        for (place, expected) in [("/dev/null", "is a pipe or a device"), ("/", "is a folder")] {
            let (code, _, err) = graph_run(&["data", "check", &path, "--bad", place]);
            assert!(code == 1 && err.contains(expected), "{err}");
        }
    }
    let nowhere = data.path("nowhere/bad.jsonl");
    let (code, _, err) = graph_run(&["data", "check", &path, "--bad", nowhere.to_str().unwrap()]);
    assert!(code == 1 && err.contains("its folder does not exist"), "{err}");
    let bad = data.path("bad.jsonl");
    for _ in 0..2 {
        let (code, _, err) = graph_run(&["data", "check", &path, "--bad", bad.to_str().unwrap()]);
        assert!(code == 1 && err.contains("gone.png"), "{err}");
        let line: Value = serde_json::from_str(&fs::read_to_string(&bad).unwrap()).unwrap();
        assert_eq!((&line["line"], &line["id"]), (&json!(2), &json!("row-1")));
    }
}

#[test]
fn the_data_of_a_graph_are_looked_at_as_its_run_would() {
    let (code, out, err) = graph_run(&["data", "check", "graphs/focusdpo.ron"]);
    assert!(code == 0 && out.contains("node `pairs`: ") && out.contains("0 bad"), "{out}{err}");

    let mut data = Data::new();
    data.row(1);
    data.row(0);
    let path = data.written();
    // The home folder in a setting, which no shell expands there.
    let home = data.folder.path();
    let check = |graph: &str, more: &[&str]| {
        let sets = ["--set", "pairs.path=~/pairs.jsonl", "--set", "pairs.batch=1"];
        graph_run_at(home, &[&["data", "check", graph, "--json"], &sets[..], more].concat())
    };
    let (code, out, err) = check("graphs/focusdpo.ron", &[]);
    let err = flat(&err);
    assert!(
        code == 1 && err.contains("the samples have no references") && err.contains("reference_counts"),
        "{err}"
    );
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&report["nodes"][0]["path"], &report["nodes"][0]["node"]), (&json!(path), &json!("pairs")));
    let (code, _, err) = check("graphs/patchdpo.ron", &["--set", "pairs.reference_counts=[]"]);
    assert!(code == 1 && flat(&err).contains("there are samples with 0 references"), "{err}");
    let (code, out, err) = check("graphs/patchdpo.ron", &[]);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &report["nodes"][0]["left_out"]), (0, &json!(1)), "{err}");
    let (code, _, err) = check("graphs/focusdpo.ron", &["--set", "pairs.reference_counts=[1]"]);
    assert_eq!(code, 0, "{err}");
    let (code, out, err) = check("graphs/diffusion_dpo.ron", &["--set", "pairs.batch=4"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    let small = json!([{"references": 0, "samples": 1}, {"references": 1, "samples": 1}]);
    assert_eq!((code, &report["nodes"][0]["groups_below_batch"]), (0, &small), "{err}");
    // The prior lies left of the middle that this shape keeps.
    let (code, out, _) =
        check("graphs/diffusion_dpo.ron", &["--set", "pairs.height=64", "--set", "pairs.width=16"]);
    assert!(code == 0, "{out}");
    GrayImage::from_fn(48, 32, |x, _| Luma([if x < 8 { 255 } else { 0 }]))
        .save(data.path("prior.png"))
        .unwrap();
    let (code, out, _) =
        check("graphs/diffusion_dpo.ron", &["--set", "pairs.height=64", "--set", "pairs.width=16"]);
    assert!(code == 1 && out.contains("outside the part that is kept"), "{out}");
    let (code, _, err) = graph_run(&["data", "check", "graphs/focusdpo.ron", "--max-pixels", "9"]);
    assert!(code == 1 && err.contains("--set NODE.max_pixels=N"), "{err}");
    let (code, _, err) = graph_run(&["data", "check", &path, "--set", "pairs.batch=4"]);
    assert!(code == 1 && err.contains("give a graph"), "{err}");
}

#[test]
fn a_run_is_told_of_its_data_before_its_first_step() {
    let mut data = Data::new();
    data.row(1)["lose"]["image"] = json!("win.png");
    data.row(1);
    let path = data.written();
    let set = format!("pairs.path={path}");
    let (code, out, err) =
        graph_run(&["plan", "graphs/diffusion_dpo.ron", "--set", &set, "--set", "pairs.batch=4"]);
    assert_eq!(code, 0, "{err}");
    for part in [
        "winner and loser are one file (line 1)",
        "a batch of 4 is larger than the 2 samples with 1 reference",
    ] {
        assert!(out.contains("pairs: warning: ") && out.contains(part), "{part} is not in {out}");
    }
}

#[test]
fn a_file_in_which_every_line_is_bad_is_listed_by_its_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pairs.jsonl");
    fs::write(&path, "{\"caption\": \"a dog\"}\n".repeat(25)).unwrap();
    let bad = folder.path().join("bad.jsonl");
    let (code, _, err) =
        graph_run(&["data", "check", path.to_str().unwrap(), "--bad", bad.to_str().unwrap()]);
    assert_eq!(code, 1, "{err}");
    assert_eq!(err.matches("unknown field `caption`").count(), 20, "{err}");
    assert!(err.contains("5 more bad samples; --bad FILE writes all of them"), "{err}");
    assert_eq!(fs::read_to_string(&bad).unwrap().lines().count(), 25);
}
