//! What a new user of SDXL takes for the right file or the right size, and what is said about it.

use std::{fs, path::Path, process::Command};

use assert_cmd::cargo::cargo_bin;
use prefgraph::{Plan, PlanOptions, Registry, spec};
use prefgraph_nn::{
    files::{NamedTensor, write_safetensors},
    vision::ResamplerSizes,
};
use serde_json::Value;

use crate::published::{Published, TOKENS, root, write};

const RECIPE: &str = "graphs/sdxl/sft_ip_adapter.ron";

/// What is said of the recipe with these settings, which must be refused before the first step.
#[track_caller]
fn refused(published: &Published, more: &[String]) -> String {
    let sets = [&published.sets(true, false)[..], more].concat();
    let said = match spec::load(&root().join(RECIPE), &sets, &Registry::standard()) {
        Ok(loaded) => match Plan::new(&loaded.graph, &PlanOptions::default()) {
            Ok(_) => panic!("it was taken"),
            Err(e) => e.to_string(),
        },
        Err(e) => format!("{e:?}"),
    };
    // Messages are wrapped.
    said.replace(['│', '\n'], " ").split_whitespace().collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn contains(said: &str, parts: &[&str]) {
    parts.iter().for_each(|part| assert!(said.contains(part), "{part}: {said}"));
}

/// Change a value of a JSON file.
fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut json: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

/// `graph-run sample` with these arguments: whether it drew, and what it said.
fn draw(published: &Published, more: &[&str]) -> (bool, String) {
    let mut command = Command::new(cargo_bin("graph-run"));
    command.current_dir(root()).args(["sample", RECIPE, "--prompt", "a dog", "--steps", "1", "--out"]);
    command.arg(published.path("pictures"));
    let sets = published.sets(true, false);
    let sets = sets
        .iter()
        .filter(|s| !["cache", "held_out", "strip", "pairs.path"].iter().any(|p| s.starts_with(p)));
    sets.filter(|s| !s.starts_with("image_prompt")).for_each(|set| _ = command.args(["--set", set]));
    let output = command.args(["--set", "backbone.ip_adapter="]).args(more).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_u_net_for_something_else_is_called_what_it_is_and_what_is_needed_is_said() {
    type Change = fn(&mut Value);
    let kinds: [(Change, &str); 3] = [
        (|c| c["in_channels"] = 9.into(), "is an inpainting U-Net (9 channels"),
        (
            |c| {
                c["cross_attention_dim"] = 768.into();
                c["addition_embed_type"] = Value::Null;
            },
            "is the U-Net of Stable Diffusion 1",
        ),
        (|c| c["cross_attention_dim"] = 1280.into(), "is SDXL's refiner"),
    ];
    for (change, kind) in kinds {
        let published = Published::new();
        edit(&published.path("sdxl/unet/config.json"), change);
        contains(&refused(&published, &[]), &[kind, "expected the base U-Net of SDXL"]);
    }
}

#[test]
fn an_ip_adapter_of_another_kind_another_encoder_or_another_network_is_refused_with_what_fits() {
    let published = Published::new();
    let own = |tensors: Vec<(String, Vec<usize>)>, name: &str| {
        let mut tensors = tensors;
        for number in 0..published.crossings() {
            for part in ["to_k_ip", "to_v_ip"] {
                tensors.push((format!("ip_adapter.{}.{part}.weight", 2 * number + 1), vec![16, TOKENS]));
            }
        }
        write(&published.path(name), tensors);
        vec![format!("backbone.ip_adapter={}", published.path(name).display())]
    };
    // `ip-adapter_sdxl.safetensors`: one linear makes four tokens of a pooled embedding, 1280 wide.
    let plain = vec![
        ("image_proj.proj.weight".to_owned(), vec![4 * TOKENS, 1280]),
        ("image_proj.proj.bias".to_owned(), vec![4 * TOKENS]),
        ("image_proj.norm.weight".to_owned(), vec![TOKENS]),
        ("image_proj.norm.bias".to_owned(), vec![TOKENS]),
    ];
    let said = refused(&published, &own(plain, "plain.safetensors"));
    contains(
        &said,
        &[
            "a plain IP-Adapter, which has no resampler",
            "expected an IP-Adapter-Plus, `ip-adapter-plus_*.safetensors`",
        ],
    );
    let sizes = |input, output| {
        ResamplerSizes { input, queries: 4, width: 20, inner: 64, mlp: 40, depth: 1, output }.tensors()
    };
    let said = refused(&published, &own(sizes(1664, TOKENS), "bigg.safetensors"));
    contains(&said, &["was made for another image encoder", "1664 wide", "32 wide"]);
    let path = published.path("sd15.safetensors");
    let keys = (0..published.crossings()).flat_map(|n| {
        ["to_k_ip", "to_v_ip"].map(|p| (format!("ip_adapter.{}.{p}.weight", 2 * n + 1), vec![16, 768]))
    });
    write(&path, sizes(32, 768).into_iter().chain(keys).collect());
    let said = refused(&published, &[format!("backbone.ip_adapter={}", path.display())]);
    contains(&said, &["is an IP-Adapter for another network", "768 is the width of Stable Diffusion 1"]);
    // Something else altogether.
    let unet = published.path("sdxl/unet/diffusion_pytorch_model.safetensors");
    let said = refused(&published, &[format!("backbone.ip_adapter={}", unet.display())]);
    contains(&said, &["is no IP-Adapter", "ip_adapter.1.to_k_ip.weight"]);
}

#[test]
fn a_lora_for_another_model_is_called_that_as_a_start_and_as_what_is_drawn_with() {
    let published = Published::new();
    let lora = |name: &str, module: &str, [inputs, outputs]: [usize; 2]| {
        let path = published.path(name);
        let values = vec![0.5; 4 * inputs.max(outputs)];
        let tensors = [
            NamedTensor::f32(format!("{module}.lora_down.weight"), vec![4, inputs], &values[..4 * inputs]),
            NamedTensor::f32(format!("{module}.lora_up.weight"), vec![outputs, 4], &values[..4 * outputs]),
            NamedTensor::f32(format!("{module}.alpha"), Vec::new(), &[4.0]),
        ];
        write_safetensors(&path, &tensors, &[]).unwrap();
        path.display().to_string()
    };
    let of_sd1 = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k";
    let deep = "lora_unet_down_blocks_2_attentions_1_transformer_blocks_0_attn1_to_q";
    let flux = "lora_unet_double_blocks_0_img_attn_proj";
    for (name, module, sizes, why) in [
        (
            "sd1",
            of_sd1,
            [768, 16],
            "was trained for another model: its `down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k` \
                                    takes text 768 wide, that of Stable Diffusion 1, and this network's is 64 wide",
        ),
        ("deep", deep, [16, 16], "which is not in the model; nearest: `"),
        (
            "flux",
            flux,
            [3072, 3072],
            "which is a linear of a FLUX transformer, and this network is a Stable Diffusion U-Net",
        ),
    ] {
        let path = lora(name, module, sizes);
        contains(&refused(&published, &[format!("lora.from={path}")]), &[why]);
    }
    // On the command line, by the names of the network.
    let (drawn, said) = draw(&published, &["--adapter", &published.path("sd1").display().to_string()]);
    assert!(!drawn);
    contains(&said, &["takes text 768 wide, that of Stable Diffusion 1"]);
    let (drawn, said) = draw(&published, &["--adapter", &published.path("flux").display().to_string()]);
    assert!(!drawn);
    contains(&said, &["is a linear of a FLUX transformer, not of a U-Net of Stable Diffusion XL"]);
    let ip = published.path("ip-adapter.safetensors").display().to_string();
    contains(
        &refused(&published, &[format!("lora.from={ip}")]),
        &["is an IP-Adapter, whose matrices are whole"],
    );
}

#[test]
fn a_pipeline_without_its_second_text_encoder_or_tokeniser_is_told_which_folder_is_missing() {
    let published = Published::new();
    let (encoder, away) = (published.path("sdxl/text_encoder_2"), published.path("away"));
    fs::write(published.path("sdxl/model_index.json"), r#"{"_class_name": "StableDiffusionXLPipeline"}"#)
        .unwrap();
    fs::rename(&encoder, &away).unwrap();
    let said = refused(&published, &[]);
    contains(&said, &["bigg: ", "has no folder `text_encoder_2`", "OpenCLIP ViT-bigG"]);
    fs::rename(&away, &encoder).unwrap();
    fs::rename(published.path("sdxl/tokenizer_2"), &away).unwrap();
    contains(&refused(&published, &[]), &["bigg_tokenizer", "tokenizer"]);
}

#[test]
fn sizes_that_no_pass_takes_are_refused_with_those_that_it_takes() {
    let published = Published::new();
    let said = refused(&published, &["pairs.height=60".into()]);
    contains(&said, &["height is 60", "multiple"]);
    // Whole latent cells, which the U-Net halves once.
    let (drawn, said) = draw(&published, &["--size", "72x64"]);
    assert!(!drawn);
    contains(&said, &["72 x 64 pixels", "multiples of 16 pixels, such as --size 64x64"]);
    let (drawn, said) = draw(&published, &["--size", "70x64"]);
    assert!(!drawn);
    contains(&said, &["70 x 64 pixels", "multiple"]);
    let (drawn, said) = draw(&published, &["--size", "48x64"]);
    assert!(drawn, "{said}");
}

#[test]
fn a_negative_prompt_without_guidance_is_not_passed_over_in_silence() {
    let published = Published::new();
    let (drawn, said) = draw(&published, &["--negative", "blurry", "--cfg", "1"]);
    assert!(!drawn);
    contains(&said, &["--negative: without classifier-free guidance nothing is avoided", "--cfg 5"]);
    let mut command = Command::new(cargo_bin("graph-run"));
    command.current_dir(root()).args(["plan", RECIPE, "--set", "strip_reference.cfg=1"]);
    published.sets(true, false).iter().for_each(|set| _ = command.args(["--set", set]));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    contains(&String::from_utf8_lossy(&output.stdout), &["cfg is 1, which is no guidance"]);
}

#[test]
fn the_u_nets_own_folder_is_called_that_where_others_take_their_weights_from_the_same_setting() {
    let published = Published::new();
    let unet = published.path("sdxl/unet").display().to_string();
    let said = refused(&published, &[format!("backbone.weights={unet}")]);
    let above = published.path("sdxl").display().to_string();
    let give = format!("give the folder above, `{above}`");
    contains(&said, &["`winner`", "is the folder of `unet` alone", "is in `vae` beside it", &give]);
    contains(&said, &["backbone.weights=", "the value comes from here"]);
}
