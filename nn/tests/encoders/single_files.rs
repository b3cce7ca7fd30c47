//! Text encoders in a single file, as ComfyUI stores them: no configuration, and unused tensors.

use std::{
    fs,
    path::{Path, PathBuf},
};

use prefgraph_nn::{
    Cpu,
    files::{Dtype, NamedTensor, write_safetensors},
    text::{Clip, ClipModel, T5, clip::ClipConfig},
};

use crate::files::{assert_near, case, golden, ids, rewrite};

/// The weights of a case as one file in a folder of its own.
fn single(name: &str, file: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(file);
    fs::copy(case(name).join("model.safetensors"), &path).unwrap();
    (dir, path)
}

fn same_file_changed(path: &Path, change: impl FnMut(NamedTensor<'static>) -> Option<NamedTensor<'static>>) {
    let copy = path.with_extension("copy");
    fs::rename(path, &copy).unwrap();
    rewrite(&copy, path, change);
}

/// CLIP-L in small: heads are 64 wide. Every value is another.
fn clip() -> (ClipConfig, Vec<NamedTensor<'static>>) {
    let text = r#"{"model_type": "clip_text_model", "vocab_size": 40, "hidden_size": 128, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 8, "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5, "eos_token_id": 2}"#;
    let config: ClipConfig = serde_json::from_str(text).unwrap();
    let mut at = 0u32;
    let mut values = |shape: &[usize]| -> Vec<f32> {
        let mut value = || {
            at = at.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (at >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..shape.iter().product()).map(|_| value() * 0.2).collect()
    };
    let tensors = config.tensors().into_iter();
    let tensors = tensors.map(|(name, shape)| {
        let values = values(&shape);
        NamedTensor::f32(format!("text_model.{name}"), shape, &values)
    });
    (config.clone(), tensors.collect())
}

#[test]
fn t5_in_one_file_is_measured_by_its_tensors_and_gives_the_reference_tokens() {
    let (_dir, path) = single("t5", "t5xxl_fp16.safetensors");
    let (cpu, io) = (Cpu::new(2).unwrap(), golden(&case("t5")));
    let (prompts, ids) = ids(&io, "input_ids");
    let t5 = T5::open(&path).unwrap();
    let folder = T5::open(&case("t5")).unwrap();
    let (found, stated) = (t5.config(), folder.config());
    assert_eq!((found.d_kv, found.d_ff, found.num_layers), (stated.d_kv, stated.d_ff, stated.num_layers));
    assert_eq!((found.num_heads, found.vocab_size), (stated.num_heads, stated.vocab_size));
    let tokens = t5.encode(&cpu, &cpu, prompts, &ids).unwrap();
    assert_near(tokens.values(), &io.read("last").unwrap(), "tokens");
    assert_eq!(tokens.values(), folder.encode(&cpu, &cpu, prompts, &ids).unwrap().values());
}

#[test]
fn clip_in_one_file_has_heads_of_64_and_gives_what_its_folder_gives() {
    let (config, mut tensors) = clip();
    let dir = tempfile::tempdir().unwrap();
    let (folder, file) = (dir.path().join("folder"), dir.path().join("clip_l.safetensors"));
    fs::create_dir(&folder).unwrap();
    let json = serde_json::json!({
        "model_type": config.model_type, "vocab_size": 40, "hidden_size": 128, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 8,
        "hidden_act": "quick_gelu", "eos_token_id": 39,
    });
    fs::write(folder.join("config.json"), json.to_string()).unwrap();
    write_safetensors(&folder.join("model.safetensors"), &tensors, &[]).unwrap();
    tensors.push(NamedTensor::f32("logit_scale", vec![], &[4.6]));
    tensors.push(NamedTensor::f32("text_projection.weight", vec![128, 128], &[0.5; 128 * 128]));
    let positions = (0..8u64).flat_map(|p| p.to_le_bytes()).collect::<Vec<u8>>().into();
    let name = "text_model.embeddings.position_ids".to_owned();
    tensors.push(NamedTensor { name, dtype: Dtype::I64, shape: vec![1, 8], bytes: positions });
    write_safetensors(&file, &tensors, &[]).unwrap();
    // A configuration of another model beside it says nothing of this file.
    fs::copy(case("t5").join("config.json"), dir.path().join("config.json")).unwrap();

    let cpu = Cpu::new(1).unwrap();
    let ids = [38, 5, 6, 7, 39, 39, 39, 39];
    let [one, other] = [&file, &folder]
        .map(|path| Clip::open(path, ClipModel::L).unwrap().encode(&cpu, &cpu, 1, &ids).unwrap());
    assert_eq!(one.tokens.values(), other.tokens.values());
    assert_eq!(one.pooled.values(), other.pooled.values());
    assert!(one.pooled.values().iter().any(|v| v.abs() > 0.1));
}

#[test]
fn a_configuration_of_the_same_model_beside_the_file_counts() {
    let (dir, path) = single("clip_text_l", "clip_l.safetensors");
    fs::copy(case("clip_text_l").join("config.json"), dir.path().join("config.json")).unwrap();
    let (cpu, io) = (Cpu::new(1).unwrap(), golden(&case("clip_text_l")));
    let (prompts, ids) = ids(&io, "input_ids");
    let found = Clip::open(&path, ClipModel::L).unwrap().encode(&cpu, &cpu, prompts, &ids).unwrap();
    assert_near(found.pooled.values(), &io.read("pooled").unwrap(), "pooled");
}

#[test]
fn a_file_that_is_another_model_or_of_too_few_bits_is_refused_by_name() {
    type Change = fn(NamedTensor<'static>) -> Option<NamedTensor<'static>>;
    fn fp8(tensor: NamedTensor<'static>) -> Option<NamedTensor<'static>> {
        let bytes = vec![0x38; tensor.bytes.len() / 4].into();
        let weights = tensor.name.ends_with("proj.weight") || tensor.name.contains("DenseReluDense");
        Some(if weights { NamedTensor { dtype: Dtype::F8_E4M3, bytes, ..tensor } } else { tensor })
    }
    fn ungated(tensor: NamedTensor<'static>) -> Option<NamedTensor<'static>> {
        let name = tensor.name.replace("wi_0", "wi");
        Some(NamedTensor { name, ..tensor })
    }
    fn wide(tensor: NamedTensor<'static>) -> Option<NamedTensor<'static>> {
        if !tensor.name.ends_with("token_embedding.weight") {
            return Some(tensor);
        }
        Some(NamedTensor::f32(tensor.name, vec![1, 1280], &[0.0; 1280]))
    }
    fn narrow(tensor: NamedTensor<'static>) -> Option<NamedTensor<'static>> {
        if !tensor.name.ends_with("token_embedding.weight") {
            return Some(tensor);
        }
        Some(NamedTensor::f32(tensor.name, vec![1, 768], &[0.0; 768]))
    }
    type Open = fn(&Path) -> String;
    let bigg: Open = |path| Clip::open(path, ClipModel::BigG).unwrap_err().to_string();
    let clip: Open = |path| Clip::open(path, ClipModel::L).unwrap_err().to_string();
    let t5: Open = |path| T5::open(path).unwrap_err().to_string();
    let cases: [(&str, Open, Change, &str); 9] = [
        (
            "t5",
            t5,
            fp8,
            "holds weights in fp8 (F8_E4M3): expected f32, f16 or bf16, e.g. `t5xxl_fp16.safetensors`",
        ),
        ("clip_text_l", clip, fp8, "holds weights in fp8 (F8_E4M3)"),
        (
            "t5",
            clip,
            Some,
            "is not the CLIP text encoder in one file: expected `embeddings.token_embedding.weight`",
        ),
        ("clip_text_l", t5, Some, "is not a T5 encoder in one file: expected `shared.weight`"),
        ("t5", t5, ungated, "version 1.0, whose MLPs have no gate"),
        ("clip_text_l", clip, wide, "an OpenCLIP text encoder by its width, 1280"),
        ("clip_text_l", clip, Some, "a width of 32 is no multiple of 64"),
        (
            "clip_text_bigg",
            bigg,
            narrow,
            "is CLIP-L by its width, 768: expected OpenCLIP ViT-bigG, 1280 wide",
        ),
        ("clip_text_l", bigg, Some, "is not the text encoder of OpenCLIP ViT-bigG in one file"),
    ];
    for (name, open, change, message) in cases {
        let (_dir, path) = single(name, "encoder.safetensors");
        same_file_changed(&path, change);
        let error = open(&path);
        assert!(error.contains("encoder.safetensors") && error.contains(message), "{message}: {error}");
    }
}
