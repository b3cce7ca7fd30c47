//! PEFT's configuration, beside the file and in its header.

use std::{fs, path::PathBuf};

use prefgraph_nn::{
    files::{Dtype, NamedTensor},
    lora::{AdapterFile, AdapterFormat},
    models::flux::NAMES,
};
use serde_json::{Value, json};

use crate::files::{Folder, PEFT, adapter, apart, assert_equal, assert_is, number, refusal};

/// A folder as `save_pretrained` of PEFT leaves it, with some settings changed.
fn saved(folder: &Folder, rank: usize, changes: Value) -> PathBuf {
    let mut config = json!({
        "alpha_pattern": {}, "auto_mapping": {"base_model_class": "FluxTransformer2DModel"}, "bias": "none",
        "eva_config": null, "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": true,
        "init_lora_weights": true, "layer_replication": null, "loftq_config": {}, "lora_alpha": 8, "lora_bias": false,
        "lora_dropout": 0.0, "megatron_core": "megatron.core", "modules_to_save": null, "peft_type": "LORA",
        "qalora_group_size": 16, "r": rank, "rank_pattern": {}, "target_modules": ["to_q"], "use_dora": false,
        "use_qalora": false, "use_rslora": false,
    });
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    fs::write(folder.at("adapter_config.json"), config.to_string()).unwrap();
    let file = folder.write(apart(&adapter(rank, 8.0)), |m| format!("base_model.model.{m}"), PEFT, None);
    let path = folder.at("adapter_model.safetensors");
    fs::rename(file, &path).unwrap();
    path
}

#[test]
fn the_configuration_beside_a_file_is_one_of_the_files_that_an_adapter_is_read_from() {
    let folder = Folder::new();
    let path = saved(&folder, 4, json!({}));
    assert_eq!(AdapterFile::files_at(&path), [path.clone(), folder.at("adapter_config.json")]);
    assert_eq!(AdapterFile::files_at(folder.path()), [folder.path()]);
    fs::remove_file(folder.at("adapter_config.json")).unwrap();
    assert_eq!(AdapterFile::files_at(&path), std::slice::from_ref(&path));
}

#[test]
fn alpha_beside_the_file_counts_and_the_folder_is_an_adapter() {
    let folder = Folder::new();
    let path = saved(&folder, 4, json!({}));
    assert_is(&path, &adapter(4, 8.0));
    let file = assert_is(folder.path(), &adapter(4, 8.0));
    assert_eq!(file.path(), path);
    fs::rename(&path, folder.at("pytorch_lora_weights.safetensors")).unwrap();
    assert_is(folder.path(), &adapter(4, 8.0));
}

#[test]
fn a_rank_stabilised_scale_is_kept_where_the_root_is_whole_and_refused_elsewhere() {
    let folder = Folder::new();
    // 8 / sqrt(4) is 16 / 4.
    saved(&folder, 4, json!({"use_rslora": true}));
    assert_is(folder.path(), &adapter(4, 16.0));
    saved(&folder, 3, json!({"use_rslora": true}));
    let error = refusal(folder.path());
    assert!(error.contains("use_rslora") && error.contains("8 / sqrt(3)"), "{error}");
}

#[test]
fn patterns_that_say_the_same_of_all_modules_are_read_and_others_are_one_alpha_or_refused() {
    let folder = Folder::new();
    let all =
        json!({"transformer_blocks.0.attn.to_q": 8, "to_k": 8.0, "^transformer_blocks\\.1\\.attn\\.to_v": 8});
    saved(&folder, 4, json!({"alpha_pattern": all, "rank_pattern": {"proj_out": 4}}));
    assert_is(folder.path(), &adapter(4, 8.0));
    for (changes, message) in [
        (json!({"alpha_pattern": {"attn.to_q": 3}}), "scales its modules differently: alpha is"),
        (
            json!({"alpha_pattern": {"attn.to_q": 2, "to_q": 4}}),
            "`attn.to_q` and `to_q` of alpha_pattern both name",
        ),
        (json!({"alpha_pattern": {"attn.to_(q|k)": 2}}), "the regular expression `attn.to_(q|k)`"),
        (json!({"alpha_pattern": {"to_q": "much"}}), "expected a positive number"),
        (
            json!({"rank_pattern": {"attn.to_q": 2}}),
            "says rank 2 for `single_transformer_blocks.0.attn.to_q`, its factors have rank 4",
        ),
    ] {
        saved(&folder, 4, changes);
        let error = refusal(folder.path());
        assert!(error.contains(message), "{message}: {error}");
    }
    // Frozen, each module has the scale that its pattern says.
    saved(&folder, 4, json!({"alpha_pattern": {"attn.to_q": 3}}));
    let modules = AdapterFile::open(folder.path(), "", &NAMES).unwrap().modules();
    let alpha = |end: &str| modules.iter().find(|m| m.linear.name.ends_with(end)).unwrap().alpha;
    assert_eq!((alpha("attn.to_q"), alpha("attn.to_k")), (3.0, 8.0));
}

#[test]
fn what_two_factors_and_a_scale_cannot_hold_is_refused_by_its_setting() {
    let folder = Folder::new();
    for (changes, messages) in [
        (json!({"use_dora": true}), ["use_dora is true", "a DoRA"]),
        (json!({"use_quantum": true}), ["use_quantum is true", "expected a plain LoRA"]),
        (json!({"arrow_config": {"top_k": 2}}), ["arrow_config", "expected a plain LoRA"]),
        (json!({"bias": "lora_only"}), ["bias is \"lora_only\"", "biases were trained"]),
        (json!({"lora_bias": true}), ["lora_bias is true", "biases were trained"]),
        (json!({"modules_to_save": ["proj_out"]}), ["modules_to_save", "whole modules were trained"]),
        (json!({"fan_in_fan_out": true}), ["fan_in_fan_out is true", "transposed"]),
        (json!({"layer_replication": [[0, 2]]}), ["layer_replication", "more than factors"]),
        (json!({"init_lora_weights": "pissa_niter_4"}), ["pissa_niter_4", "whose weights were changed"]),
        (json!({"peft_type": "LOHA"}), ["peft_type is \"LOHA\"", "expected LORA"]),
        (json!({"lora_alpha": 0}), ["lora_alpha is 0", "a positive number"]),
        (json!({"lora_alpha": null}), ["does not state lora_alpha", "adapter_config.json"]),
        (json!({"r": 16}), ["says rank 16", "its factors have rank 4"]),
    ] {
        saved(&folder, 4, changes);
        let error = refusal(folder.path());
        assert!(messages.iter().all(|m| error.contains(m)), "{messages:?}: {error}");
    }
    saved(&folder, 4, json!({"init_lora_weights": "gaussian", "eva_config": {"rho": 2.0}}));
    assert_is(folder.path(), &adapter(4, 8.0));
    fs::write(folder.at("adapter_config.json"), "not JSON").unwrap();
    assert!(refusal(folder.path()).contains("`adapter_config.json` is not JSON"));
}

#[test]
fn places_that_state_different_scales_are_both_named() {
    let folder = Folder::new();
    let pair = PEFT.map(|ending| format!("transformer.transformer_blocks.0.attn.to_out.0{ending}"));
    let names = [pair[0].as_str(), pair[1].as_str()];
    fs::write(folder.at("adapter_config.json"), r#"{"r": 2, "lora_alpha": 4}"#).unwrap();
    let header = r#"{"transformer.r": 2, "transformer.lora_alpha": 6}"#;
    let error = refusal(&folder.two(names, &[("lora_adapter_metadata", header)]));
    for part in ["`lora_adapter_metadata` in the header says alpha 6", "`adapter_config.json` says 4"] {
        assert!(error.contains(part), "{error}");
    }
    let alpha = folder.write(
        apart(&adapter(4, 8.0)),
        |m| format!("transformer.{m}"),
        PEFT,
        Some(&number(Dtype::F32, &8f32.to_le_bytes())),
    );
    fs::write(folder.at("adapter_config.json"), r#"{"r": 4, "lora_alpha": 4}"#).unwrap();
    let error = refusal(&alpha);
    assert!(error.contains(".alpha` says alpha 8, `adapter_config.json` says 4"), "{error}");
    fs::write(folder.at("adapter_config.json"), r#"{"r": 4, "lora_alpha": 8}"#).unwrap();
    assert_is(&alpha, &adapter(4, 8.0));
}

#[test]
fn a_header_as_diffusers_writes_it_counts_and_what_it_says_of_text_encoders_does_not() {
    let folder = Folder::new();
    let own = adapter(2, 4.0);
    let tensors: Vec<NamedTensor<'_>> = apart(&own)
        .into_iter()
        .flat_map(|p| {
            let [a, b] = PEFT.map(|ending| format!("transformer.{}{ending}", p.name));
            [NamedTensor { name: a, ..p.a }, NamedTensor { name: b, ..p.b }]
        })
        .collect();
    for header in [
        json!({"transformer.r": 2, "transformer.lora_alpha": 4, "text_encoder.lora_alpha": 1, "text_encoder.use_dora": true}),
        json!({"transformer.r": 2, "transformer.lora_alpha": 4, "transformer.alpha_pattern": {"to_q": 4}}),
        json!({"r": 2, "lora_alpha": 4.0}),
        json!({"transformer.r": 2, "transformer.lora_alpha": 4, "transformer.use_rslora": false}),
    ] {
        let path = folder.tensors(&tensors, &[("lora_adapter_metadata", &header.to_string())]);
        assert_is(&path, &own);
    }
}

#[test]
fn a_file_that_was_written_here_says_all_of_itself_whatever_lies_beside_it() {
    let folder = Folder::new();
    saved(&folder, 4, json!({"use_rslora": true}));
    let own = adapter(4, 2.0);
    let path = folder.at("converted.safetensors");
    own.write(&path, AdapterFormat::Diffusers, &[]).unwrap();
    assert_equal(&AdapterFile::open(&path, "", &NAMES).unwrap().adapter(None).unwrap(), &own);
}

#[test]
fn a_folder_without_an_adapter_or_with_two_is_refused_with_names() {
    let folder = Folder::new();
    assert!(
        refusal(folder.path()).contains("expected one of adapter_model.safetensors, pytorch_lora_weights")
    );
    fs::write(folder.at("adapter_model.bin"), "x").unwrap();
    assert!(refusal(folder.path()).contains("in `adapter_model.bin`, a pickle"));
    saved(&folder, 4, json!({}));
    assert_is(folder.path(), &adapter(4, 8.0));
    let names = ["transformer.proj_out.lora_A.weight", "transformer.proj_out.lora_B.weight"];
    fs::rename(folder.two(names, &[]), folder.at("pytorch_lora_weights.safetensors")).unwrap();
    let error = refusal(folder.path());
    assert!(error.contains("adapter_model.safetensors and pytorch_lora_weights.safetensors"), "{error}");
}
