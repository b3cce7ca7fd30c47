//! The published encoders of FLUX.1 and of SDXL with IP-Adapter-Plus, and those of DINO, by their configurations.

use prefgraph_nn::{
    autoencoders::kl::KlConfig,
    text::{clip::ClipConfig, t5::T5Config},
    vision::{resampler::ResamplerSizes, vit::VitConfig},
};

use crate::files::own;

fn config(model: &str) -> std::path::PathBuf {
    own().join("encoders/published").join(model).join("config.json")
}

fn values(tensors: &[(String, Vec<usize>)]) -> usize {
    tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
}

#[test]
fn the_autoencoder_of_flux_has_its_published_tensors_and_parameters() {
    let read = KlConfig::read(&config("vae")).unwrap();
    let tensors = read.tensors();
    assert_eq!((tensors.len(), values(&tensors)), (244, 83_819_683));
    assert_eq!(KlConfig::flux().tensors(), tensors);
    assert_eq!((read.scaling_factor, read.shift_factor), (0.3611, Some(0.1159)));
}

#[test]
fn the_text_encoders_of_flux_have_their_published_parameters() {
    let clip = ClipConfig::read(&config("text_encoder")).unwrap().tensors();
    assert_eq!((clip.len(), values(&clip)), (196, 123_060_480));
    let t5 = T5Config::read(&config("text_encoder_2")).unwrap();
    // The table of tokens, under one of its two names, comes beside these.
    let all = values(&t5.tensors()) + t5.vocab_size * t5.d_model;
    assert_eq!((t5.tensors().len(), all), (218, 4_762_310_656));
}

#[test]
fn the_encoders_of_sdxl_have_their_published_parameters() {
    let bigg = ClipConfig::read(&config("sdxl_text_encoder_2")).unwrap();
    let projection = bigg.projection_dim * bigg.hidden_size;
    assert_eq!(values(&bigg.tensors()) + projection, 694_659_840);
    let vae = KlConfig::sdxl();
    assert_eq!((values(&vae.tensors()), vae.scaling_factor, vae.shift_factor), (83_653_863, 0.13025, None));
}

#[test]
fn the_encoders_of_ip_adapter_plus_have_their_published_tensors_and_parameters() {
    let vit = VitConfig::read(&config("image_encoder")).unwrap();
    assert_eq!(values(&vit.tensors()), 632_076_800);
    let [input, width] = [vit.width, 1280];
    let sizes =
        ResamplerSizes { input, queries: 16, width, inner: 20 * 64, mlp: 4 * width, depth: 4, output: 2048 };
    assert_eq!((sizes.tensors().len(), values(&sizes.tensors())), (51, 82_961_664));
}

#[test]
fn dino_and_dinov2_have_their_published_parameters() {
    let dino = VitConfig::read(&config("dino_vits16")).unwrap();
    assert_eq!(values(&dino.tensors()), 21_665_664);
    let dinov2 = VitConfig::read(&config("dinov2_base")).unwrap();
    // A token that stands for masked patches comes beside these.
    assert_eq!(values(&dinov2.tensors()) + dinov2.width, 86_580_480);
}
