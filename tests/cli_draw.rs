//! `graph-run sample`: pictures from a prompt, with the networks of any graph and an adapter.

use std::{
    collections::BTreeMap,
    fs,
    io::BufReader,
    path::{Path, PathBuf},
    process::Command,
};

use assert_cmd::cargo::cargo_bin;

/// Run the command in the root of the repository: whether it went well, and what it said.
fn graph_run(args: &[&str]) -> (bool, String) {
    let mut command = Command::new(cargo_bin("graph-run"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env("NO_COLOR", "1").args(args);
    let output = command.output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The first pair of the demo: its prompt and its reference.
fn first_pair() -> (String, String) {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/demo");
    let text = fs::read_to_string(demo.join("pairs.jsonl")).unwrap();
    let row: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let reference = demo.join(row["refs"][0]["image"].as_str().unwrap());
    (row["prompt"].as_str().unwrap().to_owned(), reference.display().to_string())
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Pixels and texts of a PNG.
fn read(path: &Path) -> (Vec<u8>, (u32, u32), BTreeMap<String, String>) {
    let file = BufReader::new(fs::File::open(path).unwrap());
    let mut reader = png::Decoder::new(file).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut pixels).unwrap();
    let info = reader.info();
    let texts = info.utf8_text.iter().map(|t| (t.keyword.clone(), t.get_text().unwrap())).collect();
    (pixels, (info.width, info.height), texts)
}

/// An adapter that a run of one step has trained.
fn trained(folder: &Path) -> PathBuf {
    let run = folder.join("run");
    let out = run.display().to_string();
    let (good, said) = graph_run(&[
        "graphs/diffusion_dpo.ron",
        "--out",
        &out,
        "--steps",
        "1",
        "--set",
        "update.warmup=0",
        "--set",
        "update.lr=0.05",
        "--set",
        "lora.rank=3",
        "--set",
        "lora.targets=[\"attn.to_q\"]",
    ]);
    assert!(good, "{said}");
    run.join("adapter.safetensors")
}

#[test]
fn a_recipe_and_its_adapter_draw_what_a_sampling_graph_draws_and_pictures_say_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let adapter = trained(dir.path());
    let file = adapter.display().to_string();
    let (prompt, reference) = first_pair();
    let out = dir.path().join("pictures");
    let folder = out.display().to_string();
    // Nothing of the data is needed.
    let recipe = [
        "sample",
        "graphs/diffusion_dpo.ron",
        "--set",
        "pairs.path=/nowhere",
        "--prompt",
        &prompt,
        "--ref",
        &reference,
    ];
    let with = |more: &[&str]| graph_run(&[&recipe[..], &["--steps", "3"], more].concat());
    let (good, said) = with(&["--adapter", &file, "--out", &folder, "--count", "2"]);
    assert!(good && said.contains("of rank 3") && said.contains("seed-1.png"), "{said}");
    let files = names(&out);
    assert!(
        files.len() == 2 && files[0].ends_with("-seed-0.png") && files[1].ends_with("-seed-1.png"),
        "{files:?}"
    );
    let (first, size, texts) = read(&out.join(&files[0]));
    assert_eq!(size, (192, 192));
    for (keyword, text) in [
        ("prompt", prompt.as_str()),
        ("seed", "0"),
        ("adapter", &file),
        ("steps", "3"),
        ("reference", &reference),
        ("graph", "diffusion_dpo"),
    ] {
        assert_eq!(texts.get(keyword).map(String::as_str), Some(text), "{texts:?}");
    }
    let (second, ..) = read(&out.join(&files[1]));
    assert_ne!(first, second, "another seed");

    // The sampling graph, for the same pair, from the same noise.
    let drawn = dir.path().join("drawn");
    let (good, said) = graph_run(&[
        "graphs/sample.ron",
        "--out",
        &drawn.display().to_string(),
        "--steps",
        "1",
        "--set",
        "pairs.batch=1",
        "--set",
        "reference.steps=3",
        "--set",
        "lora.rank=3",
        "--set",
        "lora.targets=[\"attn.to_q\"]",
        "--set",
        &format!("lora.from={file}"),
    ]);
    assert!(good, "{said}");
    let policy = image::open(drawn.join("preview/policy-step-000000-0-demo-000.png")).unwrap().into_rgb8();
    assert_eq!(first, policy.into_raw());

    // The second picture alone, and the frozen network: it draws another.
    let alone = dir.path().join("alone");
    let folder = alone.display().to_string();
    assert!(with(&["--adapter", &file, "--out", &folder, "--seed", "1"]).0);
    assert_eq!(read(&alone.join(&files[1])).0, second);
    assert!(with(&["--out", &folder]).0);
    let (frozen, _, texts) = read(&alone.join(&files[0]));
    assert_ne!(frozen, first);
    assert_eq!(texts["adapter"], "none");
}

#[test]
fn pictures_are_written_over_only_if_asked_and_their_size_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("new/pictures");
    let out = folder.display().to_string();
    let draw = |more: &[&str]| {
        let start = [
            "sample",
            "graphs/sample.ron",
            "--prompt",
            "a red ball",
            "--steps",
            "1",
            "--size",
            "64x32",
            "--out",
            &out,
        ];
        graph_run(&[&start[..], more].concat())
    };
    let (good, said) = draw(&[]);
    assert!(good && said.contains("64 x 32 pixels"), "{said}");
    let path = folder.join("a-red-ball-seed-0.png");
    assert_eq!(read(&path).1, (64, 32));
    fs::write(&path, "mine").unwrap();
    // Neither it nor the one beside it is drawn.
    let (good, said) = draw(&["--count", "2"]);
    assert!(
        !good && said.contains("a-red-ball-seed-0.png` exists") && said.contains("--overwrite"),
        "{said}"
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    assert_eq!(names(&folder).len(), 1);
    let (good, said) = draw(&["--overwrite"]);
    assert!(good, "{said}");
    assert_eq!(read(&path).1, (64, 32));
}

#[test]
fn what_cannot_be_drawn_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("pictures");
    let out = folder.display().to_string();
    let refused = |args: &[&str]| {
        let (good, said) = graph_run(&[&["sample"], args, &["--prompt", "x", "--out", &out]].concat());
        assert!(!good && !folder.exists(), "{said}");
        said
    };
    let said = refused(&["graphs/sample.ron", "--size", "500"]);
    assert!(said.contains("as in 512x768"), "{said}");
    let said = refused(&["graphs/sample.ron", "--size", "60x64"]);
    assert!(said.contains("60 x 64 pixels (width x height)"), "{said}");
    let said = refused(&["graphs/sample.ron", "--ref", "no/picture.png"]);
    assert!(said.contains("no/picture.png"), "{said}");
    let said = refused(&["graphs/sample.ron", "--ref", "README.md"]);
    assert!(said.contains("README.md") && said.contains("neither a PNG"), "{said}");
    let said = refused(&["graphs/sample.ron", "--adapter", "README.md"]);
    assert!(said.contains("README.md"), "{said}");
    let said = refused(&["graphs/sample.ron", "--count", "0"]);
    assert!(said.contains("--count"), "{said}");
    let last = u64::MAX.to_string();
    let said = refused(&["graphs/sample.ron", "--seed", &last]);
    assert!(said.contains("--seed"), "{said}");
    let graph = dir.path().join("data.ron");
    fs::write(&graph, "Graph(nodes: [(id: \"pairs\", op: \"pairs\")])").unwrap();
    let said = refused(&[&graph.display().to_string()]);
    assert!(said.contains("no node that trains a network (`forward`)"), "{said}");
}

#[test]
fn the_graph_of_a_run_says_that_its_adapter_is_not_used_unless_it_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let adapter = trained(dir.path());
    let run = dir.path().join("run").display().to_string();
    let draw = |out: &str, more: &[&str]| {
        let out = dir.path().join(out).display().to_string();
        let args = ["sample", &run, "--prompt", "a duck", "--steps", "1", "--out", &out];
        let (good, said) = graph_run(&[&args, more].concat());
        assert!(good, "{said}");
        said
    };
    let own = dir.path().join("run/adapter.safetensors").display().to_string();
    let without = draw("without", &[]);
    assert!(without.contains(&format!("is not used: --adapter {own} draws with it")), "{without}");
    assert!(!draw("with", &["--adapter", adapter.to_str().unwrap()]).contains("is not used"));
}

#[test]
fn a_schedule_of_another_kind_of_network_is_refused_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x").display().to_string();
    let (good, said) = graph_run(&[
        "sample",
        "graphs/sample.ron",
        "--prompt",
        "a duck",
        "--out",
        &out,
        "--set",
        "reference.schedule=ddim",
    ]);
    assert!(!good, "{said}");
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(said.contains("schedule `ddim` is not for") && said.contains("dynamic, static or uno"), "{said}");
}
