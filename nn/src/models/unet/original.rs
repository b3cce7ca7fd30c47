//! Names of the U-Net's tensors in the original layout, in which SDXL and most models made from it are published as one file.
//!
//! ```text
//! original                            diffusers
//! input_blocks.4.0.in_layers.2        down_blocks.1.resnets.0.conv1
//! input_blocks.4.1.proj_in            down_blocks.1.attentions.0.proj_in
//! output_blocks.2.2.conv              up_blocks.0.upsamplers.0.conv
//! ```
//!
//! A residual block, the transformer behind it and a doubling behind that are parts of one block, numbered from zero.

use super::{
    config::UNetConfig,
    stages::{Stage, Step, steps},
};

/// The modules outside the blocks: name in diffusers' layout, original name.
const OUTSIDE: [(&str, &str); 7] = [
    ("conv_in", "input_blocks.0.0"),
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
];

/// The parts of a residual block.
const RESNET: [(&str, &str); 6] = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
];

/// Every tensor of the checkpoint with its shape: its name in diffusers' layout, and the original one.
pub(super) fn originals(config: &UNetConfig) -> Vec<(String, String, Vec<usize>)> {
    let stages = stage_names(config);
    let rename = |name: &str| -> Option<String> {
        let (module, kind) = name.rsplit_once('.')?;
        if let Some((_, original)) = OUTSIDE.iter().find(|(diffusers, _)| *diffusers == module) {
            return Some(format!("{original}.{kind}"));
        }
        let (stage, original) = stages
            .iter()
            .find(|(stage, _)| name.strip_prefix(stage.as_str()).is_some_and(|rest| rest.starts_with('.')))?;
        let rest = &name[stage.len() + 1..];
        let part = rest.rsplit_once('.').map_or("", |(part, _)| part);
        let renamed = RESNET.iter().find(|(diffusers, _)| *diffusers == part && stage.contains(".resnets."));
        Some(match renamed {
            Some((_, part)) => format!("{original}.{part}.{kind}"),
            None => format!("{original}.{rest}"),
        })
    };
    let tensors = config.tensors().into_iter();
    tensors.map(|(name, shape)| (name.clone(), rename(&name).unwrap_or(name), shape)).collect()
}

/// The names of all stages: in diffusers' layout, and the original ones.
fn stage_names(config: &UNetConfig) -> Vec<(String, String)> {
    let mut block = String::new();
    // Those of the way down begin with the first convolution, those of the way up with none.
    let (mut inputs, mut outputs, mut part) = (0, None, 0);
    let mut names = Vec::new();
    for Step { stage, .. } in steps(config) {
        let (name, original) = match stage {
            Stage::Resnet { name, .. } if name.starts_with("mid_block") => {
                part = if name.ends_with(".0") { 0 } else { 2 };
                block = "middle_block".into();
                (name, format!("middle_block.{part}"))
            }
            Stage::Resnet { name, .. } => {
                block = if name.starts_with("down_blocks") {
                    inputs += 1;
                    format!("input_blocks.{inputs}")
                } else {
                    let number = outputs.map_or(0, |last| last + 1);
                    outputs = Some(number);
                    format!("output_blocks.{number}")
                };
                part = 0;
                (name, format!("{block}.0"))
            }
            Stage::Transformer { name, .. } => {
                part = 1;
                (name, format!("{block}.1"))
            }
            Stage::Down { name, .. } => {
                inputs += 1;
                (name, format!("input_blocks.{inputs}.0.op"))
            }
            Stage::Up { name, .. } => (name, format!("{block}.{}.conv", part + 1)),
        };
        names.push((name, original));
    }
    names
}
