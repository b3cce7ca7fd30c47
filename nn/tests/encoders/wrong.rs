//! Errors about wrong files and wrong input name everything needed to fix them.

use std::{fs, path::Path};

use prefgraph_nn::{
    Cpu, Error, Tensor,
    autoencoders::{Autoencoder, Kl, Posterior, Tiny},
    files::{NamedTensor, write_safetensors},
    models::FluxUno,
    text::{Clip, ClipModel, T5},
    vision::{Resampler, Vit},
};

use crate::files::{case, changed_copy, ip_adapter_plus, rewrite};

type Open = fn(&Path) -> Result<(), Error>;

/// Every encoder: its case, how it is opened, its file of weights, one of its tensors.
const ALL: [(&str, Open, &str, &str); 6] = [
    (
        "clip_text_l",
        |p| Clip::open(p, ClipModel::L).map(drop),
        "model",
        "text_model.encoder.layers.1.mlp.fc2.bias",
    ),
    ("t5", |p| T5::open(p).map(drop), "model", "encoder.block.2.layer.0.SelfAttention.o.weight"),
    (
        "vae_flux",
        |p| Kl::open(p).map(drop),
        "diffusion_pytorch_model",
        "decoder.mid_block.resnets.1.norm2.weight",
    ),
    ("vae_tiny", |p| Tiny::open(p).map(drop), "diffusion_pytorch_model", "encoder.layers.5.conv.2.weight"),
    ("clip_text_bigg", |p| Clip::open(p, ClipModel::BigG).map(drop), "model", "text_projection.weight"),
    ("clip_vision", |p| Vit::open(p).map(drop), "model", "vision_model.encoder.layers.0.mlp.fc1.weight"),
];

#[test]
fn a_missing_tensor_and_one_of_another_shape_are_named() {
    for (name, open, _, tensor) in ALL {
        let without = changed_copy(name, |t| (t.name != tensor).then_some(t));
        let error = open(without.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("missing: {tensor}")), "{error}");

        let flat = changed_copy(name, |t| {
            let wrong = vec![t.shape.iter().product(), 1];
            Some(if t.name == tensor { NamedTensor { shape: wrong, ..t } } else { t })
        });
        let error = open(flat.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("{tensor} (expected [")), "{error}");
    }
}

#[test]
fn a_missing_or_cut_file_is_named() {
    for (name, open, stem, _) in ALL {
        let folder = changed_copy(name, Some);
        let weights = folder.path().join(format!("{stem}.safetensors"));
        let bytes = fs::read(&weights).unwrap();
        fs::write(&weights, &bytes[..bytes.len() - 10]).unwrap();
        let error = open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(stem) && error.contains("cut off"), "{error}");

        fs::remove_file(&weights).unwrap();
        let error = open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("expected {stem}.safetensors")), "{error}");

        fs::remove_file(folder.path().join("config.json")).unwrap();
        assert!(open(folder.path()).unwrap_err().to_string().contains("config.json"));
        assert!(open(&folder.path().join("nowhere")).unwrap_err().to_string().contains("nowhere"));
    }
}

#[test]
fn folders_of_other_models_and_paths_that_lead_nowhere_are_called_what_they_are() {
    let flux: (Open, &str) =
        (|p| FluxUno::open(Cpu::new(1)?, p).map(drop), "the transformer of FLUX: its folder");
    let expected = [
        "the CLIP text encoder: its folder",
        "the T5 encoder: its folder",
        "an autoencoder: its folder",
        "the text encoder of OpenCLIP ViT-bigG: its folder",
        "the vision encoder: its folder",
    ];
    let all = ALL.iter().zip([0, 1, 2, 2, 3, 4]).map(|((_, open, ..), i)| (*open, expected[i]));
    for (open, expected) in all.chain([flux]) {
        let folder = tempfile::tempdir().unwrap();
        let error = open(&folder.path().join("gone/model")).unwrap_err().to_string();
        assert!(error.contains("has no `gone`") && error.contains(expected), "{error}");
        let error = open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("has no config.json") && error.contains(expected), "{error}");
        let pipeline = r#"{"_class_name": "StableDiffusionXLPipeline"}"#;
        fs::write(folder.path().join("model_index.json"), pipeline).unwrap();
        let error = open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("the folder of a pipeline, StableDiffusionXLPipeline"), "{error}");
        fs::write(folder.path().join("config.json"), r#"{"_class_name": "UNet2DConditionModel"}"#).unwrap();
        let weights = folder.path().join("diffusion_pytorch_model.safetensors");
        write_safetensors(&weights, &[NamedTensor::f32("conv_in.bias", vec![1], &[0.0])], &[]).unwrap();
        let error = open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("UNet2DConditionModel"), "{error}");
    }
}

#[test]
fn the_configuration_of_another_model_is_refused_with_what_was_expected() {
    let refused = |name: &str, open: Open, from: &str, to: &str, message: &str| {
        let folder = changed_copy(name, Some);
        let path = folder.path().join("config.json");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from}");
        fs::write(&path, text.replace(from, to)).unwrap();
        let error = open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("config.json") && error.contains(message), "{error}");
    };
    let [(clip, open_clip, ..), (t5, open_t5, ..), (kl, open_kl, ..), (tiny, open_tiny, ..), bigg, vit] = ALL;
    refused(clip, open_clip, "clip_text_model", "bert", "model_type is bert: expected clip_text_model");
    refused(clip, open_clip, "quick_gelu", "gelu", "expected quick_gelu");
    refused(t5, open_t5, "\"t5\"", "\"umt5\"", "model_type is umt5: expected t5");
    refused(t5, open_t5, "\"gelu_new\"", "\"relu\"", "expected a gated one with gelu_new");
    refused(t5, open_t5, "\"d_ff\"", "\"dff\"", "missing field `d_ff`");
    refused(kl, open_kl, "AutoencoderKL", "VQModel", "expected AutoencoderKL");
    refused(kl, open_kl, "\"silu\"", "\"relu\"", "expected silu");
    refused(tiny, open_tiny, "AutoencoderTiny", "AutoencoderKL", "expected AutoencoderTiny");
    refused(tiny, open_tiny, "\"relu\"", "\"gelu\"", "expected relu");
    refused(bigg.0, bigg.1, "\"gelu\"", "\"quick_gelu\"", "as OpenCLIP ViT-bigG has it");
    refused(bigg.0, bigg.1, "\"gelu\"", "\"relu\"", "expected quick_gelu or gelu");
    refused(vit.0, vit.1, "clip_vision_model", "siglip", "model_type is siglip: expected that of a vision");
    refused(vit.0, vit.1, "\"num_channels\": 3", "\"num_channels\": 1", "expected 3");
}

#[test]
fn ids_that_an_encoder_cannot_take_are_refused() {
    let cpu = Cpu::new(1).unwrap();
    let clip = Clip::open(&case("clip_text_l"), ClipModel::L).unwrap();
    let error = |ids: &[u32]| clip.encode(&cpu, &cpu, 1, ids).unwrap_err().to_string();
    assert!(error(&[97, 99, 98]).contains("token id 99") && error(&[97, 99, 98]).contains("below 99"));
    assert!(error(&[97, 5, 6]).contains("without the token 98"));
    assert!(error(&[98; 13]).contains("at most 12"));
    assert!(error(&[]).contains("at least one"));
    let t5 = T5::open(&case("t5")).unwrap();
    let error = t5.encode(&cpu, &cpu, 1, &[5, 1_000_000]).unwrap_err().to_string();
    assert!(error.contains("`shared.weight`") && error.contains("below 99"), "{error}");
    assert!(t5.encode(&cpu, &cpu, 2, &[1, 1, 1]).unwrap_err().to_string().contains("equally many"));
}

#[test]
fn sizes_and_numbers_that_an_autoencoder_cannot_take_are_refused() {
    let (cpu, kl) = (Cpu::new(1).unwrap(), Kl::open(&case("vae_flux")).unwrap());
    let zeros = |shape| Tensor::zeros(&cpu, shape);
    let error = kl.encode(&cpu, &cpu, &zeros((1, 3, 16, 12)), Posterior::Mean).unwrap_err().to_string();
    assert!(error.contains("a multiple of 8") && error.contains("[1, 3, 16, 12]"), "{error}");
    let error = kl.decode(&cpu, &cpu, &zeros((1, 4, 2, 2))).unwrap_err().to_string();
    assert!(error.contains("[B, 16, H, W]") && error.contains("[1, 4, 2, 2]"), "{error}");
    let error =
        kl.encode(&cpu, &cpu, &zeros((1, 3, 8, 8)), Posterior::Sample(&[0.0; 3])).unwrap_err().to_string();
    assert!(error.contains("expected 16, got 3"), "{error}");
    let mut nan = zeros((1, 16, 1, 1));
    nan.values_mut()[3] = f32::NAN;
    let error = kl.decode(&cpu, &cpu, &nan).unwrap_err().to_string();
    assert!(error.contains("not finite"), "{error}");
}

#[test]
fn damaged_weights_are_named_when_they_are_read() {
    let folder = changed_copy("vae_flux", |mut t| {
        if t.name == "encoder.conv_in.weight" {
            t.bytes.to_mut()[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        }
        Some(t)
    });
    let (cpu, kl) = (Cpu::new(1).unwrap(), Kl::open(folder.path()).unwrap());
    let error =
        kl.encode(&cpu, &cpu, &Tensor::zeros(&cpu, (1, 3, 8, 8)), Posterior::Mean).unwrap_err().to_string();
    assert!(error.contains("`encoder.conv_in.weight` holds NaN at element 0"), "{error}");
}

#[test]
fn an_encoder_of_which_a_configuration_names_only_a_part_is_refused_with_the_rest() {
    for (name, open) in [
        ("clip_text_l", ALL[0].1),
        ("clip_text_bigg", ALL[4].1),
        ("clip_vision", ALL[5].1),
        ("dinov2", ALL[5].1),
    ] {
        let folder = changed_copy(name, Some);
        let path = folder.path().join("config.json");
        let mut config: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        config["num_hidden_layers"] = (config["num_hidden_layers"].as_u64().unwrap() - 1).into();
        fs::write(&path, config.to_string()).unwrap();
        let error = open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("surplus: "), "{name}: {error}");
    }
}

#[test]
fn a_resampler_with_tensors_missing_or_surplus_and_files_of_other_adapters_are_called_what_they_are() {
    type Change = fn(NamedTensor<'static>) -> Option<NamedTensor<'static>>;
    fn named(t: NamedTensor<'static>, name: &str) -> Option<NamedTensor<'static>> {
        Some(NamedTensor { name: name.to_owned(), ..t })
    }
    let of_other_kind: [(Change, &str); 6] = [
        (
            |t| (!t.name.ends_with("layers.1.1.3.weight")).then_some(t),
            "missing: image_proj.layers.1.1.3.weight",
        ),
        (
            |t| if t.name.ends_with("1.1.3.weight") { named(t, "image_proj.more") } else { Some(t) },
            "surplus: image_proj.more",
        ),
        (
            |t| if t.name.ends_with("proj_in.bias") { named(t, "image_proj.proj.weight") } else { Some(t) },
            "is a plain IP-Adapter, which has no resampler: expected an IP-Adapter-Plus",
        ),
        (
            |t| {
                let face = "image_proj.perceiver_resampler.proj_in.bias";
                if t.name.ends_with("proj_in.bias") { named(t, face) } else { Some(t) }
            },
            "is an IP-Adapter-FaceID-Plus",
        ),
        (
            |t| {
                let name = t.name.replace("image_proj.", "text_model.");
                Some(NamedTensor { name, ..t })
            },
            "is not an IP-Adapter-Plus in one file: expected `image_proj.proj_in.weight`",
        ),
        (
            |t| {
                let flat = vec![t.shape.iter().product()];
                Some(if t.name.ends_with("latents") { NamedTensor { shape: flat, ..t } } else { t })
            },
            "expected [1, queries, width]",
        ),
    ];
    for path in [ip_adapter_plus(), ip_adapter_plus().join("gone.safetensors")] {
        let error = Resampler::open(&path).unwrap_err().to_string();
        assert!(error.contains("expected the file of an IP-Adapter-Plus"), "{error}");
    }
    let file = ip_adapter_plus().join("ip-adapter-plus_sdxl.safetensors");
    for (change, message) in of_other_kind {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapter.safetensors");
        rewrite(&file, &path, change);
        let error = Resampler::open(&path).unwrap_err().to_string();
        assert!(error.contains("adapter.safetensors") && error.contains(message), "{message}: {error}");
    }
}

#[test]
fn image_tokens_of_another_encoder_are_refused_with_both_widths() {
    let resampler = Resampler::open(&ip_adapter_plus().join("ip-adapter-plus_sdxl.safetensors")).unwrap();
    let (cpu, taken) = (Cpu::new(1).unwrap(), resampler.sizes().input);
    let tokens = Tensor::zeros(&cpu, (1, 3, taken + 1));
    let error = resampler.encode(&cpu, &cpu, &tokens).unwrap_err().to_string();
    assert!(error.contains("another image encoder"), "{error}");
    assert!(
        error.contains(&format!("{taken} wide")) && error.contains(&format!("{} wide", taken + 1)),
        "{error}"
    );
}
