//! Mutated configurations of models: a number that no file could go with is an error, at once.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use prefgraph_nn::{
    Cpu, Error,
    autoencoders::{Kl, Tiny},
    models::FluxUno,
    text::{Clip, ClipModel, T5},
    vision::Vit,
};
use serde_json::Value;

use crate::{
    campaign::{self, Outcome},
    random::{Choices, NUMBERS},
};

/// Reads the headers of a model in a folder.
type Open = fn(&Path) -> Result<(), Error>;

const MODELS: [(&str, Open); 10] = [
    ("flux_uno/transformer", |path| FluxUno::open(Cpu::new(1)?, path).map(drop)),
    ("encoders/vae_flux", |path| Kl::open(path).map(drop)),
    ("encoders/vae_sdxl", |path| Kl::open(path).map(drop)),
    ("encoders/vae_tiny", |path| Tiny::open(path).map(drop)),
    ("encoders/clip_text_l", |path| Clip::open(path, ClipModel::L).map(drop)),
    ("encoders/clip_text_bigg", |path| Clip::open(path, ClipModel::BigG).map(drop)),
    ("encoders/t5", |path| T5::open(path).map(drop)),
    ("encoders/clip_vision", |path| Vit::open(path).map(drop)),
    ("encoders/dino_vit", |path| Vit::open(path).map(drop)),
    ("encoders/dinov2", |path| Vit::open(path).map(drop)),
];

/// Every number below a value, by its path.
fn numbers(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Number(_) => found.push(path.to_owned()),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, v)| numbers(v, &format!("{path}/{i}"), found))
        }
        Value::Object(fields) => fields.iter().for_each(|(k, v)| numbers(v, &format!("{path}/{k}"), found)),
        _ => {}
    }
}

/// The folder of a model with another configuration; the weights are the model's own.
fn with_configuration(model: &Path, config: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(model).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        let name = path.file_name().unwrap();
        if name != "config.json" {
            symlink(&path, folder.path().join(name)).unwrap();
        }
    }
    fs::write(folder.path().join("config.json"), config).unwrap();
    folder
}

fn case(choices: &mut Choices) -> Outcome {
    let (name, open) = MODELS[choices.below(MODELS.len())];
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let mut config: Value =
        serde_json::from_str(&fs::read_to_string(model.join("config.json")).unwrap()).unwrap();
    let mut paths = Vec::new();
    numbers(&config, "", &mut paths);
    let mut changed = Vec::new();
    for _ in 0..1 + choices.below(2) {
        let path = &paths[choices.below(paths.len())];
        let number = NUMBERS[choices.below(NUMBERS.len())];
        if let (Some(place), Ok(value)) = (config.pointer_mut(path), serde_json::from_str(number)) {
            *place = value;
            changed.push(format!("{path} = {number}"));
        }
    }
    // A list that is longer than any model's.
    if choices.one_in(6)
        && let Some(Value::Array(items)) = config.as_object_mut().and_then(|c| {
            let lists: Vec<String> = c.iter().filter(|(_, v)| v.is_array()).map(|(k, _)| k.clone()).collect();
            c.get_mut(lists.get(choices.below(lists.len()))?)
        })
        && let Some(item) = items.first().cloned()
    {
        items.resize(1 + choices.below(100), item);
        changed.push("a longer list".into());
    }
    let folder = with_configuration(&model, &config.to_string());
    match open(folder.path()) {
        Ok(()) => Ok("opened"),
        Err(error) => {
            let message = error.to_string();
            match message.contains("internal error") || message.len() > 10_000 {
                true => Err(format!("{name}: {changed:?}: {} bytes: {:.300}", message.len(), message)),
                false => Ok("refused"),
            }
        }
    }
}

#[test]
fn mutated_configurations_are_read_or_refused_at_once() {
    let ends = campaign::run("configurations", 300, case);
    if campaign::is_whole() {
        assert!(["opened", "refused"].iter().all(|e| ends.get(e).is_some_and(|n| *n >= 10)), "{ends:?}");
    }
}
