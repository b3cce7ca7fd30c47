//! Autoencoders against their golden cases.

#![allow(clippy::disallowed_methods, reason = "expected values: their last bits do not matter")]

use std::path::Path;

use prefgraph_nn::{
    Cpu, Device, Tensor,
    autoencoders::{Autoencoder, Batch, Kl, KlAutoencoder, Posterior, Tiny, TinyAutoencoder},
    files::NamedTensor,
};

use crate::files::{as_bf16, assert_near, batch, case, changed_copy, golden, gpu, rounded_to_bf16};

fn scaled<D: Device>(kl: &KlAutoencoder<D>, z: &[f32]) -> Vec<f32> {
    let (shift, scale) = (kl.config().shift_factor.unwrap_or(0.0), kl.config().scaling_factor);
    z.iter().map(|z| (z - shift) * scale).collect()
}

fn kl_is_golden(case: &Path, weights: &Path) {
    let cpu = Cpu::new(2).unwrap();
    kl_is_golden_on(&cpu, &cpu, case, weights);
    if let Some(gpu) = gpu("an autoencoder") {
        kl_is_golden_on(&gpu, &cpu, case, weights);
    }
}

fn kl_is_golden_on<D: Device>(device: &D, cpu: &Cpu, case: &Path, weights: &Path) {
    let (io, kl) = (golden(case), KlAutoencoder::open(weights).unwrap());
    let pictures = batch(cpu, &io, "image");
    let (mean, log_variance) = (io.read("mean").unwrap(), io.read("logvar").unwrap());
    let moments = kl.moments(device, cpu, &pictures).unwrap();
    assert_near(moments.mean.values(), &mean, "mean");
    assert_near(moments.log_variance.values(), &log_variance, "logarithm of the variance");

    let latents = kl.encode(device, cpu, &pictures, Posterior::Mean).unwrap();
    assert_near(latents.values(), &scaled(&kl, &mean), "latents");
    let normals: Vec<f32> = (0..mean.len()).map(|i| (i % 7) as f32 - 3.0).collect();
    let sample = kl.encode(device, cpu, &pictures, Posterior::Sample(&normals)).unwrap();
    let deviated = mean.iter().zip(&log_variance).zip(&normals).map(|((m, v), n)| m + (0.5 * v).exp() * n);
    assert_near(sample.values(), &scaled(&kl, &deviated.collect::<Vec<_>>()), "a sample");

    let z = Tensor::new(cpu, latents.shape(), scaled(&kl, &mean)).unwrap();
    let decoded = kl.decode(device, cpu, &z).unwrap();
    assert_eq!(decoded.shape(), pictures.shape());
    assert_near(decoded.values(), &io.read("decoded").unwrap(), "decoded pictures");
}

#[test]
fn the_autoencoder_of_flux_gives_the_reference_moments_and_pictures() {
    let case = case("vae_flux");
    kl_is_golden(&case, &case);
}

#[test]
fn the_autoencoder_of_sdxl_gives_the_reference_moments_and_pictures() {
    let case = case("vae_sdxl");
    kl_is_golden(&case, &case.join("diffusion_pytorch_model.safetensors"));
}

/// The names of the original file, written out on their own: prefix by prefix, with the levels of the decoder counted
/// from the other end.
fn in_original_layout(tensor: NamedTensor<'static>) -> Option<NamedTensor<'static>> {
    let pairs = [
        ("encoder.down_blocks.", "encoder.down."),
        (".resnets.", ".block."),
        (".downsamplers.0.conv.", ".downsample.conv."),
        (".upsamplers.0.conv.", ".upsample.conv."),
        (".mid_block.block.0.", ".mid.block_1."),
        (".mid_block.block.1.", ".mid.block_2."),
        (".mid_block.attentions.0.group_norm.", ".mid.attn_1.norm."),
        (".mid_block.attentions.0.to_q.", ".mid.attn_1.q."),
        (".mid_block.attentions.0.to_k.", ".mid.attn_1.k."),
        (".mid_block.attentions.0.to_v.", ".mid.attn_1.v."),
        (".mid_block.attentions.0.to_out.0.", ".mid.attn_1.proj_out."),
        (".conv_shortcut.", ".nin_shortcut."),
        (".conv_norm_out.", ".norm_out."),
        ("decoder.up_blocks.0.", "decoder.up.3."),
        ("decoder.up_blocks.1.", "decoder.up.2."),
        ("decoder.up_blocks.2.", "decoder.up.1."),
        ("decoder.up_blocks.3.", "decoder.up.0."),
    ];
    let name = pairs.into_iter().fold(tensor.name.to_string(), |name, (from, to)| name.replace(from, to));
    let mut shape = tensor.shape.clone();
    if name.contains(".attn_1.") && name.ends_with("weight") && shape.len() == 2 {
        shape.extend([1, 1]);
    }
    Some(NamedTensor { name, shape, ..tensor })
}

#[test]
fn the_original_layout_of_names_is_the_same_autoencoder() {
    for name in ["vae_flux", "vae_sdxl"] {
        let folder = changed_copy(name, in_original_layout);
        let weights = folder.path().join("ae.safetensors");
        std::fs::rename(folder.path().join("diffusion_pytorch_model.safetensors"), &weights).unwrap();
        kl_is_golden(&case(name), &weights);
    }
}

/// As in a whole checkpoint in one file.
fn in_checkpoint(tensor: NamedTensor<'static>) -> Option<NamedTensor<'static>> {
    let tensor = in_original_layout(tensor)?;
    Some(NamedTensor { name: format!("first_stage_model.{}", tensor.name), ..tensor })
}

#[test]
fn the_autoencoder_is_found_inside_a_whole_checkpoint() {
    let folder = changed_copy("vae_sdxl", in_checkpoint);
    kl_is_golden(&case("vae_sdxl"), &folder.path().join("diffusion_pytorch_model.safetensors"));
}

#[test]
fn four_channels_without_a_configuration_are_those_of_sdxl_in_its_checkpoint_and_ambiguous_alone() {
    let opened = |change: fn(NamedTensor<'static>) -> Option<NamedTensor<'static>>| {
        let folder = changed_copy("vae_sdxl", change);
        std::fs::remove_file(folder.path().join("config.json")).unwrap();
        Kl::open(&folder.path().join("diffusion_pytorch_model.safetensors")).unwrap_err().to_string()
    };
    let error = opened(|tensor| match &*tensor.name {
        // The text encoder beside it tells whose checkpoint it is.
        "post_quant_conv.bias" => {
            let name = "conditioner.embedders.1.model.ln_final.bias".to_owned();
            Some(NamedTensor { name, ..tensor })
        }
        _ => in_checkpoint(tensor),
    });
    assert!(error.contains("first_stage_model.encoder.conv_in.weight (expected [128, 3, 3, 3]"), "{error}");
    for change in [in_checkpoint, in_original_layout] {
        let error = opened(change);
        assert!(error.contains("SDXL (scaling_factor 0.13025)") && error.contains("config.json"), "{error}");
    }
}

#[test]
fn weights_of_half_precision_are_computed_with_in_f32() {
    let (cpu, io) = (Cpu::new(2).unwrap(), golden(&case("vae_sdxl")));
    let (short, long) = (
        changed_copy("vae_sdxl", |t| Some(as_bf16(t))),
        changed_copy("vae_sdxl", |t| Some(rounded_to_bf16(t))),
    );
    let [short, long] = [short, long].map(|folder| {
        Kl::open(folder.path()).unwrap().decode(&cpu, &cpu, &batch(&cpu, &io, "mean")).unwrap()
    });
    assert_eq!(short.values(), long.values());
}

#[test]
fn an_original_file_without_a_configuration_is_compared_with_the_autoencoder_of_flux() {
    let folder = changed_copy("vae_flux", in_original_layout);
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    let error = Kl::open(&folder.path().join("diffusion_pytorch_model.safetensors")).unwrap_err().to_string();
    assert!(error.contains("encoder.conv_in.weight (expected [128, 3, 3, 3]"), "{error}");
}

#[test]
fn the_tiny_autoencoder_gives_the_reference_latents_and_pictures() {
    let cpu = Cpu::new(2).unwrap();
    tiny_is_golden_on(&cpu, &cpu);
    if let Some(gpu) = gpu("a small autoencoder") {
        tiny_is_golden_on(&gpu, &cpu);
    }
}

fn tiny_is_golden_on<D: Device>(device: &D, cpu: &Cpu) {
    let case = case("vae_tiny");
    let (io, tiny) = (golden(&case), TinyAutoencoder::open(&case).unwrap());
    let pictures = batch(cpu, &io, "image");
    let latents = tiny.encode(device, cpu, &pictures, Posterior::Mean).unwrap();
    assert_near(latents.values(), &io.read("latents").unwrap(), "latents");
    let decoded = tiny.decode(device, cpu, &batch(cpu, &io, "latents")).unwrap();
    assert_near(decoded.values(), &io.read("decoded").unwrap(), "decoded pictures");
    let error = tiny.encode(device, cpu, &pictures, Posterior::Sample(&[])).unwrap_err().to_string();
    assert!(error.contains("`tiny`") && error.contains("expected the mean"), "{error}");
}

#[test]
fn the_scale_and_the_shift_of_a_tiny_configuration_are_applied_and_taken_back() {
    let folder = changed_copy("vae_tiny", Some);
    let path = folder.path().join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text.replace("\"scaling_factor\": 1.0", "\"scaling_factor\": 0.5");
    std::fs::write(&path, text.replace("\"shift_factor\": 0.0", "\"shift_factor\": 0.25")).unwrap();
    let (cpu, io) = (Cpu::new(1).unwrap(), golden(&case("vae_tiny")));
    let [plain, scaled] = [case("vae_tiny"), folder.path().into()].map(|p| Tiny::open(&p).unwrap());
    let pictures = batch(&cpu, &io, "image");
    let encode = |tiny: &Tiny| tiny.encode(&cpu, &cpu, &pictures, Posterior::Mean).unwrap();
    let (z, moved) = (encode(&plain), encode(&scaled));
    let expected: Vec<f32> = z.values().iter().map(|z| (z - 0.25) * 0.5).collect();
    assert_near(moved.values(), &expected, "latents");
    let decode = |tiny: &Tiny, z: &Batch| tiny.decode(&cpu, &cpu, z).unwrap().into_values();
    assert_near(&decode(&scaled, &moved), &decode(&plain, &z), "pictures");
}

#[test]
fn a_picture_is_encoded_and_decoded_as_if_it_were_alone_whatever_the_threads() {
    let (one, three) = (Cpu::new(1).unwrap(), Cpu::new(3).unwrap());
    pictures_are_alone(&Kl::open(&case("vae_flux")).unwrap(), &one, &three);
    if let Some(gpu) = gpu("pictures of a batch") {
        pictures_are_alone(&KlAutoencoder::open(&case("vae_flux")).unwrap(), &gpu, &gpu);
    }
}

fn pictures_are_alone<D: Device>(kl: &KlAutoencoder<D>, one: &D, three: &D) {
    let cpu = Cpu::new(1).unwrap();
    let values: Vec<f32> = (0..2 * 3 * 16 * 24).map(|i| (i % 97) as f32 / 48.0 - 1.0).collect();
    let alone = Tensor::new(&cpu, (1, 3, 16, 24), &values[3 * 16 * 24..]).unwrap();
    let both = Tensor::new(&cpu, (2, 3, 16, 24), values).unwrap();
    let alone = kl.encode(one, &cpu, &alone, Posterior::Mean).unwrap();
    let both = kl.encode(three, &cpu, &both, Posterior::Mean).unwrap();
    assert_eq!(both.values()[alone.values().len()..], *alone.values());
    let pictures = [kl.decode(one, &cpu, &alone).unwrap(), kl.decode(three, &cpu, &both).unwrap()];
    assert_eq!(pictures[1].values()[pictures[0].values().len()..], *pictures[0].values());
}
