//! A FLUX checkpoint in the original layout holds the same tensors as the diffusers folder it is made from.

use std::{path::Path, sync::Arc};

use prefgraph_nn::{
    files::{Dtype, NamedTensor, TensorFiles, write_safetensors},
    models::flux::{FluxConfig, FluxFiles, FluxLayout},
};

fn fixture() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/flux_uno/transformer")
}

/// Where the original layout puts what diffusers calls otherwise, written out by hand for this test: the original
/// tensor, and the diffusers tensors whose rows it holds.
fn original_layout() -> Vec<(String, Vec<String>)> {
    let mut all = Vec::new();
    let mut linear = |original: String, parts: &[String]| {
        for kind in ["weight", "bias"] {
            let parts = parts.iter().map(|p| format!("{p}.{kind}")).collect();
            all.push((format!("{original}.{kind}"), parts));
        }
    };
    for (original, diffusers) in [
        ("img_in", "x_embedder"),
        ("txt_in", "context_embedder"),
        ("time_in.in_layer", "time_text_embed.timestep_embedder.linear_1"),
        ("time_in.out_layer", "time_text_embed.timestep_embedder.linear_2"),
        ("vector_in.in_layer", "time_text_embed.text_embedder.linear_1"),
        ("vector_in.out_layer", "time_text_embed.text_embedder.linear_2"),
        ("final_layer.linear", "proj_out"),
        ("final_layer.adaLN_modulation.1", "norm_out.linear"),
    ] {
        linear(original.into(), &[diffusers.into()]);
    }
    for i in 0..2 {
        for (original, parts) in [
            ("img_mod.lin", &["norm1.linear"][..]),
            ("txt_mod.lin", &["norm1_context.linear"]),
            ("img_attn.qkv", &["attn.to_q", "attn.to_k", "attn.to_v"]),
            ("txt_attn.qkv", &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"]),
            ("img_attn.proj", &["attn.to_out.0"]),
            ("txt_attn.proj", &["attn.to_add_out"]),
            ("img_mlp.0", &["ff.net.0.proj"]),
            ("img_mlp.2", &["ff.net.2"]),
            ("txt_mlp.0", &["ff_context.net.0.proj"]),
            ("txt_mlp.2", &["ff_context.net.2"]),
        ] {
            let parts: Vec<_> = parts.iter().map(|p| format!("transformer_blocks.{i}.{p}")).collect();
            linear(format!("double_blocks.{i}.{original}"), &parts);
        }
        for (original, parts) in [
            ("linear1", &["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"][..]),
            ("linear2", &["proj_out"]),
            ("modulation.lin", &["norm.linear"]),
        ] {
            let parts: Vec<_> = parts.iter().map(|p| format!("single_transformer_blocks.{i}.{p}")).collect();
            linear(format!("single_blocks.{i}.{original}"), &parts);
        }
    }
    for i in 0..2 {
        for (original, diffusers) in [
            ("double_blocks.N.img_attn.norm.query_norm", "transformer_blocks.N.attn.norm_q"),
            ("double_blocks.N.img_attn.norm.key_norm", "transformer_blocks.N.attn.norm_k"),
            ("double_blocks.N.txt_attn.norm.query_norm", "transformer_blocks.N.attn.norm_added_q"),
            ("double_blocks.N.txt_attn.norm.key_norm", "transformer_blocks.N.attn.norm_added_k"),
            ("single_blocks.N.norm.query_norm", "single_transformer_blocks.N.attn.norm_q"),
            ("single_blocks.N.norm.key_norm", "single_transformer_blocks.N.attn.norm_k"),
        ] {
            let named = |pattern: &str| pattern.replace('N', &i.to_string());
            all.push((format!("{}.scale", named(original)), vec![format!("{}.weight", named(diffusers))]));
        }
    }
    all
}

/// The values of a tensor in another dtype, rounded towards zero.
fn bytes_of(values: &[f32], dtype: Dtype) -> Vec<u8> {
    let brain = |v: &f32| {
        let b = v.to_le_bytes();
        [b[2], b[3]]
    };
    match dtype {
        Dtype::BF16 => values.iter().flat_map(brain).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

/// The fixture as one file in the original layout, with the tensors that it holds.
fn write_original(path: &Path, prefix: &str, dtype: Dtype) {
    let files = fixture_tensors();
    let tensors: Vec<NamedTensor<'_>> = original_layout()
        .into_iter()
        .map(|(original, parts)| {
            let mut values: Vec<f32> = parts.iter().flat_map(|p| files.read(p).unwrap()).collect();
            if original.starts_with("final_layer.adaLN") {
                // Scale above shift in diffusers, shift above scale here.
                let half = values.len() / 2;
                values.rotate_left(half);
            }
            let mut shape = files.info(&parts[0]).unwrap().shape.clone();
            shape[0] = parts.iter().map(|p| files.info(p).unwrap().shape[0]).sum();
            let bytes = bytes_of(&values, dtype).into();
            NamedTensor { name: format!("{prefix}{original}"), dtype, shape, bytes }
        })
        .collect();
    write_safetensors(path, &tensors, &[]).unwrap();
}

fn fixture_tensors() -> TensorFiles {
    TensorFiles::open(&fixture().join("diffusion_pytorch_model.safetensors")).unwrap()
}

#[test]
fn every_view_of_the_original_layout_reads_what_diffusers_has_by_any_prefix_and_dtype() {
    let files = fixture_tensors();
    let (config, folder) = FluxFiles::open(&fixture()).unwrap();
    assert_eq!(folder.layout(), FluxLayout::Diffusers);
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixture().join("config.json"), dir.path().join("config.json")).unwrap();
    let path = dir.path().join("flux1-small.safetensors");
    let variants =
        [("", Dtype::F32), ("model.diffusion_model.", Dtype::F32), ("diffusion_model.", Dtype::BF16)];
    for (prefix, dtype) in variants {
        write_original(&path, prefix, dtype);
        let (measured, single) = FluxFiles::open(&path).unwrap();
        assert_eq!((&measured, single.layout()), (&config, FluxLayout::Original));
        assert_eq!(single.names().count(), files.len());
        for name in files.names() {
            let view = single.view(name).unwrap();
            assert_eq!((view.shape(), view.dtype()), (&files.info(name).unwrap().shape[..], dtype), "{name}");
            let mut expected = files.read(name).unwrap();
            if dtype == Dtype::BF16 {
                expected.iter_mut().for_each(|v| *v = f32::from_bits(v.to_bits() & 0xffff_0000));
            }
            assert_eq!(view.read(), expected, "{prefix}{name}");
            assert_eq!(folder.view(name).unwrap().read(), files.read(name).unwrap(), "{name}");
        }
    }
}

#[test]
fn half_precision_is_read_through_views_as_it_stands_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixture().join("config.json"), dir.path().join("config.json")).unwrap();
    let path = dir.path().join("flux.safetensors");
    // Zeros and ones have the same value in every format; which they are depends on the element.
    let files = fixture_tensors();
    let numbers = |count: usize| (0..count).map(|i| f32::from(u8::from(i % 3 == 0))).collect::<Vec<_>>();
    let tensors: Vec<NamedTensor<'_>> = files
        .names()
        .map(|name| {
            let shape = files.info(name).unwrap().shape.clone();
            let one = |v: &f32| if *v == 1.0 { 0x3c00u16.to_le_bytes() } else { [0, 0] };
            let bytes: Vec<u8> = numbers(shape.iter().product()).iter().flat_map(one).collect();
            NamedTensor { name: name.into(), dtype: Dtype::F16, shape, bytes: bytes.into() }
        })
        .collect();
    write_safetensors(&path, &tensors, &[]).unwrap();
    let (_, flux) = FluxFiles::open(&path).unwrap();
    assert_eq!(flux.layout(), FluxLayout::Diffusers);
    for name in ["transformer_blocks.1.attn.to_k.weight", "norm_out.linear.bias"] {
        let view = flux.view(name).unwrap();
        assert_eq!(view.dtype(), Dtype::F16);
        assert_eq!(view.read(), numbers(view.len()));
    }
}

#[test]
fn a_folder_above_its_transformer_and_an_index_of_shards_are_opened_too() {
    let above = fixture().join("..");
    let (config, files) = FluxFiles::open(&above).unwrap();
    assert_eq!(config, FluxConfig::read(&fixture().join("config.json")).unwrap());
    let error = files.view("transformer_blocks.0.attn.to_qq.weight").unwrap_err().to_string();
    assert!(error.contains("nearest: `transformer_blocks.0.attn.to_q.weight`"), "{error}");
    assert!(Arc::ptr_eq(files.files(), files.view("proj_out.bias").unwrap().files()));
}

#[test]
fn faults_are_told_in_the_names_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixture().join("config.json"), dir.path().join("config.json")).unwrap();
    let (whole, path) = (dir.path().join("whole.safetensors"), dir.path().join("flux.safetensors"));
    write_original(&whole, "model.diffusion_model.", Dtype::F32);
    let files = TensorFiles::open(&whole).unwrap();
    let tensors = |change: &dyn Fn(&str, &mut NamedTensor<'_>) -> bool| {
        let mut all = Vec::new();
        for name in files.names() {
            let info = files.info(name).unwrap();
            let bytes = files.bytes(name).unwrap().into();
            let mut tensor =
                NamedTensor { name: name.into(), dtype: info.dtype, shape: info.shape.clone(), bytes };
            if change(name, &mut tensor) {
                all.push(tensor);
            }
        }
        write_safetensors(&path, &all, &[]).unwrap();
        FluxFiles::open(&path).map(drop).map_err(|e| e.to_string())
    };
    assert_eq!(tensors(&|_, _| true), Ok(()));
    let renamed = |from: &'static str, to: &'static str| {
        move |name: &str, t: &mut NamedTensor<'_>| {
            t.name = name.replace(from, to);
            true
        }
    };
    let error =
        tensors(&renamed("single_blocks.1.linear1.bias", "single_blocks.1.linear3.bias")).unwrap_err();
    assert!(error.contains("missing: model.diffusion_model.single_blocks.1.linear1.bias"), "{error}");
    assert!(error.contains("surplus: model.diffusion_model.single_blocks.1.linear3.bias"), "{error}");
    // A whole pipeline in one file: what is beside the transformer is none of its business, by its own prefix only.
    let beside = |name: &'static str| {
        let mut all: Vec<NamedTensor<'_>> = Vec::new();
        for name in files.names() {
            let info = files.info(name).unwrap();
            let bytes = files.bytes(name).unwrap().into();
            all.push(NamedTensor { name: name.into(), dtype: info.dtype, shape: info.shape.clone(), bytes });
        }
        all.push(NamedTensor::f32("vae.decoder.conv_in.bias", vec![1], &[0.0]));
        all.push(NamedTensor::f32(name, vec![1], &[0.0]));
        write_safetensors(&path, &all, &[]).unwrap();
        FluxFiles::open(&path).map(drop).map_err(|e| e.to_string())
    };
    assert_eq!(beside("text_encoders.t5.weight"), Ok(()));
    let error = beside("model.diffusion_model.extra").unwrap_err();
    assert!(error.contains("surplus: model.diffusion_model.extra"), "{error}");
    let error = tensors(&|name, t| {
        if name.ends_with("double_blocks.0.txt_attn.qkv.bias") {
            *t = NamedTensor::f32(name, vec![95], &[0.0; 95]);
        }
        true
    })
    .unwrap_err();
    assert!(
        error.contains("double_blocks.0.txt_attn.qkv.bias (expected [96], the file has [95])"),
        "{error}"
    );
    let error = tensors(&|name, t| {
        if name.ends_with("img_in.bias") {
            t.dtype = Dtype::I32;
        }
        true
    })
    .unwrap_err();
    assert!(error.contains("img_in.bias (expected f32, f16 or bf16, the file has I32)"), "{error}");
}

#[test]
fn sizes_that_a_file_does_not_tell_are_asked_for_and_other_files_are_recognised() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flux.safetensors");
    write_original(&path, "", Dtype::F32);
    let error = FluxFiles::open(&path).unwrap_err().to_string();
    assert!(error.contains("heads of 16") && error.contains("Put the config.json"), "{error}");
    // The configuration of something else beside the file is not the model's.
    std::fs::write(dir.path().join("config.json"), r#"{"_class_name": "AutoencoderKL"}"#).unwrap();
    assert!(FluxFiles::open(&path).unwrap_err().to_string().contains("Put the config.json"));
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    let error = FluxFiles::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("flux.safetensors") && error.contains("name that file itself"), "{error}");

    for (name, kind) in [
        ("text_model.encoder.layers.0.mlp.fc1.weight", "a CLIP text encoder"),
        ("decoder.conv_in.weight", "an autoencoder"),
        ("lora_unet_double_blocks_0_img_mlp_0.lora_down.weight", "is an adapter"),
        ("something.weight", "expected tensors called `double_blocks.0..."),
    ] {
        let tensor = NamedTensor::f32(name, vec![1], &[0.0]);
        write_safetensors(&path, &[tensor], &[]).unwrap();
        let error = FluxFiles::open(&path).unwrap_err().to_string();
        assert!(error.contains(kind), "{error}");
    }
}

#[test]
fn a_file_with_heads_as_published_is_measured() {
    const D: usize = 256;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flux.safetensors");
    let mut tensors = Vec::new();
    let mut tensor = |name: String, shape: Vec<usize>| {
        let bytes = vec![0; shape.iter().product::<usize>() * 2].into();
        tensors.push(NamedTensor { name, dtype: Dtype::BF16, shape, bytes });
    };
    let mut linear = |name: &str, outputs: usize, inputs: usize| {
        tensor(format!("{name}.weight"), vec![outputs, inputs]);
        tensor(format!("{name}.bias"), vec![outputs]);
    };
    linear("img_in", D, 64);
    linear("txt_in", D, 40);
    for (name, inputs) in [("time_in", 256), ("vector_in", 24), ("guidance_in", 256)] {
        linear(&format!("{name}.in_layer"), D, inputs);
        linear(&format!("{name}.out_layer"), D, D);
    }
    linear("final_layer.linear", 64, D);
    linear("final_layer.adaLN_modulation.1", 2 * D, D);
    linear("single_blocks.0.linear1", 7 * D, D);
    linear("single_blocks.0.linear2", D, 5 * D);
    linear("single_blocks.0.modulation.lin", 3 * D, D);
    tensor("single_blocks.0.norm.query_norm.scale".into(), vec![128]);
    tensor("single_blocks.0.norm.key_norm.scale".into(), vec![128]);
    write_safetensors(&path, &tensors, &[]).unwrap();
    let (config, _) = FluxFiles::open(&path).unwrap();
    assert_eq!((config.num_layers, config.num_single_layers), (0, 1));
    assert_eq!((config.num_attention_heads, config.attention_head_dim), (2, 128));
    assert_eq!((config.joint_attention_dim, config.pooled_projection_dim), (40, 24));
    assert!(config.guidance_embeds);
    assert_eq!(config.axes_dims_rope, [16, 56, 56]);
}
