//! Vision encoders and the resampler against their golden cases; squares against those of Pillow.

use std::path::Path;

use prefgraph_nn::{
    Cpu, Device, Tensor,
    files::TensorFiles,
    text::{ClipEncoder, ClipModel},
    vision::{ImageResampler, Preprocess, Vit, VitEncoder, vit::PictureTokens},
};

use crate::files::{assert_near, batch, case, case_elsewhere, golden, gpu, ids, ip_adapter_plus, own};

/// What a case says of its pictures, by the name of the tensor.
fn vit_is_golden<D: Device>(device: &D, cpu: &Cpu, name: &str) {
    let (io, vit) = (golden(&case(name)), VitEncoder::<D>::open(&case(name)).unwrap());
    let pictures = batch(cpu, &io, "pixel_values");
    let mut compared = 0;
    let mut compare = |what: &str, found: &dyn Fn() -> Vec<f32>| {
        if io.info(what).is_some() {
            assert_near(&found(), &io.read(what).unwrap(), &format!("{what} of {name}"));
            compared += 1;
        }
    };
    let values = |tokens: PictureTokens| tokens.into_values();
    compare("penultimate", &|| values(vit.penultimate(device, cpu, &pictures).unwrap()));
    compare("last", &|| values(vit.tokens(device, cpu, &pictures).unwrap()));
    compare("image_embeds", &|| vit.embed(device, cpu, &pictures).unwrap().into_values());
    assert!(compared > 0, "{name} states nothing");
}

fn golden_on_both(name: &str) {
    let cpu = Cpu::new(2).unwrap();
    vit_is_golden(&cpu, &cpu, name);
    if let Some(gpu) = gpu("a vision encoder") {
        vit_is_golden(&gpu, &cpu, name);
    }
}

#[test]
fn the_image_encoder_of_clip_gives_the_reference_tokens_and_embeddings() {
    golden_on_both("clip_vision");
}

/// Rows of this width, each divided by its length.
fn unit(rows: &[f32], width: usize) -> Vec<f32> {
    let of_row = |row: &[f32]| {
        let length = row.iter().map(|v| v * v).sum::<f32>().sqrt();
        row.iter().map(|v| v / length).collect::<Vec<_>>()
    };
    rows.chunks_exact(width).flat_map(of_row).collect()
}

fn pair_is_golden_on<D: Device>(device: &D, cpu: &Cpu, folder: &Path) {
    let io = golden(folder);
    let (prompts, ids) = ids(&io, "input_ids");
    let text = ClipEncoder::<D>::open(folder, ClipModel::Pair).unwrap();
    let found = text.encode(device, cpu, prompts, &ids).unwrap().pooled;
    assert_near(&unit(found.values(), found.shape().1), &io.read("text_embeds").unwrap(), "texts");
    let found =
        VitEncoder::<D>::open(folder).unwrap().embed(device, cpu, &batch(cpu, &io, "pixel_values")).unwrap();
    assert_near(&unit(found.values(), found.shape().1), &io.read("image_embeds").unwrap(), "pictures");
}

#[test]
fn both_halves_of_a_clip_model_give_the_reference_embeddings() {
    let Some(folder) = case_elsewhere("clip") else { return };
    let cpu = Cpu::new(2).unwrap();
    pair_is_golden_on(&cpu, &cpu, &folder);
    if let Some(gpu) = gpu("a CLIP model") {
        pair_is_golden_on(&gpu, &cpu, &folder);
    }
}

#[test]
fn dino_gives_the_reference_tokens() {
    golden_on_both("dino_vit");
}

#[test]
fn dinov2_gives_the_reference_tokens() {
    golden_on_both("dinov2");
}

#[test]
fn a_picture_is_encoded_as_if_it_were_alone_whatever_the_threads() {
    let (one, three) = (Cpu::new(1).unwrap(), Cpu::new(3).unwrap());
    let (io, vit) = (golden(&case("clip_vision")), Vit::open(&case("clip_vision")).unwrap());
    let both = batch(&one, &io, "pixel_values");
    let (pictures, channels, height, width) = both.shape();
    let last = &both.values()[(pictures - 1) * channels * height * width..];
    let last = Tensor::new(&one, (1, channels, height, width), last).unwrap();
    let alone = vit.embed(&one, &one, &last).unwrap();
    let all = vit.embed(&three, &one, &both).unwrap();
    assert_eq!(all.values()[(pictures - 1) * alone.shape().1..], *alone.values());
}

#[test]
fn pictures_of_other_sizes_get_interpolated_positions_from_dino_and_are_refused_by_clip() {
    let cpu = Cpu::new(1).unwrap();
    let clip = Vit::open(&case("clip_vision")).unwrap();
    let side = clip.config().picture + clip.config().patch;
    let error = clip.tokens(&cpu, &cpu, &Tensor::zeros(&cpu, (1, 3, side, side))).unwrap_err().to_string();
    assert!(error.contains(&format!("[B, 3, {0}, {0}]", clip.config().picture)), "{error}");

    let dino = Vit::open(&case("dino_vit")).unwrap();
    let (patch, width) = (dino.config().patch, dino.config().width);
    let tokens = dino.tokens(&cpu, &cpu, &Tensor::zeros(&cpu, (1, 3, 3 * patch, 5 * patch))).unwrap();
    assert_eq!(tokens.shape(), (1, 1 + 3 * 5, width));
    let error =
        dino.tokens(&cpu, &cpu, &Tensor::zeros(&cpu, (1, 3, patch + 1, patch))).unwrap_err().to_string();
    assert!(error.contains(&format!("a multiple of {patch}")), "{error}");
    // Every patch of an empty picture is the same but for its position.
    let (first, second) = tokens.values()[width..3 * width].split_at(width);
    assert_ne!(first, second);
    let error = dino.embed(&cpu, &cpu, &Tensor::zeros(&cpu, (1, 3, patch, patch))).unwrap_err().to_string();
    assert!(error.contains("no projection"), "{error}");
}

fn resampler_is_golden_on<D: Device>(device: &D, cpu: &Cpu) {
    let folder = ip_adapter_plus();
    let io = TensorFiles::open(&folder.join("forward.safetensors")).unwrap();
    let resampler = ImageResampler::<D>::open(&folder.join("ip-adapter-plus_sdxl.safetensors")).unwrap();
    let [samples, references, tokens, width] = io.info("image_embeds").unwrap().shape[..] else {
        panic!("four axes of image_embeds")
    };
    let embeds = io.read("image_embeds").unwrap();
    let embeds = Tensor::new(cpu, (samples * references, tokens, width), embeds).unwrap();
    let found = resampler.encode(device, cpu, &embeds).unwrap();
    assert_near(found.values(), &io.read("ip_tokens").unwrap(), "image prompts");
}

#[test]
fn the_resampler_of_ip_adapter_plus_gives_the_reference_prompts() {
    let cpu = Cpu::new(2).unwrap();
    resampler_is_golden_on(&cpu, &cpu);
    if let Some(gpu) = gpu("a resampler") {
        resampler_is_golden_on(&gpu, &cpu);
    }
}

#[test]
fn squares_are_those_of_pillow_to_the_last_grey_level() {
    let files = TensorFiles::open(&own().join("encoders/squares.safetensors")).unwrap();
    let pictures: Vec<&str> = files.names().filter_map(|name| name.strip_prefix("picture.")).collect();
    assert!(!pictures.is_empty());
    for number in pictures {
        let (picture, square) = (format!("picture.{number}"), format!("square.{number}"));
        let [height, width, 3] = files.info(&picture).unwrap().shape[..] else { panic!("axes of {picture}") };
        let side = files.info(&square).unwrap().shape[0];
        let found = Preprocess::clip(side).square(files.bytes(&picture).unwrap(), (height, width));
        assert!(found == files.bytes(&square).unwrap(), "a picture of {height} x {width}");
    }
}

#[test]
fn squares_out_of_larger_pictures_are_those_of_pillow_and_torchvision_to_the_last_grey_level() {
    let files = TensorFiles::open(&own().join("encoders/crops.safetensors")).unwrap();
    let mut compared = 0;
    for square in files.names().filter(|name| name.starts_with("square.")) {
        let [_, number, shortest] = square.split('.').collect::<Vec<_>>()[..] else { panic!("{square}") };
        let picture = format!("picture.{number}");
        let [height, width, 3] = files.info(&picture).unwrap().shape[..] else { panic!("axes of {picture}") };
        let side = files.info(square).unwrap().shape[0];
        let preprocess = Preprocess::imagenet(shortest.parse().unwrap(), side);
        let found = preprocess.square(files.bytes(&picture).unwrap(), (height, width));
        assert!(found == files.bytes(square).unwrap(), "a picture of {height} x {width}");
        compared += 1;
    }
    assert!(compared > 0);
}

#[test]
fn values_are_normalised_as_dino_takes_them() {
    let planes = Preprocess::imagenet(1, 1).planes(&[255, 0, 128], (1, 1));
    let expected = [(1.0 - 0.485) / 0.229, -0.456 / 0.224, (0.5019608 - 0.406) / 0.225];
    assert_near(&planes, &expected, "planes");
}

#[test]
fn values_are_normalised_as_clip_takes_them() {
    let planes = Preprocess::clip(1).planes(&[255, 0, 128], (1, 1));
    let expected =
        [(1.0 - 0.48145466) / 0.26862954, -0.4578275 / 0.2613026, (0.5019608 - 0.4082107) / 0.2757771];
    assert_near(&planes, &expected, "planes");
}
