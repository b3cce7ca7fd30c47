//! The sizes of a U-Net, as `config.json` of a diffusers folder states them.

use std::{collections::BTreeMap, path::Path};

use serde_json::Value;

use crate::{error::Result, files::TensorFiles};

/// What diffusers calls the model.
pub(super) const CLASS: &str = "UNet2DConditionModel";
/// Width of the time's embedding, in channels of the first block.
pub(super) const TIME_RATIO: usize = 4;
/// Numbers that SDXL is told of a picture: its size, where it was cropped, and the size that is wanted.
pub(super) const TIME_IDS: usize = 6;
/// Added to the variance in the norms of the transformers, of groups and of rows.
pub(super) const TRANSFORMER_GROUP_EPS: f64 = 1e-6;
pub(super) const TRANSFORMER_ROW_EPS: f64 = 1e-5;

/// A number for all blocks, or one for each of them.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
pub enum PerBlock {
    /// For all.
    All(usize),
    /// For each down block; up blocks have them in the reverse order, and the middle the last one.
    Each(Vec<usize>),
}

impl PerBlock {
    /// That of a down block.
    pub fn of(&self, block: usize) -> Option<usize> {
        match self {
            Self::All(n) => Some(*n),
            Self::Each(all) => all.get(block).copied(),
        }
    }

    fn all(&self) -> &[usize] {
        match self {
            Self::All(n) => std::slice::from_ref(n),
            Self::Each(all) => all,
        }
    }
}

/// `config.json` of a `UNet2DConditionModel`.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct UNetConfig {
    /// Kind of model, if the file says so.
    #[serde(rename = "_class_name")]
    pub class_name: Option<String>,
    /// Channels of the latents.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Channels of each down block.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of each down block; up blocks have one more.
    #[serde(default = "two")]
    pub layers_per_block: PerBlock,
    /// Kinds of the down blocks.
    pub down_block_types: Vec<String>,
    /// Kinds of the up blocks.
    pub up_block_types: Vec<String>,
    /// Blocks of each transformer.
    #[serde(default = "one")]
    pub transformer_layers_per_block: PerBlock,
    /// Number of heads, in spite of its name, where `num_attention_heads` is not given.
    #[serde(default = "eight")]
    pub attention_head_dim: PerBlock,
    /// Number of heads.
    #[serde(default)]
    pub num_attention_heads: Option<PerBlock>,
    /// Width of a text token.
    pub cross_attention_dim: usize,
    /// Groups of channels that are normed together.
    #[serde(default = "groups")]
    pub norm_num_groups: usize,
    /// Added to the variance of a group.
    #[serde(default = "eps")]
    pub norm_eps: f64,
    /// Are the projections of transformers linears, and not 1x1 convolutions?
    #[serde(default)]
    pub use_linear_projection: bool,
    /// What the time's embedding is added to; `text_time` in SDXL.
    #[serde(default)]
    pub addition_embed_type: Option<String>,
    /// Width of the sinusoid of each number of a picture's sizes.
    #[serde(default)]
    pub addition_time_embed_dim: Option<usize>,
    /// Width of pooled text and all these sinusoids.
    #[serde(default)]
    pub projection_class_embeddings_input_dim: Option<usize>,
    /// Whatever else the file states.
    #[serde(flatten)]
    pub others: BTreeMap<String, Value>,
}

fn one() -> PerBlock {
    PerBlock::All(1)
}

fn two() -> PerBlock {
    PerBlock::All(2)
}

fn eight() -> PerBlock {
    PerBlock::All(8)
}

fn groups() -> usize {
    32
}

fn eps() -> f64 {
    1e-5
}

/// Fields that change what the network computes, and the only value (as JSON) that is run here. A field that is absent or null
/// has it.
const ONLY: [(&str, &str); 24] = [
    ("act_fn", "\"silu\""),
    ("attention_type", "\"default\""),
    ("center_input_sample", "false"),
    ("class_embed_type", "null"),
    ("class_embeddings_concat", "false"),
    ("conv_in_kernel", "3"),
    ("conv_out_kernel", "3"),
    ("cross_attention_norm", "null"),
    ("downsample_padding", "1"),
    ("dual_cross_attention", "false"),
    ("encoder_hid_dim", "null"),
    ("encoder_hid_dim_type", "null"),
    ("flip_sin_to_cos", "true"),
    ("freq_shift", "0"),
    ("mid_block_only_cross_attention", "false"),
    ("mid_block_scale_factor", "1"),
    ("mid_block_type", "\"UNetMidBlock2DCrossAttn\""),
    ("only_cross_attention", "false"),
    ("resnet_out_scale_factor", "1"),
    ("resnet_skip_time_act", "false"),
    ("resnet_time_scale_shift", "\"default\""),
    ("reverse_transformer_layers_per_block", "null"),
    ("time_cond_proj_dim", "null"),
    ("time_embedding_type", "\"positional\""),
];

/// Do both say the same? Numbers may be written as whole ones or not.
fn same(found: &Value, only: &str) -> bool {
    let only: Value = serde_json::from_str(only).unwrap_or_default();
    match (found.as_f64(), only.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => *found == only,
    }
}

impl UNetConfig {
    /// The sizes of Stable Diffusion XL, which all models made from it have.
    pub fn sdxl() -> Self {
        let kinds = |kinds: [&str; 3]| kinds.map(String::from).to_vec();
        Self {
            class_name: None,
            in_channels: 4,
            out_channels: 4,
            block_out_channels: vec![320, 640, 1280],
            layers_per_block: two(),
            down_block_types: kinds(["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"]),
            up_block_types: kinds(["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]),
            transformer_layers_per_block: PerBlock::Each(vec![1, 2, 10]),
            attention_head_dim: PerBlock::Each(vec![5, 10, 20]),
            num_attention_heads: None,
            cross_attention_dim: 2048,
            norm_num_groups: groups(),
            norm_eps: eps(),
            use_linear_projection: true,
            addition_embed_type: Some("text_time".into()),
            addition_time_embed_dim: Some(256),
            projection_class_embeddings_input_dim: Some(2816),
            others: BTreeMap::new(),
        }
    }

    /// What another U-Net of Stable Diffusion is called, where its sizes give it away.
    pub(super) fn other_kind(&self) -> Option<String> {
        let text = self.cross_attention_dim;
        let by_text = match (text, self.addition_embed_type.as_deref()) {
            (768, None) => {
                Some("the U-Net of Stable Diffusion 1 (its text is 768 wide, and it has no added embedding)")
            }
            (1024, None) => {
                Some("the U-Net of Stable Diffusion 2 (its text is 1024 wide, and it has no added embedding)")
            }
            (1280, _) => Some("SDXL's refiner (its text is 1280 wide, that of bigG alone)"),
            _ => None,
        };
        let by_channels = match self.in_channels {
            9 => Some("an inpainting U-Net (9 channels go in: latents, a mask, and latents of what is left)"),
            8 if self.out_channels == 4 => {
                Some("a U-Net that edits pictures (8 channels go in: latents, and those of a picture)")
            }
            _ => None,
        };
        by_channels.or(by_text).map(|kind| format!("is {kind}: expected the base U-Net of SDXL"))
    }

    /// Whether each field by itself is one that can be run.
    pub(super) fn check_fields(&self) -> Result<(), String> {
        let levels = self.block_out_channels.len();
        let known = |kinds: &[String], with: &str, without: &str| {
            kinds.len() == levels && kinds.iter().all(|k| k == with || k == without)
        };
        let lists = [
            ("layers_per_block", &self.layers_per_block),
            ("transformer_layers_per_block", &self.transformer_layers_per_block),
            ("number of heads", self.heads_per_block()),
        ];
        let wrong = |(_, list): &&(&str, &PerBlock)| {
            let all = list.all();
            all.contains(&0) || (matches!(list, PerBlock::Each(_)) && all.len() != levels)
        };
        let other = ONLY.iter().find_map(|(field, only)| {
            let found = self.others.get(*field).filter(|v| !v.is_null() && !same(v, only))?;
            Some((field, found, only))
        });
        let fault = if let Some(name) = self.class_name.as_deref().filter(|n| *n != CLASS) {
            format!("_class_name is {name:?}: expected {CLASS}")
        } else if let Some(kind) = self.other_kind() {
            kind
        } else if let Some((field, found, only)) = other {
            format!("{field} is {found}: only {only} can be run")
        } else if self.in_channels == 0 || self.out_channels != self.in_channels {
            format!(
                "in_channels is {} and out_channels {}: expected the same positive number",
                self.in_channels, self.out_channels
            )
        } else if levels == 0 || self.block_out_channels.contains(&0) {
            format!("block_out_channels is {:?}: expected positive numbers", self.block_out_channels)
        } else if !known(&self.down_block_types, "CrossAttnDownBlock2D", "DownBlock2D") {
            format!(
                "down_block_types is {:?}: expected {levels} of CrossAttnDownBlock2D and DownBlock2D",
                self.down_block_types
            )
        } else if !known(&self.up_block_types, "CrossAttnUpBlock2D", "UpBlock2D") {
            format!(
                "up_block_types is {:?}: expected {levels} of CrossAttnUpBlock2D and UpBlock2D",
                self.up_block_types
            )
        } else if let Some((name, list)) = lists.iter().find(wrong) {
            format!(
                "{name} is {:?}: expected a positive number, or one for each of {levels} blocks",
                list.all()
            )
        } else if self.cross_attention_dim == 0 {
            "cross_attention_dim is 0".into()
        } else if self.addition_embed_type.as_deref() != Some("text_time") {
            format!(
                "addition_embed_type is {:?}: expected \"text_time\", as SDXL has it",
                self.addition_embed_type.as_deref().unwrap_or("null")
            )
        } else if self.pooled_width().is_none() || !self.addition_width().is_multiple_of(2) {
            format!(
                "projection_class_embeddings_input_dim is {:?} and addition_time_embed_dim {:?}: expected more than \
                 {TIME_IDS} of the second, an even number, in the first",
                self.projection_class_embeddings_input_dim, self.addition_time_embed_dim
            )
        } else if !self.sinusoid().is_multiple_of(2) {
            format!("block_out_channels begins with {}: expected an even number", self.sinusoid())
        } else {
            return Ok(());
        };
        Err(fault)
    }

    /// Refuse sizes that no model in these files can have; `path` states them.
    pub(super) fn bound(&self, path: &Path, files: &TensorFiles) -> Result<()> {
        let most = |name, list: &PerBlock| (name, list.all().iter().copied().max().unwrap_or(0));
        let widest = self.block_out_channels.iter().copied().max().unwrap_or(0);
        files.bound(
            path,
            &[
                ("number of down blocks", self.block_out_channels.len()),
                most("layers_per_block", &self.layers_per_block),
                most("transformer_layers_per_block", &self.transformer_layers_per_block),
            ],
            &[
                ("block_out_channels", widest as u128),
                ("in_channels", self.in_channels as u128),
                ("cross_attention_dim", self.cross_attention_dim as u128),
                (
                    "projection_class_embeddings_input_dim",
                    self.projection_class_embeddings_input_dim.unwrap_or(0) as u128,
                ),
            ],
        )
    }

    /// Numbers of heads.
    pub fn heads_per_block(&self) -> &PerBlock {
        self.num_attention_heads.as_ref().unwrap_or(&self.attention_head_dim)
    }

    /// Width of the sinusoid of the time.
    pub(super) fn sinusoid(&self) -> usize {
        self.block_out_channels.first().copied().unwrap_or(0)
    }

    /// Width of the time's embedding.
    pub(super) fn time_width(&self) -> usize {
        TIME_RATIO * self.sinusoid()
    }

    /// Width of the sinusoid of each number of a picture's sizes.
    pub(super) fn addition_width(&self) -> usize {
        self.addition_time_embed_dim.unwrap_or(0)
    }

    /// Width of the pooled text; nothing if the two widths leave none.
    pub(super) fn pooled_width(&self) -> Option<usize> {
        let sizes = TIME_IDS.checked_mul(self.addition_time_embed_dim.filter(|d| *d > 0)?)?;
        self.projection_class_embeddings_input_dim?.checked_sub(sizes).filter(|w| *w > 0)
    }

    /// The side of the latents must be a multiple of this: every down block but the last one halves it.
    pub fn cell(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}
