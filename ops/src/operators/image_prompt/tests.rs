//! An image encoder of random weights with a resampler whose input was made to fit.

use std::path::{Path, PathBuf};

use prefgraph_nn::{
    self as nn,
    files::{NamedTensor, TensorFiles, write_safetensors},
    vision::{Preprocess, Resampler, Vit},
};

use super::*;
use crate::{
    operators::{
        backbone::{Backbone, BackboneSettings},
        testing::{Bench, case},
    },
    port::Port,
    ports::ListShape,
};

fn adapter() -> PathBuf {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/encoders/ip_adapter_plus");
    Path::new(own).join("ip-adapter-plus_sdxl.safetensors")
}

/// The adapter with a first linear that takes tokens of this width.
fn adapter_for(width: usize) -> (tempfile::TempDir, DataPath) {
    let (dir, files) = (tempfile::tempdir().unwrap(), TensorFiles::open(&adapter()).unwrap());
    let tensors: Vec<NamedTensor<'_>> = files
        .names()
        .map(|name| {
            let (mut shape, mut values) =
                (files.info(name).unwrap().shape.clone(), files.read(name).unwrap());
            if name == "image_proj.proj_in.weight" {
                values = (0..shape[0] * width).map(|i| values[i % values.len()]).collect();
                shape[1] = width;
            }
            NamedTensor::f32(name.to_owned(), shape, &values)
        })
        .collect();
    let path = dir.path().join("ip-adapter-plus.safetensors");
    write_safetensors(&path, &tensors, &[]).unwrap();
    (dir, DataPath(path))
}

struct Files {
    _dir: tempfile::TempDir,
    vit: Vit,
    resampler: Resampler,
    settings: ImagePromptSettings,
}

fn files() -> Files {
    let image_encoder = DataPath(case("encoders/clip_vision"));
    let vit = Vit::open(image_encoder.as_path()).unwrap();
    let (_dir, ip_adapter) = adapter_for(vit.config().width);
    let resampler = Resampler::open(ip_adapter.as_path()).unwrap();
    let settings = ImagePromptSettings { image_encoder, ip_adapter, ..Default::default() };
    Files { _dir, vit, resampler, settings }
}

fn pictures(height: usize, width: usize, seed: usize) -> Images {
    let rgb: Vec<u8> = (0..2 * height * width * 3).map(|i| (i * i * 31 + i * seed) as u8).collect();
    Images { batch: 2, height, width, rgb: rgb.into() }
}

fn run(settings: ImagePromptSettings, references: Vec<Images>) -> (Vec<usize>, Vec<f32>) {
    let (bench, op) = (Bench::new(), ImagePrompts::new(settings).unwrap());
    let shapes = ListShape(references.iter().map(Port::shape).collect());
    let planned = op.shapes((shapes, None), 0).unwrap().0;
    let ((tokens,), ()) = op.forward(&bench.ctx(), (List(references), None)).unwrap();
    assert_eq!(*dfdx::shapes::HasShape::shape(&*tokens), planned);
    (vec![planned.0, planned.1, planned.2], tokens.as_vec())
}

/// The tokens of planes `[B, 3, S, S]`, by the encoders themselves.
fn expected(files: &Files, planes: Vec<f32>) -> Vec<f32> {
    let (cpu, side) = (nn::Cpu::new(1).unwrap(), files.vit.config().picture);
    let planes = nn::Tensor::new(&cpu, (planes.len() / (3 * side * side), 3, side, side), planes).unwrap();
    let seen = files.vit.penultimate(&cpu, &cpu, &planes).unwrap();
    files.resampler.encode(&cpu, &cpu, &seen).unwrap().into_values()
}

#[test]
fn references_become_tokens_that_stand_one_after_the_other_or_are_averaged() {
    let files = files();
    let references = vec![pictures(40, 30, 7), pictures(33, 64, 5)];
    let preprocess = Preprocess::clip(files.vit.config().picture);
    let each: Vec<Vec<f32>> = references
        .iter()
        .map(|images| {
            let size = (images.height, images.width);
            expected(&files, (0..2).flat_map(|b| preprocess.planes(images.picture(b), size)).collect())
        })
        .collect();
    let one = each[0].len() / 2;
    assert_ne!(each[0][..one], each[0][one..]);

    let (shape, found) = run(files.settings.clone(), references.clone());
    let sizes = files.resampler.sizes();
    assert_eq!(shape, [2, 2 * sizes.queries, sizes.output]);
    let samples = [&each[0][..one], &each[1][..one], &each[0][one..], &each[1][one..]];
    assert_eq!(found, samples.concat());

    let settings = ImagePromptSettings { together: Together::Averaged, ..files.settings.clone() };
    let (shape, found) = run(settings, references);
    assert_eq!(shape, [2, sizes.queries, sizes.output]);
    let means = each[0].iter().zip(&each[1]).map(|(a, b)| (a + b) / 2.0);
    assert!(found.iter().zip(means).all(|(a, b)| (a - b).abs() < 1e-6));
}

#[test]
fn the_negative_is_what_the_encoders_make_of_zeros_for_every_reference() {
    let files = files();
    let side = files.vit.config().picture;
    let zeros = expected(&files, vec![0.0; 3 * side * side]);
    let settings = ImagePromptSettings { negative: true, ..files.settings.clone() };
    let (_, found) = run(settings, vec![pictures(40, 30, 7), pictures(40, 30, 9)]);
    assert_eq!(found, zeros.repeat(4));
    assert!(zeros.iter().any(|v| *v != 0.0));
}

#[test]
fn an_adapter_for_another_encoder_or_another_backbone_is_refused_with_both_widths() {
    let files = files();
    let refused = |settings: ImagePromptSettings| ImagePrompts::new(settings).err().unwrap().to_string();
    let other = ImagePromptSettings { ip_adapter: DataPath(adapter()), ..files.settings.clone() };
    let taken = Resampler::open(&adapter()).unwrap().sizes().input;
    let error = refused(other);
    assert!(error.starts_with("ip_adapter: "), "{error}");
    assert!(error.contains(&format!("takes image tokens {taken} wide")), "{error}");
    assert!(error.contains(&format!("are {} wide", files.vit.config().width)), "{error}");
    let dino = DataPath(case("encoders/dinov2"));
    let error = refused(ImagePromptSettings { image_encoder: dino, ..files.settings.clone() });
    assert!(error.contains("image_encoder: it is not CLIP's"), "{error}");
    let error = refused(ImagePromptSettings { ip_adapter: DataPath::default(), ..files.settings.clone() });
    assert!(error.contains("ip_adapter: the file"), "{error}");

    let bench = Bench::new();
    let backbone = BackboneSettings { weights: DataPath(case("flux_uno")), ..Default::default() };
    let backbone = Backbone::new(backbone).unwrap().forward(&bench.ctx(), ()).unwrap().0.0;
    let op = ImagePrompts::new(files.settings.clone()).unwrap();
    let shape = Port::shape(&backbone);
    let list = ListShape(vec![ImageShape { batch: 1, height: 8, width: 8 }]);
    let error = op.shapes((list, Some(shape)), 0).unwrap_err().to_string();
    let [width, taken] = [files.resampler.sizes().output, backbone.0.layout().text_width];
    assert!(error.contains(&format!("{width} wide")) && error.contains(&format!("takes {taken}")), "{error}");
}

#[test]
fn samples_without_references_are_refused_before_the_first_step() {
    let op = ImagePrompts::new(files().settings).unwrap();
    let error = op.shapes((ListShape(Vec::new()), None), 0).unwrap_err().to_string();
    assert!(error.contains("reference_counts"), "{error}");
}

#[test]
fn what_is_kept_of_the_tokens_depends_on_both_files_and_on_the_device() {
    let identity = ImagePrompts::new(files().settings).unwrap().cacheable().unwrap();
    let names: Vec<&str> = identity.files().iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["image_encoder", "ip_adapter"]);
    assert!(identity.is_on_device());
}
