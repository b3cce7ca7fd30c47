//! What SDXL draws while it is trained.

use std::{fs, path::Path, process::Command};

use assert_cmd::cargo::cargo_bin;
use image::{RgbImage, imageops::crop_imm};

use crate::published::{Published, root, train};

const RECIPE: &str = "graphs/sdxl/sft_ip_adapter.ron";
/// Pixels along each side of a picture and of a reference.
const SIDE: u32 = 64;
/// Pixels between two columns.
const GAP: u32 = 4;
/// What a step changes can be seen after it; every step has a strip.
const VISIBLE: [&str; 4] = ["--set", "update.lr=0.3", "--set", "strip.every=1"];

fn previews(run: &Path) -> Vec<String> {
    let found = fs::read_dir(run.join("preview")).unwrap();
    let mut names: Vec<String> = found.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The columns of a strip of one row.
fn columns(strip: &RgbImage) -> Vec<RgbImage> {
    assert_eq!((strip.height(), (strip.width() + GAP) % (SIDE + GAP)), (SIDE, 0));
    let count = (strip.width() + GAP) / (SIDE + GAP);
    (0..count).map(|i| crop_imm(strip, i * (SIDE + GAP), 0, SIDE, SIDE).to_image()).collect()
}

fn picture(path: &Path) -> RgbImage {
    image::open(path).unwrap().into_rgb8()
}

/// The first held-out pair: its name, its prompt and the file of its reference.
fn first_pair() -> (String, String, String) {
    let text = fs::read_to_string(root().join("data/demo/held_out.jsonl")).unwrap();
    let row: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let reference = root().join("data/demo").join(row["refs"][0]["image"].as_str().unwrap());
    let text = |name: &str| row[name].as_str().unwrap().to_owned();
    (text("id"), text("prompt"), reference.display().to_string())
}

#[test]
fn a_strip_shows_sdxl_with_and_without_its_ip_adapter_and_what_the_steps_have_changed() {
    let published = Published::new();
    let out = published.path("run");
    let (good, said) = train(&published, RECIPE, false, &out, &[&VISIBLE[..], &["--steps", "2"]].concat());
    assert!(good, "{said}");
    let (id, prompt, reference) = first_pair();
    let names = [0, 1].map(|step| format!("samples-step-{step:06}-{id}.png"));
    assert_eq!(previews(&out), names);
    let [first, second] = names.map(|name| columns(&picture(&out.join("preview").join(name))));
    // References, winner, base, reference, policy.
    assert_eq!((first.len(), second.len()), (5, 5));
    let different: Vec<usize> = (0..5).filter(|column| first[*column] != second[*column]).collect();
    assert_eq!(different, [4], "the frozen network draws the same at every step, and the policy does not");
    assert_eq!(first[3], first[4], "before the first step the policy is the frozen network");
    assert_ne!(first[2], first[3], "the base has no IP-Adapter");

    // What `graph-run sample` draws by the same settings, with the IP-Adapter and without it.
    let draw = |name: &str, more: &[&str]| {
        let to = published.path(name);
        let mut command = Command::new(cargo_bin("graph-run"));
        command.current_dir(root()).args(["sample", RECIPE, "--prompt", &prompt, "--seed", "0", "--out"]);
        command.arg(&to).args(["--negative", "monochrome, lowres, bad anatomy, worst quality, low quality"]);
        let sets = published.sets(true, false);
        let sets = sets.iter().filter(|s| !s.starts_with("cache") && !s.starts_with("held_out"));
        sets.for_each(|set| _ = command.args(["--set", set]));
        let output = command.args(more).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let file = fs::read_dir(to).unwrap().next().unwrap().unwrap().path();
        picture(&file)
    };
    assert_eq!(draw("with", &["--ref", &reference]), first[3]);
    assert_eq!(draw("without", &["--set", "backbone.ip_adapter="]), first[2]);
}

#[test]
fn sdxl_is_fine_tuned_on_winners_without_references() {
    let published = Published::new();
    let out = published.path("sft");
    let (good, said) = train(&published, "graphs/sdxl/sft.ron", false, &out, &["--steps", "2"]);
    assert!(good, "{said}");
    assert_eq!(previews(&out).len(), 1);
    assert!(out.join("adapter.safetensors").is_file() && out.join("adapter.kohya.safetensors").is_file());
}

#[test]
fn one_negative_prompt_serves_a_batch_of_strips_whose_first_row_is_that_of_one_pair() {
    let published = Published::new();
    let strip = |out: &str, more: &[&str]| {
        let out = published.path(out);
        let more = [more, &["--steps", "1"]].concat();
        let (good, said) = train(&published, "graphs/sdxl/diffusion_dpo.ron", false, &out, &more);
        assert!(good, "{said}");
        picture(&out.join("preview").join(&previews(&out)[0]))
    };
    let one = strip("one", &[]);
    // Winner, reference and policy: without an IP-Adapter there is no base beside the reference.
    assert_eq!(columns(&one).len(), 3);
    let two = strip("two", &["--set", "strip_pairs.first=2", "--set", "strip_pairs.batch=2"]);
    assert_eq!((two.width(), two.height()), (one.width(), 2 * SIDE + GAP));
    assert_eq!(crop_imm(&two, 0, 0, one.width(), SIDE).to_image(), one);
}

#[test]
fn a_graph_that_removes_the_strips_draws_nothing_and_its_cache_forgets_them() {
    let published = Published::new();
    let child = published.path("child.ron");
    let parent = root().join(RECIPE);
    let text = format!(
        "Graph(extends: {:?}, name: \"without\", remove: [\"strip*\"])",
        parent.display().to_string()
    );
    fs::write(&child, text).unwrap();
    let out = published.path("without");
    let mut command = Command::new(cargo_bin("graph-run"));
    command.current_dir(root()).arg(&child).arg("--out").arg(&out).args(["--steps", "1"]);
    for set in published.sets(true, false).iter().filter(|set| !set.starts_with("strip")) {
        command.args(["--set", set]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!out.join("preview").exists());
    assert!(!fs::read_to_string(out.join("graph.ron")).unwrap().contains("strip"));
}
