//! The published encoders of FLUX.1 and of SDXL with IP-Adapter-Plus, and those of DINO, by their configurations.

use prefgraph_nn::{
    Backbone, Cpu,
    autoencoders::{
        Autoencoder,
        kl::{Kl, KlConfig},
    },
    models::{
        FluxOptions, FluxUno, FrozenUse, SdxlUNet, UNetOptions,
        unet::{ImagePrompt, ResamplerUse},
    },
    published::Published,
    text::{
        clip::{Clip, ClipConfig, ClipModel},
        t5::{T5, T5Config},
    },
    vision::{
        resampler::{Resampler, ResamplerSizes},
        vit::{Vit, VitConfig},
    },
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

/// Written without values, they take no room on the disk.
fn hollow(published: Published) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("published.safetensors");
    published.write_hollow(&path).unwrap();
    (folder, path)
}

#[test]
fn flux_and_uno_without_values_open_as_networks_of_the_published_sizes() {
    let (_flux, path) = hollow(Published::FluxDev);
    let (_uno, adapter) = hollow(Published::Uno);
    // 956 million values in bf16.
    let bytes = std::fs::metadata(&adapter).unwrap().len();
    assert!((1_912_000_000..1_913_000_000).contains(&bytes), "{bytes}");
    let options = FluxOptions { adapter: Some((adapter, FrozenUse::Branch)), ..FluxOptions::default() };
    let flux = FluxUno::open_with(Cpu::new(1).unwrap(), &path.join("transformer"), options).unwrap();
    let layout = flux.layout();
    assert_eq!((layout.parameters, layout.blocks, layout.guidance), (11_901_408_320, 57, true));
    assert_eq!(Kl::open(&path.join("vae")).unwrap().parameters(), 83_819_683);
    assert_eq!(Clip::open(&path.join("text_encoder"), ClipModel::L).unwrap().parameters(), 123_060_480);
    assert_eq!(T5::open(&path.join("text_encoder_2")).unwrap().parameters(), 4_762_310_656);
}

#[test]
fn sdxl_and_its_ip_adapter_without_values_open_as_networks_of_the_published_sizes() {
    let (_sdxl, path) = hollow(Published::Sdxl);
    let (_adapter, adapter) = hollow(Published::IpAdapterPlus);
    let image_prompt = ImagePrompt { path: adapter.clone(), scale: 1.0, resampler: ResamplerUse::Outside };
    let options = UNetOptions { image_prompt: Some(image_prompt), ..UNetOptions::default() };
    let unet = SdxlUNet::open_with(Cpu::new(1).unwrap(), &path.join("unet"), options).unwrap();
    assert_eq!(unet.layout().parameters, 2_567_463_684 + 340_787_200);
    assert_eq!(Resampler::open(&adapter).unwrap().parameters(), 82_961_664);
    assert_eq!(Kl::open(&path.join("vae")).unwrap().parameters(), 83_653_863);
    assert_eq!(Clip::open(&path.join("text_encoder"), ClipModel::L).unwrap().parameters(), 123_060_480);
    assert_eq!(Clip::open(&path.join("text_encoder_2"), ClipModel::BigG).unwrap().parameters(), 694_659_840);
    let (_vit, path) = hollow(Published::VitH);
    assert_eq!(Vit::open(&path).unwrap().parameters(), 632_076_800);
    let (_dino, path) = hollow(Published::DinoV2);
    assert_eq!(Vit::open(&path).unwrap().parameters(), 86_580_480 - 768);
}
