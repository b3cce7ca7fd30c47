//! Text encoders against their golden cases.

use std::path::Path;

use prefgraph_nn::{
    Cpu, Device,
    files::{NamedTensor, write_safetensors},
    text::{Clip, ClipEncoder, ClipModel, T5, T5Encoder},
};

use crate::files::{as_bf16, assert_near, case, changed_copy, golden, gpu, ids, rewrite, rounded_to_bf16};

fn clip_is_golden(folder: &Path, model: ClipModel) {
    let cpu = Cpu::new(2).unwrap();
    clip_is_golden_on(&cpu, &cpu, folder, model);
    if let Some(gpu) = gpu("CLIP") {
        clip_is_golden_on(&gpu, &cpu, folder, model);
    }
}

fn clip_is_golden_on<D: Device>(device: &D, cpu: &Cpu, folder: &Path, model: ClipModel) {
    let io = match model {
        ClipModel::L => golden(&case("clip_text_l")),
        _ => golden(&case("clip_text_bigg")),
    };
    let (prompts, ids) = ids(&io, "input_ids");
    let found = ClipEncoder::open(folder, model).unwrap().encode(device, cpu, prompts, &ids).unwrap();
    assert_near(found.tokens.values(), &io.read("last").unwrap(), "tokens");
    assert_near(found.penultimate.values(), &io.read("penultimate").unwrap(), "tokens before the last block");
    assert_near(found.pooled.values(), &io.read("pooled").unwrap(), "pooled");
}

fn t5_is_golden(folder: &Path) {
    let cpu = Cpu::new(2).unwrap();
    t5_is_golden_on(&cpu, &cpu, folder);
    if let Some(gpu) = gpu("T5") {
        t5_is_golden_on(&gpu, &cpu, folder);
    }
}

fn t5_is_golden_on<D: Device>(device: &D, cpu: &Cpu, folder: &Path) {
    let io = golden(&case("t5"));
    let (prompts, ids) = ids(&io, "input_ids");
    let found = T5Encoder::open(folder).unwrap().encode(device, cpu, prompts, &ids).unwrap();
    assert_near(found.values(), &io.read("last").unwrap(), "tokens");
}

#[test]
fn clip_gives_the_reference_tokens_and_pooled_vectors() {
    clip_is_golden(&case("clip_text_l"), ClipModel::L);
}

#[test]
fn openclip_gives_the_reference_tokens_and_projected_pooled_vectors() {
    clip_is_golden(&case("clip_text_bigg"), ClipModel::BigG);
}

#[test]
fn clip_reads_names_without_their_prefix() {
    let folder = changed_copy("clip_text_l", |t| {
        let name = t.name.trim_start_matches("text_model.").to_owned();
        Some(NamedTensor { name, ..t })
    });
    clip_is_golden(folder.path(), ClipModel::L);
}

/// The numbers of one matrix `[rows, columns]` as those of its transpose.
fn transposed(tensor: NamedTensor<'static>) -> NamedTensor<'static> {
    let [rows, columns] = tensor.shape[..] else { panic!("two axes of {}", tensor.name) };
    let values = tensor.bytes.as_chunks::<4>().0;
    let at = |i: usize| values[i % rows * columns + i / rows];
    let bytes = (0..rows * columns).flat_map(at).collect::<Vec<u8>>().into();
    NamedTensor { shape: vec![columns, rows], bytes, ..tensor }
}

/// A text encoder as a whole checkpoint of SDXL in one file has it, and its configuration beside it.
fn inside_a_checkpoint(name: &str, model: ClipModel) -> tempfile::TempDir {
    // Queries, keys and values of a block come one after the other, in this order once they are sorted so.
    let mut thirds: Vec<NamedTensor<'static>> = Vec::new();
    let folder = changed_copy(name, |tensor| {
        let inner = tensor.name.trim_start_matches("text_model.").to_owned();
        if model == ClipModel::L {
            let name = format!("conditioner.embedders.0.transformer.text_model.{inner}");
            return Some(NamedTensor { name, ..tensor });
        }
        let inner = inner
            .replace("embeddings.token_embedding", "token_embedding")
            .replace("embeddings.position_embedding.weight", "positional_embedding")
            .replace("encoder.layers", "transformer.resblocks")
            .replace("layer_norm1", "ln_1")
            .replace("layer_norm2", "ln_2")
            .replace("mlp.fc1", "mlp.c_fc")
            .replace("mlp.fc2", "mlp.c_proj")
            .replace("self_attn.out_proj", "attn.out_proj")
            .replace("final_layer_norm", "ln_final");
        let name = format!("conditioner.embedders.1.model.{inner}");
        if inner == "text_projection.weight" {
            let name = name.trim_end_matches(".weight").to_owned();
            return Some(NamedTensor { name, ..transposed(tensor) });
        }
        if [".q_proj", ".k_proj", ".v_proj"].iter().any(|linear| inner.contains(linear)) {
            thirds.push(NamedTensor { name, ..tensor });
            return None;
        }
        Some(NamedTensor { name, ..tensor })
    });
    let weights = folder.path().join("model.safetensors");
    let file = folder.path().join("sdxl.safetensors");
    if thirds.is_empty() {
        std::fs::rename(weights, file).unwrap();
        return folder;
    }
    let mut all: Vec<NamedTensor<'static>> = Vec::new();
    rewrite(&weights, &file, |tensor| {
        all.push(tensor.clone());
        None
    });
    for q in thirds.iter().filter(|tensor| tensor.name.contains(".q_proj.")) {
        let part = |linear: &str| {
            let name = q.name.replace(".q_proj.", linear);
            thirds.iter().find(|tensor| tensor.name == name).unwrap()
        };
        let parts = [q, part(".k_proj."), part(".v_proj.")];
        let bytes = parts.iter().flat_map(|tensor| tensor.bytes.iter().copied()).collect::<Vec<u8>>().into();
        let mut shape = q.shape.clone();
        shape[0] *= 3;
        let name = q.name.replace("self_attn.q_proj.", "attn.in_proj_");
        all.push(NamedTensor { name, shape, bytes, ..q.clone() });
    }
    write_safetensors(&file, &all, &[]).unwrap();
    std::fs::remove_file(weights).unwrap();
    folder
}

#[test]
fn both_text_encoders_of_sdxl_are_found_inside_a_whole_checkpoint() {
    for (name, model) in [("clip_text_l", ClipModel::L), ("clip_text_bigg", ClipModel::BigG)] {
        let folder = inside_a_checkpoint(name, model);
        clip_is_golden(&folder.path().join("sdxl.safetensors"), model);
    }
}

#[test]
fn clip_takes_the_largest_id_as_the_end_where_an_old_configuration_says_two() {
    // The published configuration of OpenCLIP ViT-bigG is such an old one.
    for (name, model) in [("clip_text_l", ClipModel::L), ("clip_text_bigg", ClipModel::BigG)] {
        let folder = changed_copy(name, Some);
        let path = folder.path().join("config.json");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"eos_token_id\": 98", "\"eos_token_id\": 2")).unwrap();
        clip_is_golden(folder.path(), model);
    }
}

#[test]
fn clip_pools_the_first_end_and_a_later_token_changes_no_earlier_one() {
    let (cpu, clip) = (Cpu::new(1).unwrap(), Clip::open(&case("clip_text_l"), ClipModel::L).unwrap());
    let first = clip.encode(&cpu, &cpu, 1, &[97, 5, 6, 98, 98, 98]).unwrap();
    let second = clip.encode(&cpu, &cpu, 1, &[97, 5, 6, 98, 11, 98]).unwrap();
    assert_eq!(first.pooled.values(), second.pooled.values());
    assert_eq!(first.tokens.values()[3 * 32..4 * 32], *first.pooled.values());
    assert_ne!(first.tokens.values()[4 * 32..], second.tokens.values()[4 * 32..]);
}

#[test]
fn t5_gives_the_reference_tokens() {
    t5_is_golden(&case("t5"));
}

#[test]
fn t5_reads_the_table_under_its_other_name() {
    let folder = changed_copy("t5", |t| {
        let name = if t.name == "shared.weight" { "encoder.embed_tokens.weight".into() } else { t.name };
        Some(NamedTensor { name, ..t })
    });
    t5_is_golden(folder.path());
}

#[test]
fn t5_reads_shards() {
    let folder = changed_copy("t5", Some);
    let whole = folder.path().join("model.safetensors");
    let mut index = serde_json::Map::new();
    for (shard, first) in [("model-1.safetensors", true), ("model-2.safetensors", false)] {
        rewrite(&whole, &folder.path().join(shard), |t| {
            let wanted = (*t.name < *"encoder.block.1.layer.1") == first;
            wanted.then(|| {
                index.insert(t.name.to_string(), shard.into());
                t
            })
        });
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": index });
    std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    std::fs::remove_file(whole).unwrap();
    t5_is_golden(folder.path());
}

#[test]
fn weights_of_half_precision_are_the_same_numbers_read_from_half_the_bytes() {
    let cpu = Cpu::new(1).unwrap();
    let (short, long) =
        (changed_copy("t5", |t| Some(as_bf16(t))), changed_copy("t5", |t| Some(rounded_to_bf16(t))));
    let (short, long) = (T5::open(short.path()).unwrap(), T5::open(long.path()).unwrap());
    assert_eq!(2 * short.weight_bytes(), long.weight_bytes());
    let ids = [7, 31, 98, 4, 1, 0, 0, 0];
    let [short, long] = [short, long].map(|t5| t5.encode(&cpu, &cpu, 2, &ids).unwrap());
    assert_eq!(short.values(), long.values());
}

#[test]
fn a_prompt_is_encoded_as_if_it_were_alone_whatever_the_threads() {
    prompts_are_alone(&Cpu::new(1).unwrap(), &Cpu::new(3).unwrap());
    if let Some(gpu) = gpu("prompts of a batch") {
        prompts_are_alone(&gpu, &gpu);
    }
}

fn prompts_are_alone<D: Device>(one: &D, three: &D) {
    let (cpu, t5) = (Cpu::new(1).unwrap(), T5Encoder::open(&case("t5")).unwrap());
    let ids = [7, 31, 98, 4, 1, 0, 0, 0];
    let both = t5.encode(three, &cpu, 2, &ids).unwrap();
    let alone = t5.encode(one, &cpu, 1, &ids[4..]).unwrap();
    assert_eq!(both.values()[4 * 32..], *alone.values());
}
