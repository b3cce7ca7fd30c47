//! The encoders of a small checkpoint in the published layout of folders, with random weights.

use std::path::PathBuf;

use prefgraph_nn::files::TensorFiles;

use crate::{
    operator::Operator,
    operators::{
        prompt::{Prompt, PromptSettings, TextKind},
        testing::{Bench, worst},
    },
    ports::{Texts, TextsShape},
    settings::DataPath,
};

fn checkpoint() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/encoders/tiny_checkpoint"))
}

fn settings() -> PromptSettings {
    let [clip, t5] = [checkpoint(), checkpoint().join("text_encoder_2")].map(DataPath);
    PromptSettings { kind: TextKind::ClipT5, clip, t5, length: Some(20), ..Default::default() }
}

fn refused(settings: PromptSettings) -> String {
    Prompt::new(settings).err().expect("a refusal").to_string()
}

#[test]
fn prompts_become_the_text_and_the_pooled_vectors_of_the_reference() {
    let text = std::fs::read_to_string(checkpoint().join("prompts.json")).unwrap();
    let prompts: Vec<String> = serde_json::from_str(&text).unwrap();
    let io = TensorFiles::open(&checkpoint().join("io.safetensors")).unwrap();
    let (bench, op) = (Bench::new(), Prompt::new(settings()).unwrap());
    let planned = op.shapes((TextsShape { batch: prompts.len() }, None), 0).unwrap();
    assert_eq!(planned, ((5, 20, 48), (5, 32)));
    let ((text, pooled), ()) = op.forward(&bench.ctx(), (Texts(prompts.into()), None)).unwrap();
    let (text, pooled) = (text.as_vec(), pooled.as_vec());
    assert!(worst(&text, &io.read("text").unwrap()) < 5e-5);
    assert!(worst(&pooled, &io.read("pooled").unwrap()) < 5e-5);
    // The first and the fourth prompt are equal.
    assert_eq!(pooled[..32], pooled[3 * 32..4 * 32]);
}

#[test]
fn the_tokens_are_512_where_nothing_else_is_stated_and_cost_is_known_before_weights_are_read() {
    let op = Prompt::new(PromptSettings { length: None, ..settings() }).unwrap();
    let prompts = (TextsShape { batch: 2 }, None);
    let planned = op.shapes(prompts.clone(), 0).unwrap();
    assert_eq!(planned.0, (2, 512, 48));
    let cost = op.cost(&prompts, &planned);
    assert!(cost.forward_flops > 1e7 && cost.scratch_bytes > 512 * 512 * 4, "{cost:?}");
    assert!(op.notes(&prompts)[0].contains("512 tokens"));
}

#[test]
fn widths_that_the_backbone_does_not_take_are_named_on_both_sides() {
    let op = Prompt::new(settings()).unwrap();
    assert_eq!(op.shape(Some((48, 32))).unwrap(), (20, 48, 32));
    let error = op.shape(Some((4096, 32))).unwrap_err().to_string();
    assert!(error.contains("`t5` are 48 wide") && error.contains("takes 4096"), "{error}");
    let error = op.shape(Some((48, 768))).unwrap_err().to_string();
    assert!(error.contains("`clip` are 32 wide") && error.contains("takes 768"), "{error}");
}

#[test]
fn settings_that_do_not_go_together_are_refused_by_name() {
    let error = refused(PromptSettings { clip: DataPath::default(), ..settings() });
    assert!(error.contains("clip:") && error.contains("text_encoder"), "{error}");
    let error = refused(PromptSettings { width: Some(48), ..settings() });
    assert!(error.contains("width is a setting of kind `hash`"), "{error}");
    let error = refused(PromptSettings { kind: TextKind::Hash, ..settings() });
    assert!(error.contains("clip is a setting of kind `clip_t5` or kind `clip_bigg`"), "{error}");
    let swapped = DataPath(checkpoint().join("text_encoder"));
    let error = refused(PromptSettings { t5: swapped, ..settings() });
    assert!(error.contains("t5:") && error.contains("expected t5"), "{error}");
    let error = refused(PromptSettings { t5_tokenizer: DataPath(checkpoint()), ..settings() });
    assert!(error.contains("t5_tokenizer:") && error.contains("tokenizer.json"), "{error}");
    assert!(refused(PromptSettings { length: Some(0), ..settings() }).contains("at least 1"));
}

#[test]
fn single_files_with_tokenisers_from_their_settings_give_what_their_folders_give() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| DataPath(dir.path().join(name));
    for (folder, file) in
        [("text_encoder", "clip/model.safetensors"), ("text_encoder_2", "t5xxl.safetensors")]
    {
        std::fs::create_dir_all(dir.path().join("clip")).unwrap();
        std::fs::copy(checkpoint().join(folder).join("model.safetensors"), dir.path().join(file)).unwrap();
    }
    // Its heads are no wider than 8: the sizes cannot be told from tensors.
    std::fs::copy(checkpoint().join("text_encoder/config.json"), dir.path().join("clip/config.json"))
        .unwrap();
    let files =
        PromptSettings { clip: at("clip/model.safetensors"), t5: at("t5xxl.safetensors"), ..settings() };
    let error = refused(files.clone());
    assert!(error.contains("clip_tokenizer:") && error.contains("name the folder of one"), "{error}");
    let [clip_tokenizer, t5_tokenizer] =
        ["tokenizer", "tokenizer_2"].map(|name| DataPath(checkpoint().join(name)));
    let error = refused(PromptSettings { clip_tokenizer: clip_tokenizer.clone(), ..files.clone() });
    assert!(error.contains("t5_tokenizer:") && error.contains("t5xxl.safetensors"), "{error}");
    let files = PromptSettings { clip_tokenizer, t5_tokenizer, ..files };
    let bench = Bench::new();
    let encoded = |settings: PromptSettings| {
        let prompts = Texts(vec!["a red ball".to_owned()].into());
        let ((text, pooled), ()) =
            Prompt::new(settings).unwrap().forward(&bench.ctx(), (prompts, None)).unwrap();
        (text.as_vec(), pooled.as_vec())
    };
    assert_eq!(encoded(files.clone()), encoded(settings()));
    // What is kept of the encoders' results depends on the configuration beside the file, too.
    let identity = Prompt::new(files).unwrap().cacheable().unwrap();
    let names: Vec<&str> = identity.files().iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["clip_config", "clip", "t5", "clip_tokenizer", "t5_tokenizer"]);
}

#[test]
fn a_tokeniser_of_another_model_is_refused_before_the_first_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(checkpoint().join("tokenizer_2/tokenizer.json")).unwrap();
    let mut whole: serde_json::Value = serde_json::from_str(&text).unwrap();
    let vocabulary = whole["model"]["vocab"].as_array_mut().unwrap();
    vocabulary.extend((0..30).map(|i| serde_json::json!([format!("more{i}"), -9.0])));
    std::fs::write(folder.path().join("tokenizer.json"), whole.to_string()).unwrap();
    let error = refused(PromptSettings { t5_tokenizer: DataPath(folder.path().into()), ..settings() });
    assert!(error.contains("ids up to 85") && error.contains("knows 64 tokens"), "{error}");
}
