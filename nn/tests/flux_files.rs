//! FLUX folders as users have them: one file or shards, intact or damaged.

#[allow(dead_code, reason = "shared with the golden test, which uses the rest")]
#[path = "golden/case.rs"]
mod case;
#[allow(dead_code, reason = "of the U-Net's cases")]
#[path = "golden/image_tokens.rs"]
mod image_tokens;

use std::path::Path;

use case::{Case, Network, cases};
use prefgraph_nn::{
    Backbone, Cpu, Probe,
    files::{Dtype, NamedTensor, TensorFiles, write_safetensors},
    models::FluxUno,
};

const STEM: &str = "diffusion_pytorch_model";

/// The tensors of a case's checkpoint.
fn tensors(files: &TensorFiles) -> Vec<NamedTensor<'_>> {
    let tensor = |name: &str| {
        let info = files.info(name).unwrap();
        let bytes = files.bytes(name).unwrap().into();
        NamedTensor { name: name.into(), dtype: info.dtype, shape: info.shape.clone(), bytes }
    };
    files.names().map(tensor).collect()
}

/// A folder with the case's configuration and these tensors in shards.
fn write(case: &Case, folder: &Path, shards: &[&[NamedTensor<'_>]]) {
    std::fs::copy(case.folder.join("transformer/config.json"), folder.join("config.json")).unwrap();
    if let [one] = shards {
        return write_safetensors(&folder.join(format!("{STEM}.safetensors")), one, &[]).unwrap();
    }
    let mut map = serde_json::Map::new();
    for (i, shard) in shards.iter().enumerate() {
        let file = format!("{STEM}-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        write_safetensors(&folder.join(&file), shard, &[]).unwrap();
        map.extend(shard.iter().map(|t| (t.name.clone(), file.clone().into())));
    }
    let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
    std::fs::write(folder.join(format!("{STEM}.safetensors.index.json")), index.to_string()).unwrap();
}

fn open(folder: &Path) -> prefgraph_nn::Result<FluxUno> {
    FluxUno::open(Cpu::new(1).unwrap(), folder)
}

#[test]
fn a_checkpoint_in_shards_predicts_what_it_predicts_in_one_file() {
    let case = &cases(Network::Flux)[0];
    let inputs = case.inputs(&case.file("forward.safetensors"), "", &["x_t"]);
    let files = case.file(&format!("transformer/{STEM}.safetensors"));
    let all = tensors(&files);
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = all.split_at(all.len() / 3);
    write(case, dir.path(), &[first, second]);
    let whole = case.model(1).predict(&inputs, None, &Probe::NOTHING).unwrap().latents;
    let sharded = open(dir.path()).unwrap().predict(&inputs, None, &Probe::NOTHING).unwrap().latents;
    assert_eq!(sharded.values(), whole.values());
}

#[test]
fn opening_compares_names_and_shapes_and_loading_looks_at_values() {
    let case = &cases(Network::Flux)[0];
    let files = case.file(&format!("transformer/{STEM}.safetensors"));
    let dir = tempfile::tempdir().unwrap();
    let all = tensors(&files);
    let find = |name: &str| all.iter().position(|t| t.name == name).unwrap();
    let norm = find("transformer_blocks.0.attn.norm_q.weight");
    let bias = find("proj_out.bias");

    let mut broken = all.clone();
    let (width, outputs) = (all[norm].shape[0], all[bias].shape[0]);
    broken[bias] = NamedTensor::f32("proj_out.bis", vec![outputs], &vec![0.0; outputs]);
    broken[norm] = NamedTensor::f32(all[norm].name.clone(), vec![width - 1], &vec![1.0; width - 1]);
    write(case, dir.path(), &[&broken]);
    let error = open(dir.path()).unwrap_err().to_string();
    let shapes = format!("norm_q.weight (expected [{width}], the file has [{}])", width - 1);
    for part in ["missing: proj_out.bias", "surplus: proj_out.bis", &shapes] {
        assert!(error.contains(part), "{part} in {error}");
    }

    let mut broken = all.clone();
    let mut values = vec![1.0; width];
    values[7] = f32::INFINITY;
    broken[norm] = NamedTensor::f32(all[norm].name.clone(), vec![width], &values);
    write(case, dir.path(), &[&broken]);
    let model = open(dir.path()).unwrap();
    let error = model.load().unwrap_err().to_string();
    assert!(error.contains("`transformer_blocks.0.attn.norm_q.weight` holds inf at element 7"), "{error}");
}

#[test]
fn weights_in_half_precision_are_widened_and_whole_numbers_are_refused() {
    let case = &cases(Network::Flux)[0];
    let files = case.file(&format!("transformer/{STEM}.safetensors"));
    let dir = tempfile::tempdir().unwrap();
    let inputs = case.inputs(&case.file("forward.safetensors"), "", &["x_t"]);
    let brain = |t: &NamedTensor<'_>| NamedTensor {
        dtype: Dtype::BF16,
        bytes: t.bytes.as_chunks::<4>().0.iter().flat_map(|b| [b[2], b[3]]).collect(),
        ..t.clone()
    };
    // Cut to the upper 16 bits, as bf16 and again as f32: the same numbers.
    let cut = |t: &NamedTensor<'_>| NamedTensor {
        bytes: t.bytes.as_chunks::<4>().0.iter().flat_map(|b| [0, 0, b[2], b[3]]).collect(),
        ..t.clone()
    };
    let predict = |tensors: Vec<NamedTensor<'_>>| {
        write(case, dir.path(), &[&tensors]);
        open(dir.path()).unwrap().predict(&inputs, None, &Probe::NOTHING).unwrap().latents
    };
    let all = tensors(&files);
    let (halves, wholes) = (predict(all.iter().map(brain).collect()), predict(all.iter().map(cut).collect()));
    assert_eq!(halves.values(), wholes.values());

    let mut broken = all.clone();
    broken[0].dtype = Dtype::I32;
    write(case, dir.path(), &[&broken]);
    let error = open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("expected f32, f16 or bf16, the file has I32"), "{error}");
}

#[test]
fn a_folder_without_weights_or_configuration_is_refused_with_what_was_expected() {
    let case = &cases(Network::Flux)[0];
    let dir = tempfile::tempdir().unwrap();
    assert!(open(dir.path()).unwrap_err().to_string().contains("config.json"));
    std::fs::copy(case.folder.join("transformer/config.json"), dir.path().join("config.json")).unwrap();
    let error = open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("expected diffusion_pytorch_model.safetensors or"), "{error}");
}

#[test]
fn a_damaged_configuration_beside_a_file_does_not_count_as_absent() {
    let case = &cases(Network::Flux)[0];
    let dir = tempfile::tempdir().unwrap();
    let all =
        TensorFiles::open(&case.folder.join("transformer/diffusion_pytorch_model.safetensors")).unwrap();
    write(case, dir.path(), &[&tensors(&all)]);
    let file = dir.path().join("diffusion_pytorch_model.safetensors");
    open(&file).unwrap();
    let config = dir.path().join("config.json");
    let text = std::fs::read(&config).unwrap();
    std::fs::write(&config, &text[..text.len() / 2]).unwrap();
    let error = open(&file).unwrap_err().to_string();
    assert!(error.contains("config.json") && error.contains("is not JSON"), "{error}");
    // Another model's is none of this one.
    std::fs::write(&config, r#"{"model_type": "clip"}"#).unwrap();
    assert!(!open(&file).is_err_and(|e| e.to_string().contains("is not JSON")));
}
