//! The sizes of a U-Net, as `config.json` of a diffusers folder states them.

use std::{collections::BTreeMap, path::Path};

use serde_json::Value;

use super::{
    linears::NAMES,
    stages::{Stage, Step, steps},
};
use crate::{
    backbone::{BackboneLayout, LinearLayout, Linears, Time},
    cpu::WIDEST,
    error::{Error, Result},
    files::{TensorFiles, read_model_config},
};

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
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
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
#[derive(Clone, Debug, PartialEq, serde::Deserialize)]
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
    /// Read and check `config.json`.
    ///
    /// # Errors
    /// If the file is missing, is no such configuration, or describes a model that this library does not run.
    pub fn read(path: &Path) -> Result<Self> {
        let config: Self = read_model_config(path, CLASS, "a U-Net of Stable Diffusion XL")?;
        config.check().map_err(|message| Error::file(path, message))?;
        Ok(config)
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

    pub(super) fn check(&self) -> Result<(), String> {
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
            return self.check_steps();
        };
        Err(fault)
    }

    /// Whether groups and heads share out the channels of every step.
    fn check_steps(&self) -> Result<(), String> {
        let groups = self.norm_num_groups;
        for Step { stage, .. } in steps(self) {
            let (normed, heads) = match stage {
                Stage::Resnet { inputs, skip, outputs, .. } => (vec![inputs + skip, outputs], None),
                Stage::Transformer { channels, heads, .. } => (vec![channels], Some((channels, heads))),
                Stage::Down { .. } | Stage::Up { .. } => continue,
            };
            if let Some(width) = normed.into_iter().find(|w| groups == 0 || !w.is_multiple_of(groups)) {
                return Err(format!("norm_num_groups is {groups}, which does not divide {width} channels"));
            }
            if let Some((channels, heads)) = heads
                && (!channels.is_multiple_of(heads) || channels / heads > WIDEST)
            {
                return Err(format!(
                    "{channels} channels in {heads} heads: expected heads of at most {WIDEST}"
                ));
            }
        }
        Ok(())
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
    fn pooled_width(&self) -> Option<usize> {
        let sizes = TIME_IDS.checked_mul(self.addition_time_embed_dim.filter(|d| *d > 0)?)?;
        self.projection_class_embeddings_input_dim?.checked_sub(sizes).filter(|w| *w > 0)
    }

    /// The side of the latents must be a multiple of this: every down block but the last one halves it.
    pub fn cell(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// The linears that an adapter may have factors for, in the order of the model. With `image_prompt` those of an IP-Adapter are
    /// among them.
    pub(super) fn linears(&self, image_prompt: bool) -> Vec<LinearLayout> {
        let steps = steps(self);
        steps
            .iter()
            .flat_map(|step| step.stage.linears(self, image_prompt))
            .map(|(layout, _)| layout)
            .collect()
    }

    /// Every tensor of the checkpoint, with its shape.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut all = Vec::new();
        let mut both = |name: &str, shape: Vec<usize>| {
            all.push((format!("{name}.bias"), vec![shape[0]]));
            all.push((format!("{name}.weight"), shape));
        };
        let (first, time) = (self.sinusoid(), self.time_width());
        both("conv_in", vec![first, self.in_channels, 3, 3]);
        both("time_embedding.linear_1", vec![time, first]);
        both("time_embedding.linear_2", vec![time, time]);
        both("add_embedding.linear_1", vec![time, self.projection_class_embeddings_input_dim.unwrap_or(0)]);
        both("add_embedding.linear_2", vec![time, time]);
        both("conv_norm_out", vec![first]);
        both("conv_out", vec![self.out_channels, first, 3, 3]);
        all.extend(steps(self).iter().flat_map(|step| step.stage.tensors(self)));
        all
    }

    /// What is known of a model of these sizes before a weight is read.
    pub fn layout(&self, image_prompt: bool) -> BackboneLayout {
        let linears = self.linears(image_prompt);
        let of_image_prompt = linears.iter().filter(|l| l.name.contains(".processor."));
        let image_parameters: usize = of_image_prompt.map(|l| l.inputs * l.outputs).sum();
        let parameters: usize = self.tensors().iter().map(|(_, s)| s.iter().product::<usize>()).sum();
        let crossings = |step: &Step| match step.stage {
            Stage::Transformer { depth, .. } => depth,
            _ => 0,
        };
        BackboneLayout {
            kind: if image_prompt { "sdxl-ip-adapter" } else { "sdxl" }.into(),
            channels: self.in_channels,
            patch: 1,
            text_width: self.cross_attention_dim,
            pooled_width: self.pooled_width().unwrap_or(0),
            width: self.sinusoid(),
            blocks: steps(self).iter().map(crossings).sum(),
            heads: self.heads_per_block().of(0).unwrap_or(0),
            time: Time::Step,
            guidance: false,
            sizes: true,
            image_tokens: image_prompt,
            linears: Linears { names: &NAMES, all: linears },
            parameters: parameters + image_parameters,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn published() -> UNetConfig {
        serde_json::from_str(
            r#"{"_class_name":"UNet2DConditionModel","act_fn":"silu","addition_embed_type":"text_time",
            "addition_time_embed_dim":256,"attention_head_dim":[5,10,20],"block_out_channels":[320,640,1280],
            "cross_attention_dim":2048,"down_block_types":["DownBlock2D","CrossAttnDownBlock2D","CrossAttnDownBlock2D"],
            "in_channels":4,"layers_per_block":2,"mid_block_scale_factor":1,"norm_eps":1e-05,"norm_num_groups":32,
            "out_channels":4,"projection_class_embeddings_input_dim":2816,"resnet_out_scale_factor":1.0,
            "transformer_layers_per_block":[1,2,10],
            "up_block_types":["CrossAttnUpBlock2D","CrossAttnUpBlock2D","UpBlock2D"],"use_linear_projection":true}"#,
        )
        .unwrap()
    }

    #[test]
    fn the_published_model_has_its_published_tensors_and_parameters() {
        let config = published();
        config.check().unwrap();
        assert_eq!(config.tensors().len(), 1680);
        let layout = config.layout(false);
        assert_eq!(layout.parameters, 2_567_463_684);
        assert_eq!((layout.blocks, layout.pooled_width, layout.linears.len()), (70, 1280, 722));
        // 340.8 million of the IP-Adapter's keys and values.
        let with_images = config.layout(true);
        assert_eq!(with_images.linears.len(), 722 + 140);
        assert_eq!(with_images.parameters - layout.parameters, 340_787_200);
    }

    #[test]
    fn a_configuration_that_cannot_be_run_is_refused_with_what_was_expected() {
        type Fault = (fn(&mut UNetConfig), &'static str);
        let faults: [Fault; 13] = [
            (|c| c.in_channels = 9, "an inpainting U-Net (9 channels"),
            (|c| c.in_channels = 8, "a U-Net that edits pictures"),
            (
                |c| (c.cross_attention_dim, c.addition_embed_type) = (768, None),
                "the U-Net of Stable Diffusion 1 (its text is 768 wide",
            ),
            (|c| (c.cross_attention_dim, c.addition_embed_type) = (1024, None), "Stable Diffusion 2"),
            (|c| c.cross_attention_dim = 1280, "SDXL's refiner"),
            (|c| c.addition_embed_type = None, "expected \"text_time\""),
            (|c| c.class_name = Some("FluxTransformer2DModel".into()), "expected UNet2DConditionModel"),
            (|c| c.norm_num_groups = 33, "does not divide 320 channels"),
            (|c| c.attention_head_dim = PerBlock::All(7), "640 channels in 7 heads"),
            (|c| c.transformer_layers_per_block = PerBlock::Each(vec![1, 2]), "one for each of 3 blocks"),
            (|c| c.down_block_types[1] = "AttnDownBlock2D".into(), "expected 3 of CrossAttnDownBlock2D"),
            (|c| c.projection_class_embeddings_input_dim = Some(1536), "more than 6 of the second"),
            (
                |c| drop(c.others.insert("time_cond_proj_dim".into(), 256.into())),
                "time_cond_proj_dim is 256: only null",
            ),
        ];
        for (break_it, message) in faults {
            let mut config = published();
            break_it(&mut config);
            let error = config.check().unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }
}
