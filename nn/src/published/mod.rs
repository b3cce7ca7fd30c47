//! Networks as they were published, by their sizes alone: folders and files with their configurations, names and shapes, and
//! without values.
//!
//! Such a file is a hole on the disk behind its header, and its values read as zeros. It is opened as the file itself would be, so that what a
//! run costs can be worked out before anything was downloaded.

mod sizes;

use std::{collections::BTreeMap, fs, path::Path};

use serde::Serialize;

use crate::{
    autoencoders::kl::KlConfig,
    error::{Error, Result},
    files::{Dtype, write_hollow},
    models::{FluxConfig, UNetConfig},
    text::{clip::ClipConfig, t5::T5Config},
    vision::{resampler::ResamplerSizes, vit::VitConfig},
};

pub use sizes::FLUX;

/// A file or a folder that was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Published {
    /// FLUX.1-dev in diffusers' layout, with its autoencoder and its text encoders: a folder.
    FluxDev,
    /// UNO's `dit_lora.safetensors`.
    Uno,
    /// SDXL's base in diffusers' layout, with its autoencoder and its text encoders: a folder.
    Sdxl,
    /// `ip-adapter-plus_sdxl_vit-h.safetensors`.
    IpAdapterPlus,
    /// The image encoder of IP-Adapter-Plus, OpenCLIP's ViT-H: a folder.
    VitH,
    /// The base of DINOv2: a folder.
    DinoV2,
}

impl Published {
    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::FluxDev => "FLUX.1-dev",
            Self::Uno => "UNO's adapter",
            Self::Sdxl => "SDXL's base",
            Self::IpAdapterPlus => "IP-Adapter-Plus for SDXL",
            Self::VitH => "the image encoder of IP-Adapter-Plus, ViT-H",
            Self::DinoV2 => "DINOv2's base",
        }
    }

    /// Write it without values: `path` becomes the file or the folder.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_hollow(self, path: &Path) -> Result<()> {
        match self {
            Self::FluxDev => flux_dev(path),
            Self::Uno => write_hollow(path, &uno()?, Dtype::BF16),
            Self::Sdxl => sdxl(path),
            Self::IpAdapterPlus => write_hollow(path, &ip_adapter_plus(), Dtype::F16),
            Self::VitH => vit(path, sizes::VIT_H),
            Self::DinoV2 => vit(path, sizes::DINO_V2),
        }
    }
}

/// What diffusers calls the weights of its models, and transformers those of its own.
const DIFFUSERS: &str = "diffusion_pytorch_model.safetensors";
const TRANSFORMERS: &str = "model.safetensors";

type Tensors = Vec<(String, Vec<usize>)>;

/// A folder of a model: its configuration, and the weights that follow from it.
fn model<C>(
    folder: &Path,
    (config, weights): (&str, &str),
    dtype: Dtype,
    read: impl FnOnce(&Path) -> Result<C>,
    tensors: impl FnOnce(C) -> Tensors,
) -> Result<()> {
    write(folder, "config.json", config)?;
    let config = read(&folder.join("config.json"))?;
    write_hollow(&folder.join(weights), &tensors(config), dtype)
}

fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    let written = fs::create_dir_all(folder).and_then(|()| fs::write(&path, text));
    written.map_err(|e| Error::file(&path, format!("cannot be written: {e}")))
}

fn json<C: Serialize>(config: &C) -> Result<String> {
    serde_json::to_string_pretty(config).map_err(|e| Error::Internal(e.to_string()))
}

fn flux_dev(folder: &Path) -> Result<()> {
    let bf16 = Dtype::BF16;
    let transformer = folder.join("transformer");
    model(&transformer, (FLUX, DIFFUSERS), bf16, FluxConfig::read, |c| c.tensors())?;
    autoencoder(folder, &KlConfig::flux(), bf16)?;
    clip_l(folder, bf16)?;
    model(&folder.join("text_encoder_2"), (sizes::T5_XXL, TRANSFORMERS), bf16, T5Config::read, |c| {
        let tokens = ("shared.weight".to_owned(), vec![c.vocab_size, c.d_model]);
        [c.tensors(), vec![tokens]].concat()
    })?;
    tokenizer(&folder.join("tokenizer_2"), ["<pad>", "</s>"])
}

fn sdxl(folder: &Path) -> Result<()> {
    // The files of the variant fp16, which most people have.
    let f16 = Dtype::F16;
    let config = json(&UNetConfig::sdxl())?;
    model(&folder.join("unet"), (&config, DIFFUSERS), f16, UNetConfig::read, |c| c.tensors())?;
    autoencoder(folder, &KlConfig::sdxl(), f16)?;
    clip_l(folder, f16)?;
    model(&folder.join("text_encoder_2"), (sizes::CLIP_BIG_G, TRANSFORMERS), f16, ClipConfig::read, |c| {
        let projection = ("text_projection.weight".to_owned(), vec![c.projection_dim, c.hidden_size]);
        [c.tensors(), vec![projection]].concat()
    })?;
    tokenizer(&folder.join("tokenizer_2"), CLIP_TOKENS)
}

fn autoencoder(folder: &Path, config: &KlConfig, dtype: Dtype) -> Result<()> {
    model(&folder.join("vae"), (&json(config)?, DIFFUSERS), dtype, KlConfig::read, |c| c.tensors())
}

/// CLIP-L's text encoder, which FLUX and SDXL have, with its tokeniser.
fn clip_l(folder: &Path, dtype: Dtype) -> Result<()> {
    let files = (sizes::CLIP_L, TRANSFORMERS);
    model(&folder.join("text_encoder"), files, dtype, ClipConfig::read, |c| c.tensors())?;
    tokenizer(&folder.join("tokenizer"), CLIP_TOKENS)
}

fn vit(folder: &Path, config: &str) -> Result<()> {
    model(folder, (config, TRANSFORMERS), Dtype::F32, VitConfig::read, |c| c.tensors())
}

/// The tokens without which CLIP's tokeniser is refused.
const CLIP_TOKENS: [&str; 2] = ["<|startoftext|>", "<|endoftext|>"];

/// A tokeniser that knows these tokens alone: no text is split while a graph is planned.
fn tokenizer(folder: &Path, tokens: [&str; 2]) -> Result<()> {
    let vocabulary: BTreeMap<&str, usize> = tokens.into_iter().zip(0..).collect();
    let model = serde_json::json!({"type": "WordLevel", "vocab": vocabulary, "unk_token": tokens[1]});
    write(folder, "tokenizer.json", &json(&serde_json::json!({"version": "1.0", "model": model}))?)
}

/// Rank of UNO's adapter (Wu et al. 2025).
const UNO_RANK: usize = 512;
/// Query tokens of IP-Adapter-Plus for SDXL, layers of its resampler, and heads, each 64 wide.
const QUERIES: usize = 16;
const LAYERS: usize = 4;
const HEADS: usize = 20;

/// Factors of queries, keys and values as one linear, and of what follows the attention; of a block with one stream that is its last linear, which
/// takes the MLP's values, too.
fn uno() -> Result<Tensors> {
    let flux: FluxConfig = serde_json::from_str(FLUX).map_err(|e| Error::Internal(e.to_string()))?;
    let width = flux.num_attention_heads * flux.attention_head_dim;
    let factors = |name: String, inputs: usize, outputs: usize| {
        let down = (format!("{name}.down.weight"), vec![UNO_RANK, inputs]);
        [down, (format!("{name}.up.weight"), vec![outputs, UNO_RANK])]
    };
    let mut all = Vec::new();
    for block in 0..flux.num_layers {
        for stream in ["1", "2"] {
            let at = |part: &str| format!("double_blocks.{block}.processor.{part}_lora{stream}");
            all.extend(factors(at("qkv"), width, 3 * width));
            all.extend(factors(at("proj"), width, width));
        }
    }
    for block in 0..flux.num_single_layers {
        let at = |part: &str| format!("single_blocks.{block}.processor.{part}_lora");
        all.extend(factors(at("qkv"), width, 3 * width));
        all.extend(factors(at("proj"), 5 * width, width));
    }
    Ok(all)
}

fn ip_adapter_plus() -> Tensors {
    let unet = UNetConfig::sdxl();
    let (width, vit) = (HEADS * 64, 1280);
    let sizes = ResamplerSizes {
        input: vit,
        queries: QUERIES,
        width,
        inner: width,
        mlp: 4 * width,
        depth: LAYERS,
        output: unet.cross_attention_dim,
    };
    let mut all = sizes.tensors();
    all.extend(unet.image_prompt_tensors());
    all
}
