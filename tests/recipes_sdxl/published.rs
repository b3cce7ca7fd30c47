//! A small pipeline in SDXL's published layout, and the commands that tests run on it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use assert_cmd::cargo::cargo_bin;
use prefgraph_nn::{
    files::{NamedTensor, TensorFiles, write_safetensors},
    models::UNetConfig,
    vision::ResamplerSizes,
};

use crate::copy::copy;

/// Pixels that the features' encoder sees, four patches a side.
const SIDE_OF_FEATURES: usize = 4 * 8;
/// Width of pooled text.
const POOLED: usize = 24;
/// Width of the tokens: that of both text encoders together.
pub const TOKENS: usize = 64;

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Numbers without pattern, in +-`size`.
pub fn numbers(count: usize, size: f32) -> Vec<f32> {
    let mixed = |i: usize| (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    (0..count).map(|i| size * ((mixed(i) & 0xFFFF) as f32 / 32768.0 - 1.0)).collect()
}

/// Write tensors without meaning, small enough for a deep network.
pub fn write(path: &Path, tensors: Vec<(String, Vec<usize>)>) {
    let tensors: Vec<NamedTensor<'_>> = tensors
        .into_iter()
        .map(|(name, shape)| {
            let inputs: usize = shape.iter().skip(1).product();
            let values = match name.contains("norm") && name.ends_with("weight") {
                true => vec![1.0; shape[0]],
                false => numbers(shape.iter().product(), 1.0 / (inputs as f32).sqrt()),
            };
            NamedTensor::f32(name, shape, &values)
        })
        .collect();
    write_safetensors(path, &tensors, &[]).unwrap();
}

/// A pipeline in SDXL's layout, and an IP-Adapter for it.
pub struct Published {
    dir: tempfile::TempDir,
}

impl Published {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (pipeline, fixtures) = (dir.path().join("sdxl"), root().join("tests/fixtures/encoders"));
        let small = fixtures.join("tiny_checkpoint");
        for (from, to) in [
            (small.join("text_encoder"), "text_encoder"),
            (small.join("tokenizer"), "tokenizer"),
            (small.join("tokenizer"), "tokenizer_2"),
            (fixtures.join("vae_sdxl"), "vae"),
        ] {
            copy(&from, &pipeline.join(to));
        }
        copy(&fixtures.join("clip_vision"), &dir.path().join("image_encoder"));
        second_text_encoder(&small.join("text_encoder"), &pipeline.join("text_encoder_2"));

        let unet = pipeline.join("unet");
        fs::create_dir_all(&unet).unwrap();
        let config = format!(
            r#"{{"_class_name": "UNet2DConditionModel", "act_fn": "silu", "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8, "attention_head_dim": [2, 2], "block_out_channels": [8, 16],
            "cross_attention_dim": {TOKENS}, "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "in_channels": 4, "out_channels": 4,
            "layers_per_block": 1, "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 4,
            "projection_class_embeddings_input_dim": {}, "resnet_out_scale_factor": 1.0,
            "transformer_layers_per_block": [1, 1], "use_linear_projection": true}}"#,
            POOLED + 6 * 8
        );
        fs::write(unet.join("config.json"), config).unwrap();
        let config = UNetConfig::read(&unet.join("config.json")).unwrap();
        write(&unet.join("diffusion_pytorch_model.safetensors"), config.tensors());

        let sizes =
            ResamplerSizes { input: 32, queries: 4, width: 20, inner: 64, mlp: 40, depth: 1, output: TOKENS };
        let mut tensors = sizes.tensors();
        // All cross-attentions are on the level with 16 channels.
        for crossing in 0..config.layout(true).blocks {
            for part in ["to_k_ip", "to_v_ip"] {
                tensors.push((format!("ip_adapter.{}.{part}.weight", 2 * crossing + 1), vec![16, TOKENS]));
            }
        }
        write(&dir.path().join("ip-adapter.safetensors"), tensors);
        Self { dir }
    }

    /// Cross-attentions of the U-Net.
    pub fn crossings(&self) -> usize {
        UNetConfig::read(&self.path("sdxl/unet/config.json")).unwrap().layout(true).blocks
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What a user would change in a recipe, and small pictures.
    pub fn sets(&self, with_images: bool, patches: bool) -> Vec<String> {
        let mut sets = vec![
            format!("backbone.weights={}", self.path("sdxl").display()),
            format!("pairs.path={}", root().join("data/demo/pairs.jsonl").display()),
            format!("held_out.path={}", root().join("data/demo/held_out.jsonl").display()),
            format!("cache.path={}", self.path("cache").display()),
            "lora.rank=4".into(),
            "backbone.compute=f32".into(),
            "strip_reference.steps=2".into(),
        ];
        let sides = ["height", "width", "reference_height", "reference_width"];
        sets.extend(sides.map(|side| format!("pairs.{side}=64")));
        if with_images && patches {
            let encoder = root().join("tests/fixtures/encoders/dinov2");
            sets.push(format!("features_gen.encoder={}", encoder.display()));
            sets.push(format!("features_gen.side={}", SIDE_OF_FEATURES));
        }
        if with_images {
            sets.push(format!("backbone.ip_adapter={}", self.path("ip-adapter.safetensors").display()));
            sets.push(format!("image_prompt.image_encoder={}", self.path("image_encoder").display()));
        }
        sets
    }
}

/// The text encoder of a small checkpoint with a projection and the other activation, in place of ViT-bigG.
fn second_text_encoder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    let mut config: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(from.join("config.json")).unwrap()).unwrap();
    config["hidden_act"] = "gelu".into();
    config["projection_dim"] = POOLED.into();
    let width = config["hidden_size"].as_u64().unwrap() as usize;
    fs::write(to.join("config.json"), config.to_string()).unwrap();
    let files = TensorFiles::open(&from.join("model.safetensors")).unwrap();
    let copied = files.names().map(|name| {
        NamedTensor::f32(name.to_owned(), files.info(name).unwrap().shape.clone(), &files.read(name).unwrap())
    });
    let projection =
        NamedTensor::f32("text_projection.weight", vec![POOLED, width], &numbers(POOLED * width, 0.2));
    let tensors: Vec<NamedTensor<'_>> = copied.chain([projection]).collect();
    write_safetensors(&to.join("model.safetensors"), &tensors, &[]).unwrap();
}

/// Train through the command line; returns what it says, and whether it succeeded.
pub fn train(
    published: &Published,
    recipe: &str,
    patches: bool,
    out: &Path,
    more: &[&str],
) -> (bool, String) {
    let mut command = Command::new(cargo_bin("graph-run"));
    command.current_dir(root()).arg(recipe).arg("--out").arg(out);
    for set in published.sets(recipe.contains("ip_adapter"), patches) {
        command.args(["--set", &set]);
    }
    command.args(["--set", "update.accumulate=1", "--set", "update.schedule=constant"]);
    let output = command.args(["--set", "update.warmup=0"]).args(more).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}
