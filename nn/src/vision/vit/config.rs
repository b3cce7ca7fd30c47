//! The sizes of a vision transformer, as the `config.json` of its family states them or its tensors show them.
//!
//! `E` width, `M` width of the MLPs, `P` width of the projection.

use std::path::{Path, PathBuf};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::family::VitFamily;
use crate::{
    device::Activation,
    encoders::{
        block::BlockSizes,
        config::activation,
        measure::{self, matrix},
    },
    error::{Error, Result},
    files::{TensorFiles, config_beside, stated_kind},
};

/// The linear behind the class token of CLIP.
pub(super) const PROJECTION: &str = "visual_projection";

/// `model_type` of the configurations that are read.
const KINDS: [&str; 4] = ["clip_vision_model", "clip", "vit", "dinov2"];

/// The sizes of a vision transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct VitConfig {
    /// Whose it is.
    pub family: VitFamily,
    /// E.
    pub width: usize,
    /// M.
    pub mlp: usize,
    /// Blocks.
    pub layers: usize,
    /// Heads.
    pub heads: usize,
    /// Pixels along each side of a patch.
    pub patch: usize,
    /// Pixels along each side of the pictures that it was trained with.
    pub picture: usize,
    /// Activation of the MLPs.
    pub activation: Activation,
    /// Added to the variance in norms.
    pub eps: f64,
    /// P, of models that project the class token.
    pub projection: Option<usize>,
}

/// `config.json` of a `CLIPVisionModelWithProjection`, and `vision_config` of a `CLIPModel`: what is not stated is as in
/// transformers.
#[derive(Deserialize)]
#[serde(default)]
struct ClipFile {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_channels: usize,
    patch_size: usize,
    image_size: usize,
    #[serde(deserialize_with = "activation")]
    hidden_act: Activation,
    layer_norm_eps: f64,
    projection_dim: usize,
}

impl Default for ClipFile {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            patch_size: 32,
            image_size: 224,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            projection_dim: 512,
        }
    }
}

/// `config.json` of a `CLIPModel`.
#[derive(Deserialize)]
struct ClipPairFile {
    projection_dim: usize,
    vision_config: ClipFile,
}

/// `config.json` of a `ViTModel`, and of a `Dinov2Model`, which states the width of its MLPs otherwise.
#[derive(Deserialize)]
struct VitFile {
    hidden_size: usize,
    #[serde(default)]
    intermediate_size: Option<usize>,
    #[serde(default)]
    mlp_ratio: Option<usize>,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    #[serde(default = "three")]
    num_channels: usize,
    patch_size: usize,
    image_size: usize,
    #[serde(deserialize_with = "activation")]
    hidden_act: Activation,
    layer_norm_eps: f64,
    #[serde(default = "yes")]
    qkv_bias: bool,
    #[serde(default)]
    use_swiglu_ffn: bool,
}

fn three() -> usize {
    3
}
fn yes() -> bool {
    true
}

impl VitConfig {
    /// Read and check a `config.json`.
    ///
    /// # Errors
    /// If the file is missing, is of no vision transformer that is known, or describes one that this library does not run.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::file(path, e))?;
        Self::parse(&text).map_err(|message| Error::file(path, message))
    }

    /// The configuration beside a single file, if there is one of a vision transformer.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(super) fn beside(file: &Path) -> Result<Option<(Self, PathBuf)>> {
        let beside = config_beside(file, |kind| KINDS.contains(&kind))?;
        beside.map(|path| Ok((Self::read(&path)?, path))).transpose()
    }

    fn parse(text: &str) -> Result<Self, String> {
        fn of<C: DeserializeOwned>(value: Value) -> Result<C, String> {
            serde_json::from_value(value)
                .map_err(|e| format!("is not the configuration of a vision transformer: {e}"))
        }
        let value: Value = serde_json::from_str(text)
            .map_err(|e| format!("is not the configuration of a vision transformer: {e}"))?;
        let (field, kind) = stated_kind(&value).unwrap_or(("model_type", "not stated"));
        let kind = kind.to_owned();
        let (config, channels) = match kind.as_str() {
            "clip_vision_model" => Self::of_clip(of(value)?),
            "clip" => {
                let ClipPairFile { projection_dim, vision_config } = of(value)?;
                Self::of_clip(ClipFile { projection_dim, ..vision_config })
            }
            "vit" => Self::of_vit(VitFamily::Dino, &of(value)?)?,
            "dinov2" => Self::of_vit(VitFamily::Dinov2, &of(value)?)?,
            other => {
                return Err(format!(
                    "{field} is {other}: expected that of a vision encoder, {}",
                    KINDS.join(", ")
                ));
            }
        };
        config.check(channels)?;
        Ok(config)
    }

    fn of_clip(file: ClipFile) -> (Self, usize) {
        let config = Self {
            family: VitFamily::Clip,
            width: file.hidden_size,
            mlp: file.intermediate_size,
            layers: file.num_hidden_layers,
            heads: file.num_attention_heads,
            patch: file.patch_size,
            picture: file.image_size,
            activation: file.hidden_act,
            eps: file.layer_norm_eps,
            projection: Some(file.projection_dim),
        };
        (config, file.num_channels)
    }

    fn of_vit(family: VitFamily, file: &VitFile) -> Result<(Self, usize), String> {
        if file.use_swiglu_ffn {
            return Err("use_swiglu_ffn is true, as in DINOv2's giant: expected MLPs without a gate".into());
        }
        if !file.qkv_bias {
            return Err("qkv_bias is false: expected biases of queries, keys and values".into());
        }
        let by_ratio = file.mlp_ratio.map(|ratio| ratio.saturating_mul(file.hidden_size));
        let mlp = match family {
            VitFamily::Dinov2 => by_ratio.ok_or("has no mlp_ratio")?,
            _ => file.intermediate_size.ok_or("has no intermediate_size")?,
        };
        let config = Self {
            family,
            width: file.hidden_size,
            mlp,
            layers: file.num_hidden_layers,
            heads: file.num_attention_heads,
            patch: file.patch_size,
            picture: file.image_size,
            activation: file.hidden_act,
            eps: file.layer_norm_eps,
            projection: None,
        };
        Ok((config, file.num_channels))
    }

    /// The sizes of CLIP's image encoder in one file, without a configuration.
    pub(super) fn measured(files: &TensorFiles) -> Result<Self> {
        const WHAT: &str = "a CLIP image encoder";
        let fault = |message: String| Error::file(files.path(), message);
        let [tokens, width] = matrix(files, "vision_model.embeddings.position_embedding.weight", WHAT)?;
        let [mlp, _] = matrix(files, "vision_model.encoder.layers.0.mlp.fc1.weight", WHAT)?;
        let [projection, _] = matrix(files, &format!("{PROJECTION}.weight"), WHAT)?;
        let patches = files.info("vision_model.embeddings.patch_embedding.weight");
        let patch = patches.and_then(|info| info.shape.last().copied()).unwrap_or(0);
        // Neither the number of heads nor the activation shows in tensors. These widths are published once.
        if !matches!(width, 1280 | 1664) {
            return Err(fault(format!(
                "has no config.json beside it, and a width of {width} is not that of OpenCLIP ViT-H (1280) or ViT-bigG (1664): put \
                 the configuration beside the file"
            )));
        }
        let config = Self {
            family: VitFamily::Clip,
            width,
            mlp,
            layers: measure::blocks(files, |i| format!("vision_model.encoder.layers.{i}.mlp.fc1.weight")),
            heads: 16,
            patch,
            picture: patch.saturating_mul(tokens.saturating_sub(1).isqrt()),
            activation: Activation::GeluErf,
            eps: 1e-5,
            projection: Some(projection),
        };
        config.check(3).map_err(fault)?;
        Ok(config)
    }

    fn check(&self, channels: usize) -> Result<(), String> {
        let fault = if channels != 3 {
            format!("num_channels is {channels}: expected 3")
        } else if self.width == 0 || self.heads == 0 || !self.width.is_multiple_of(self.heads) {
            format!(
                "hidden_size is {}: expected a multiple of num_attention_heads, {}",
                self.width, self.heads
            )
        } else if self.patch == 0 || self.picture == 0 || !self.picture.is_multiple_of(self.patch) {
            format!("image_size is {}: expected a multiple of patch_size, {}", self.picture, self.patch)
        } else if [self.mlp, self.layers, self.projection.unwrap_or(1)].contains(&0) {
            "the width of the MLPs, num_hidden_layers and projection_dim must be positive".into()
        } else {
            return Ok(());
        };
        Err(fault)
    }

    /// Refuse sizes that no model in these files can have; `path` states them.
    pub(super) fn bound(&self, path: &Path, files: &TensorFiles) -> Result<()> {
        let tokens = (self.grid() as u128).pow(2) + 1;
        files.bound(
            path,
            &[("num_hidden_layers", self.layers)],
            &[
                ("hidden_size", self.width as u128),
                ("the width of the MLPs", self.mlp as u128),
                ("patch_size", self.patch as u128),
                ("the number of patches", tokens),
                ("projection_dim", self.projection.unwrap_or(0) as u128),
            ],
        )
    }

    /// Patches along each side of the pictures that it was trained with.
    pub fn grid(&self) -> usize {
        self.picture / self.patch
    }

    /// The axes of the class token and of the embeddings of positions.
    pub(super) fn embeddings(&self) -> [Vec<usize>; 2] {
        let (e, tokens) = (self.width, 1 + self.grid().pow(2));
        match self.family {
            VitFamily::Clip => [vec![e], vec![tokens, e]],
            VitFamily::Dino | VitFamily::Dinov2 => [vec![1, 1, e], vec![1, tokens, e]],
        }
    }

    /// Every tensor of the checkpoint, with its shape.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (family, e, side) = (self.family, self.width, self.patch);
        let [class, positions] = self.embeddings();
        let mut all = vec![
            (family.class().to_owned(), class),
            (family.positions().to_owned(), positions),
            (format!("{}.weight", family.patches()), vec![e, 3, side, side]),
        ];
        if family.patches_have_bias() {
            all.push((format!("{}.bias", family.patches()), vec![e]));
        }
        for norm in family.first_norm().into_iter().chain([family.last_norm()]) {
            all.extend(["weight", "bias"].map(|part| (format!("{norm}.{part}"), vec![e])));
        }
        let blocks = (0..self.layers).map(|number| family.block(number));
        all.extend(blocks.flat_map(|names| names.tensors(self.block())));
        let prefixed = all.into_iter().map(|(name, shape)| (format!("{}{name}", family.prefix()), shape));
        let projection = self.projection.map(|p| (format!("{PROJECTION}.weight"), vec![p, e]));
        prefixed.chain(projection).collect()
    }

    /// The sizes of a block.
    pub(super) fn block(&self) -> BlockSizes {
        BlockSizes {
            width: self.width,
            mlp: self.mlp,
            heads: self.heads,
            activation: self.activation,
            eps: self.eps,
        }
    }
}
