//! Tokenisers with the published vocabularies.

use std::{io::Read, path::Path};

use prefgraph_nn::text::{ClipModel, ClipTokenizer, T5Tokenizer};

use crate::files::own;

#[derive(serde::Deserialize)]
struct Expected {
    prompt: String,
    clip: Vec<u32>,
    t5: Vec<u32>,
}

fn expected() -> Vec<Expected> {
    let text = std::fs::read_to_string(own().join("tokenizers/expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The published files of a tokeniser, unpacked.
fn unpacked(name: &str) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(own().join("tokenizers").join(name)).unwrap() {
        let from = entry.unwrap().path();
        if from.extension().is_some_and(|e| e == "gz") {
            let mut bytes = Vec::new();
            flate2::read::GzDecoder::new(std::fs::File::open(&from).unwrap())
                .read_to_end(&mut bytes)
                .unwrap();
            std::fs::write(to.path().join(from.file_stem().unwrap()), bytes).unwrap();
        }
    }
    to
}

fn padded(ids: &[u32], length: usize) -> Vec<u32> {
    let mut ids = ids.to_vec();
    ids.resize(length, *ids.last().unwrap());
    ids
}

#[test]
fn clip_splits_hard_prompts_as_the_reference_does() {
    let folder = unpacked("clip");
    let tokenizer = ClipTokenizer::open(folder.path(), 77, ClipModel::L).unwrap();
    assert_eq!(tokenizer.largest_id(), 49407);
    for case in expected() {
        assert_eq!(tokenizer.encode(&case.prompt).unwrap(), padded(&case.clip, 77), "{:?}", case.prompt);
    }
}

#[test]
fn openclip_splits_as_clip_does_and_pads_with_zeros() {
    let folder = unpacked("clip");
    let tokenizer = ClipTokenizer::open(folder.path(), 77, ClipModel::BigG).unwrap();
    for case in expected() {
        let mut ids = case.clip.clone();
        ids.resize(77, 0);
        assert_eq!(tokenizer.encode(&case.prompt).unwrap(), ids, "{:?}", case.prompt);
    }
}

#[test]
fn t5_splits_hard_prompts_as_the_reference_does() {
    let folder = unpacked("t5");
    let tokenizer = T5Tokenizer::open(folder.path(), 512).unwrap();
    assert_eq!(tokenizer.largest_id(), 32099);
    for case in expected() {
        assert_eq!(tokenizer.encode(&case.prompt).unwrap(), padded(&case.t5, 512), "{:?}", case.prompt);
    }
}

#[test]
fn a_long_prompt_keeps_its_end() {
    let (clip, t5) = (unpacked("clip"), unpacked("t5"));
    let text = "mug ".repeat(50);
    let ids = ClipTokenizer::open(clip.path(), 6, ClipModel::L).unwrap().encode(&text).unwrap();
    assert_eq!(ids, [49406, ids[1], ids[1], ids[1], ids[1], 49407]);
    let ids = T5Tokenizer::open(t5.path(), 5).unwrap().encode(&text).unwrap();
    assert_eq!((ids.len(), ids[4]), (5, 1));
}

#[test]
fn a_whole_tokenizer_file_is_preferred_to_its_parts_and_its_own_padding_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let token = |id: u32, content: &str| {
        serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let whole = serde_json::json!({
        "version": "1.0",
        "added_tokens": [token(0, "<|startoftext|>"), token(1, "<|endoftext|>")],
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 7,
            "pad_type_id": 0, "pad_token": "mug"},
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": {"<|startoftext|>": 0, "<|endoftext|>": 1, "mug": 7}, "unk_token": "mug"},
    });
    write(folder.path(), "tokenizer.json", &whole.to_string());
    write(folder.path(), "vocab.json", "not read");
    write(folder.path(), "merges.txt", "not read");
    let tokenizer = ClipTokenizer::open(folder.path(), 8, ClipModel::L).unwrap();
    assert_eq!(tokenizer.encode("mug mug mug").unwrap(), [0, 7, 7, 7, 1, 1, 1, 1]);
}

fn write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).unwrap();
}

#[test]
fn files_that_are_no_tokeniser_are_refused_with_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let clip = || ClipTokenizer::open(folder.path(), 77, ClipModel::L).unwrap_err().to_string();
    assert!(clip().contains("expected tokenizer.json, or vocab.json and merges.txt"), "{}", clip());
    assert!(T5Tokenizer::open(folder.path(), 512).unwrap_err().to_string().contains("tokenizer.json"));

    write(folder.path(), "vocab.json", "[1, 2]");
    write(folder.path(), "merges.txt", "#version: 0.2\na b c\n");
    assert!(clip().contains("vocab.json") && clip().contains("names and their ids"), "{}", clip());
    write(folder.path(), "vocab.json", r#"{"a": 0}"#);
    assert!(clip().contains("no token `<|startoftext|>`"), "{}", clip());
    write(folder.path(), "vocab.json", r#"{"a": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}"#);
    assert!(clip().contains("merges.txt") && clip().contains("line 2"), "{}", clip());

    write(folder.path(), "tokenizer.json", "{}");
    assert!(clip().contains("tokenizer.json: is not a tokeniser"), "{}", clip());
    assert!(
        ClipTokenizer::open(folder.path(), 1, ClipModel::L).unwrap_err().to_string().contains("at least 2")
    );
}
