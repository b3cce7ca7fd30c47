//! CLIP-L of a small checkpoint, and the same with a projection and the other activation in place of ViT-bigG.

use std::{
    fs,
    path::{Path, PathBuf},
};

use prefgraph_nn::{
    self as nn,
    files::{NamedTensor, TensorFiles, write_safetensors},
    text::{Clip, ClipModel, ClipTokenizer},
};

use crate::{
    operator::Operator,
    operators::{
        prompt::{Prompt, PromptSettings, TextKind},
        testing::Bench,
    },
    ports::{Texts, TextsShape},
    settings::DataPath,
};

fn checkpoint() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/encoders/tiny_checkpoint"))
}

/// Width of the projection.
const POOLED: usize = 12;

/// A folder as that of SDXL, with two text encoders and their tokenisers.
fn sdxl() -> tempfile::TempDir {
    let (from, dir) = (checkpoint(), tempfile::tempdir().unwrap());
    let copy = |from: &Path, to: &str| {
        fs::create_dir(dir.path().join(to)).unwrap();
        for file in fs::read_dir(from).unwrap().map(Result::unwrap) {
            fs::copy(file.path(), dir.path().join(to).join(file.file_name())).unwrap();
        }
    };
    copy(&from.join("text_encoder"), "text_encoder");
    copy(&from.join("tokenizer"), "tokenizer");
    copy(&from.join("tokenizer"), "tokenizer_2");
    let second = dir.path().join("text_encoder_2");
    fs::create_dir(&second).unwrap();
    let config = fs::read_to_string(from.join("text_encoder/config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["hidden_act"] = "gelu".into();
    config["projection_dim"] = POOLED.into();
    fs::write(second.join("config.json"), config.to_string()).unwrap();
    let files = TensorFiles::open(&from.join("text_encoder/model.safetensors")).unwrap();
    let mut tensors: Vec<NamedTensor<'_>> = files
        .names()
        .map(|name| {
            let values = files.read(name).unwrap();
            NamedTensor::f32(name.to_owned(), files.info(name).unwrap().shape.clone(), &values)
        })
        .collect();
    let width = config["hidden_size"].as_u64().unwrap() as usize;
    let values: Vec<f32> = (0..POOLED * width).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
    tensors.push(NamedTensor::f32("text_projection.weight", vec![POOLED, width], &values));
    write_safetensors(&second.join("model.safetensors"), &tensors, &[]).unwrap();
    dir
}

fn settings(folder: &Path) -> PromptSettings {
    let path = DataPath(folder.to_owned());
    PromptSettings { kind: TextKind::ClipBigG, clip: path.clone(), bigg: path, ..Default::default() }
}

fn refused(settings: PromptSettings) -> String {
    Prompt::new(settings).err().expect("a refusal").to_string()
}

#[test]
fn tokens_of_both_encoders_stand_side_by_side_and_the_second_is_padded_with_zeros() {
    let dir = sdxl();
    let (bench, op) = (Bench::new(), Prompt::new(settings(dir.path())).unwrap());
    let prompts = ["a red ball", "a cat", "a red ball"].map(String::from);
    let planned = op.shapes((TextsShape { batch: prompts.len() }, None), 0).unwrap();
    let texts = Texts(prompts.to_vec().into());
    let ((text, pooled), ()) = op.forward(&bench.ctx(), (texts, None)).unwrap();
    let (text, pooled) = (text.as_vec(), pooled.as_vec());

    let cpu = nn::Cpu::new(1).unwrap();
    let encode = |name: &str, words: &str, model| {
        let clip = Clip::open(&dir.path().join(name), model).unwrap();
        let length = clip.config().max_position_embeddings;
        let tokenizer = ClipTokenizer::open(&dir.path().join(words), length, model).unwrap();
        let ids = prompts.each_ref().map(|prompt| tokenizer.encode(prompt).unwrap());
        (clip.encode(&cpu, &cpu, prompts.len(), &ids.concat()).unwrap(), ids)
    };
    let (first, first_ids) = encode("text_encoder", "tokenizer", ClipModel::L);
    let (second, second_ids) = encode("text_encoder_2", "tokenizer_2", ClipModel::BigG);
    assert_eq!(second_ids[0].last(), Some(&0));
    assert_ne!(first_ids, second_ids);
    let (_, length, width) = first.penultimate.shape();
    assert_eq!(planned, ((prompts.len(), length, 2 * width), (prompts.len(), POOLED)));
    let expected: Vec<f32> = first
        .penultimate
        .values()
        .chunks(width)
        .zip(second.penultimate.values().chunks(width))
        .flat_map(|(first, second)| [first, second].concat())
        .collect();
    assert_eq!(text, expected);
    assert_eq!(pooled, second.pooled.values());
    assert_eq!(pooled[..POOLED], pooled[2 * POOLED..]);
}

#[test]
fn one_encoder_in_place_of_the_other_is_refused_by_the_name_of_its_setting() {
    let dir = sdxl();
    let [first, second] = ["text_encoder", "text_encoder_2"].map(|name| DataPath(dir.path().join(name)));
    let error = refused(PromptSettings { bigg: first, ..settings(dir.path()) });
    assert!(error.starts_with("bigg: ") && error.contains("OpenCLIP ViT-bigG has it"), "{error}");
    let error = refused(PromptSettings { clip: second, ..settings(dir.path()) });
    assert!(
        error.starts_with("clip: ") && error.contains("expected quick_gelu, as CLIP-L has it"),
        "{error}"
    );
}

#[test]
fn settings_of_other_kinds_and_encoders_that_are_missing_are_refused_by_name() {
    let dir = sdxl();
    let error = refused(PromptSettings { bigg: DataPath::default(), ..settings(dir.path()) });
    assert!(error.contains("bigg: the encoder is needed") && error.contains("text_encoder_2"), "{error}");
    let error = refused(PromptSettings { length: Some(77), ..settings(dir.path()) });
    assert!(error.contains("length is a setting of kind `hash` or kind `clip_t5`"), "{error}");
    let error = refused(PromptSettings { t5: DataPath(checkpoint()), ..settings(dir.path()) });
    assert!(error.contains("t5 is a setting of kind `clip_t5`"), "{error}");
}

#[test]
fn what_is_kept_of_the_prompts_depends_on_both_encoders_and_both_tokenisers() {
    let dir = sdxl();
    let identity = Prompt::new(settings(dir.path())).unwrap().cacheable().unwrap();
    let names: Vec<&str> = identity.files().iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["clip", "bigg", "clip_tokenizer", "bigg_tokenizer"]);
}
