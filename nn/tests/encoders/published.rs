//! The published encoders of FLUX.1, by their configurations.

use prefgraph_nn::{
    autoencoders::kl::KlConfig,
    text::{clip::ClipConfig, t5::T5Config},
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
