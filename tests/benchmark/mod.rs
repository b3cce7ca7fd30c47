//! A benchmark in a folder: photographs, pictures of a method, and small encoders in the published layouts.
#![allow(dead_code, unreachable_pub, reason = "every test file uses some of it")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use assert_cmd::cargo::cargo_bin;
use prefgraph_nn::{
    files::{NamedTensor, write_safetensors},
    text::clip::ClipConfig,
    vision::vit::VitConfig,
};
use prefgraph_ops::operators::benchmark::{Preset, cases};
use serde_json::{Value, json};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Numbers without pattern in [-1, 1).
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mixed = |i: usize| (i as u64 + 1).wrapping_add(seed << 32).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    (0..count).map(|i| (mixed(i) & 0xFFFF) as f32 / 32768.0 - 1.0).collect()
}

/// A picture of stripes that depend on `kind`, with noise that depends on `which`.
fn picture(path: &Path, (height, width): (u32, u32), kind: u64, which: u64) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let noise = numbers((height * width) as usize, which);
    let image = image::RgbImage::from_fn(width, height, |x, y| {
        let wave = |k: u64| libm::sin(f64::from(x * 3 + y) * (0.05 + 0.02 * (kind * k % 11) as f64));
        let noise = 20.0 * f64::from(noise[(y * width + x) as usize]);
        image::Rgb([1, 3, 7].map(|k| (128.0 + 90.0 * wave(k) + noise) as u8))
    });
    image.save(path).unwrap();
}

/// See the head of the file.
pub struct Folders(tempfile::TempDir);

impl Folders {
    pub fn new() -> Self {
        let folders = Self(tempfile::tempdir().unwrap());
        let preset = Preset::of("dreambench/uno-single").unwrap();
        for (number, subject) in preset.subjects().iter().enumerate() {
            let sizes = [(subject.listed, (40, 40)), ("97", (32, 48)), ("98", (50, 31))];
            for (which, (name, size)) in sizes.into_iter().enumerate() {
                let path = folders.at(&format!("dataset/{}/{name}.png", subject.name));
                picture(&path, size, number as u64, 1000 + 3 * number as u64 + which as u64);
            }
        }
        fs::create_dir_all(folders.encoder("dino")).unwrap();
        for file in ["config.json", "model.safetensors"] {
            let from = root().join("tests/fixtures/encoders/dino_vit").join(file);
            fs::copy(from, folders.encoder("dino").join(file)).unwrap();
        }
        clip(&folders.encoder("clip"));
        folders
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn encoder(&self, name: &str) -> PathBuf {
        self.at("encoders").join(name)
    }

    pub fn photographs(&self, subject: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.at("dataset").join(subject)).unwrap();
        let mut all: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        all.sort();
        all
    }

    /// The pictures of a method, which depend on its seed.
    pub fn draw(&self, folder: &str, preset: &str, seed: u64) {
        self.draw_sized(folder, preset, seed, 24);
    }

    /// The same in squares of this side.
    pub fn draw_sized(&self, folder: &str, preset: &str, seed: u64, side: u32) {
        let preset = Preset::of(preset).unwrap();
        let folder = self.at(folder);
        for (number, case) in cases(preset, &preset.groups(), |path, _| folder.join(path)).iter().enumerate()
        {
            picture(&case.path, (side, side), case.group as u64 + seed, number as u64 + 10_000 * seed);
        }
    }

    /// Words behind `graph-run`, with the folder as the current one.
    pub fn command(&self, graph: &str, more: &[&str]) -> Vec<String> {
        let graph = root().join(format!("graphs/evaluate/dreambench_{graph}.ron"));
        let at = |name: &str| self.at(name).display().to_string();
        let mut words = vec!["evaluate".to_owned(), graph.display().to_string()];
        for set in [
            format!("benchmark.photographs={}", at("dataset")),
            format!("dino.encoder={}", at("encoders/dino")),
            format!("clip_i.encoder={}", at("encoders/clip")),
            "benchmark.height=24".into(),
            "benchmark.width=24".into(),
        ] {
            words.extend(["--set".into(), set]);
        }
        let absolute = |word: &&str| {
            let names_one = ["ours", "theirs", "patchdpo"].contains(word);
            let mapping = word.strip_prefix("benchmark.mapping=");
            match mapping {
                Some(file) => format!("benchmark.mapping={}", at(file)),
                None if names_one => at(word),
                None => (*word).to_owned(),
            }
        };
        words.extend(more.iter().map(absolute));
        words.extend(["--out".into(), at("scores.json")]);
        words
    }

    pub fn report(&self) -> Value {
        serde_json::from_slice(&fs::read(self.at("scores.json")).unwrap()).unwrap()
    }

    pub fn scored(&self, graph: &str, more: &[&str]) -> Value {
        let (code, _, err) = run(&self.command(graph, more));
        assert_eq!(code, 0, "{err}");
        self.report()
    }
}

/// Exit code, standard output, standard error.
pub fn run(words: &[String]) -> (i32, String, String) {
    let mut command = Command::new(cargo_bin("graph-run"));
    command.current_dir(root()).args(words).env("NO_COLOR", "1");
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// By id, what a metric says of each picture.
pub fn values(report: &Value, metric: &str) -> BTreeMap<String, f64> {
    let of = |score: &Value| {
        let value = &score[metric];
        let number = value.as_f64().or_else(|| value["mean"].as_f64());
        (score["id"].as_str().unwrap().to_owned(), number.unwrap())
    };
    report["scores"].as_array().unwrap().iter().map(of).collect()
}

/// Both halves of a CLIP model with weights without meaning, and a tokeniser that knows a few words.
fn clip(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let words = [
        "a", "and", "cat", "dog", "can", "toy", "in", "on", "the", "top", "with", "red", "wet", "shiny",
        "snow", "beach",
    ];
    let half = |kind: &str, more: Value| {
        let mut all = json!({
            "model_type": kind, "hidden_act": "quick_gelu", "hidden_size": 32, "intermediate_size": 64,
            "layer_norm_eps": 1e-5, "num_attention_heads": 4, "num_hidden_layers": 2, "projection_dim": 24,
        });
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    let vocabulary = words.len() + 3;
    let config = json!({
        "model_type": "clip", "projection_dim": 24,
        "text_config": half("clip_text_model", json!({
            "vocab_size": vocabulary, "max_position_embeddings": 12, "eos_token_id": 1,
        })),
        "vision_config": half("clip_vision_model", json!({"image_size": 32, "patch_size": 8, "num_channels": 3})),
    });
    let path = folder.join("config.json");
    fs::write(&path, config.to_string()).unwrap();
    let text = ClipConfig::read(&path).unwrap().tensors();
    let mut shapes: Vec<(String, Vec<usize>)> =
        text.into_iter().map(|(name, shape)| (format!("text_model.{name}"), shape)).collect();
    shapes.push(("text_projection.weight".into(), vec![24, 32]));
    shapes.extend(VitConfig::read(&path).unwrap().tensors());
    let tensor = |(number, (name, shape)): (usize, (String, Vec<usize>))| {
        let scale = 1.0 / (*shape.last().unwrap() as f32).sqrt();
        let values: Vec<f32> =
            numbers(shape.iter().product(), number as u64).into_iter().map(|v| 2.0 * v * scale).collect();
        NamedTensor::f32(name, shape, &values)
    };
    let tensors: Vec<NamedTensor<'_>> = shapes.into_iter().enumerate().map(tensor).collect();
    write_safetensors(&folder.join("model.safetensors"), &tensors, &[]).unwrap();

    let special = |id: usize, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true})
    };
    let mut ids: BTreeMap<String, usize> =
        words.iter().enumerate().map(|(i, w)| ((*w).to_owned(), i + 3)).collect();
    ids.extend([("<|startoftext|>".to_owned(), 0), ("<|endoftext|>".to_owned(), 1), ("?".to_owned(), 2)]);
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [special(0, "<|startoftext|>"), special(1, "<|endoftext|>")],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": ids, "unk_token": "?"},
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}
