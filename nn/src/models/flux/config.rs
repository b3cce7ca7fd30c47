//! The sizes of a FLUX transformer, as `config.json` of a diffusers folder states them.

use std::path::Path;

use super::linears::NAMES;
use crate::{
    backbone::{BackboneLayout, LinearLayout, Linears, Time},
    error::{Error, Result},
    files::{TensorFiles, read_model_config},
    size,
};

/// What diffusers calls the model.
pub(super) const CLASS: &str = "FluxTransformer2DModel";
/// Width of the MLPs, in widths of the stream.
pub(super) const MLP_RATIO: usize = 4;
/// Width of the sinusoid that a time is turned into.
pub(super) const SINUSOID: usize = 256;
/// Latent cells along each side of a token.
pub(super) const PATCH: usize = 2;

/// `config.json` of a `FluxTransformer2DModel`.
#[derive(Clone, Debug, PartialEq, serde::Deserialize)]
pub struct FluxConfig {
    /// Kind of model, if the file says so.
    #[serde(rename = "_class_name")]
    pub class_name: Option<String>,
    /// Latent cells along each side of what the transformer itself cuts; always 1, packing 2x2 comes before.
    #[serde(default = "one")]
    pub patch_size: usize,
    /// Channels of a packed token.
    pub in_channels: usize,
    /// Channels of the prediction; the same as `in_channels` where it is not given.
    #[serde(default)]
    pub out_channels: Option<usize>,
    /// Number of blocks with two streams.
    pub num_layers: usize,
    /// Number of blocks with one stream.
    pub num_single_layers: usize,
    /// Width of a head.
    pub attention_head_dim: usize,
    /// Number of heads.
    pub num_attention_heads: usize,
    /// Width of a text token.
    pub joint_attention_dim: usize,
    /// Width of the pooled text.
    pub pooled_projection_dim: usize,
    /// Does it take a guidance value?
    #[serde(default)]
    pub guidance_embeds: bool,
    /// Widths of a head that the three position axes turn.
    #[serde(default = "published_axes")]
    pub axes_dims_rope: Vec<usize>,
}

fn one() -> usize {
    1
}

fn published_axes() -> Vec<usize> {
    vec![16, 56, 56]
}

impl FluxConfig {
    /// Read and check `config.json`.
    ///
    /// # Errors
    /// If the file is missing, is no such configuration, or describes a model that this library does not run.
    pub fn read(path: &Path) -> Result<Self> {
        let config: Self = read_model_config(path, CLASS, "a FLUX transformer")?;
        config.check().map_err(|message| Error::file(path, message))?;
        Ok(config)
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let axes: u128 = self.axes_dims_rope.iter().map(|axis| *axis as u128).sum();
        let fault = if let Some(name) = self.class_name.as_deref().filter(|n| *n != CLASS) {
            format!("_class_name is {name:?}: expected {CLASS}")
        } else if self.patch_size != 1 {
            format!("patch_size is {}: expected 1", self.patch_size)
        } else if self.in_channels == 0 || !self.in_channels.is_multiple_of(PATCH * PATCH) {
            format!(
                "in_channels is {}: expected a multiple of 4, since a token is 2x2 cells",
                self.in_channels
            )
        } else if self.out_channels.is_some_and(|o| o != self.in_channels) {
            format!(
                "out_channels is {}: expected in_channels, {} (a prediction is as wide as its input)",
                self.out_channels.unwrap_or(0),
                self.in_channels
            )
        } else if self.axes_dims_rope.len() != 3
            || axes != self.attention_head_dim as u128
            || self.axes_dims_rope.iter().any(|a| a % 2 != 0)
        {
            format!(
                "axes_dims_rope is {:?}: expected three even numbers with the sum attention_head_dim, {}",
                self.axes_dims_rope, self.attention_head_dim
            )
        } else if self.width() == 0 || (self.num_layers == 0 && self.num_single_layers == 0) {
            "a model without heads or without blocks".into()
        } else if self.joint_attention_dim == 0 || self.pooled_projection_dim == 0 {
            "joint_attention_dim and pooled_projection_dim must be positive".into()
        } else {
            return Ok(());
        };
        Err(fault)
    }

    /// Refuse sizes that no model in these files can have; `path` states them.
    pub(super) fn bound(&self, path: &Path, files: &TensorFiles) -> Result<()> {
        let width = self.num_attention_heads as u128 * self.attention_head_dim as u128;
        files.bound(
            path,
            &[("num_layers", self.num_layers), ("num_single_layers", self.num_single_layers)],
            &[
                ("num_attention_heads x attention_head_dim", width),
                ("in_channels", self.in_channels as u128),
                ("joint_attention_dim", self.joint_attention_dim as u128),
                ("pooled_projection_dim", self.pooled_projection_dim as u128),
            ],
        )
    }

    /// Width of the stream.
    pub fn width(&self) -> usize {
        size::product([self.num_attention_heads, self.attention_head_dim])
    }

    /// Every linear of the blocks, in the order in which [`super::weights::Weights`] numbers them.
    pub(super) fn linears(&self) -> Vec<LinearLayout> {
        let d = self.width();
        let mlp = MLP_RATIO * d;
        let double = (0..self.num_layers).flat_map(|i| {
            DOUBLE.iter().map(move |(name, inputs, outputs)| {
                (format!("transformer_blocks.{i}.{name}"), inputs, outputs)
            })
        });
        let single = (0..self.num_single_layers).flat_map(|i| {
            SINGLE.iter().map(move |(name, inputs, outputs)| {
                (format!("single_transformer_blocks.{i}.{name}"), inputs, outputs)
            })
        });
        let width = |w: &Width| match w {
            Width::Stream(n) => n * d,
            Width::Mlp => mlp,
            Width::StreamAndMlp => d + mlp,
        };
        double
            .chain(single)
            .map(|(name, inputs, outputs)| LinearLayout {
                name,
                inputs: width(inputs),
                outputs: width(outputs),
                window: None,
            })
            .collect()
    }

    /// The linears outside the blocks, which no adapter has factors for.
    pub(super) fn outer_linears(&self) -> Vec<LinearLayout> {
        let d = self.width();
        let mut all = vec![
            ("x_embedder", self.in_channels, d),
            ("context_embedder", self.joint_attention_dim, d),
            ("time_text_embed.timestep_embedder.linear_1", SINUSOID, d),
            ("time_text_embed.timestep_embedder.linear_2", d, d),
            ("time_text_embed.text_embedder.linear_1", self.pooled_projection_dim, d),
            ("time_text_embed.text_embedder.linear_2", d, d),
            ("norm_out.linear", d, 2 * d),
            ("proj_out", d, self.in_channels),
        ];
        if self.guidance_embeds {
            all.push(("time_text_embed.guidance_embedder.linear_1", SINUSOID, d));
            all.push(("time_text_embed.guidance_embedder.linear_2", d, d));
        }
        all.into_iter()
            .map(|(name, inputs, outputs)| LinearLayout { name: name.into(), inputs, outputs, window: None })
            .collect()
    }

    /// Names of the RMS norms' weights, each as wide as a head.
    pub(super) fn head_norms(&self) -> Vec<String> {
        let double = (0..self.num_layers).flat_map(|i| {
            ["norm_q", "norm_k", "norm_added_q", "norm_added_k"]
                .map(|n| format!("transformer_blocks.{i}.attn.{n}.weight"))
        });
        let single = (0..self.num_single_layers).flat_map(|i| {
            ["norm_q", "norm_k"].map(|n| format!("single_transformer_blocks.{i}.attn.{n}.weight"))
        });
        double.chain(single).collect()
    }

    /// Every tensor of the checkpoint, with its shape.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let linears = self.linears().into_iter().chain(self.outer_linears());
        let mut all: Vec<_> = linears
            .flat_map(|l| {
                [
                    (format!("{}.weight", l.name), vec![l.outputs, l.inputs]),
                    (format!("{}.bias", l.name), vec![l.outputs]),
                ]
            })
            .collect();
        all.extend(self.head_norms().into_iter().map(|n| (n, vec![self.attention_head_dim])));
        all
    }

    /// What is known of a model of these sizes before a weight is read.
    pub fn layout(&self) -> BackboneLayout {
        BackboneLayout {
            kind: "flux-uno".into(),
            channels: self.in_channels / (PATCH * PATCH),
            patch: PATCH,
            whole: PATCH,
            text_width: self.joint_attention_dim,
            pooled_width: self.pooled_projection_dim,
            width: self.width(),
            blocks: self.num_layers + self.num_single_layers,
            heads: self.num_attention_heads,
            time: Time::Sigma,
            guidance: self.guidance_embeds,
            sizes: false,
            image_tokens: false,
            queries: None,
            block_cells: Vec::new(),
            pictures: None,
            linears: Linears::new(&NAMES, self.linears()),
            parameters: self.tensors().iter().map(|(_, s)| s.iter().product::<usize>()).sum(),
        }
    }
}

/// A width of a linear, in terms of the stream's.
enum Width {
    Stream(usize),
    Mlp,
    StreamAndMlp,
}

use Width::{Mlp, Stream, StreamAndMlp};

/// Number of linears of a block with two streams.
pub(super) const DOUBLE_LINEARS: usize = DOUBLE.len();
/// Number of linears of a block with one stream.
pub(super) const SINGLE_LINEARS: usize = SINGLE.len();

/// The linears of a block with two streams: of the image stream, then of the text stream, each in the order of use.
const DOUBLE: [(&str, Width, Width); 14] = [
    ("norm1.linear", Stream(1), Stream(6)),
    ("attn.to_q", Stream(1), Stream(1)),
    ("attn.to_k", Stream(1), Stream(1)),
    ("attn.to_v", Stream(1), Stream(1)),
    ("attn.to_out.0", Stream(1), Stream(1)),
    ("ff.net.0.proj", Stream(1), Mlp),
    ("ff.net.2", Mlp, Stream(1)),
    ("norm1_context.linear", Stream(1), Stream(6)),
    ("attn.add_q_proj", Stream(1), Stream(1)),
    ("attn.add_k_proj", Stream(1), Stream(1)),
    ("attn.add_v_proj", Stream(1), Stream(1)),
    ("attn.to_add_out", Stream(1), Stream(1)),
    ("ff_context.net.0.proj", Stream(1), Mlp),
    ("ff_context.net.2", Mlp, Stream(1)),
];

/// The linears of a block with one stream, in the order of use.
const SINGLE: [(&str, Width, Width); 6] = [
    ("norm.linear", Stream(1), Stream(3)),
    ("attn.to_q", Stream(1), Stream(1)),
    ("attn.to_k", Stream(1), Stream(1)),
    ("attn.to_v", Stream(1), Stream(1)),
    ("proj_mlp", Stream(1), Mlp),
    ("proj_out", StreamAndMlp, Stream(1)),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn published() -> FluxConfig {
        serde_json::from_str(
            r#"{"_class_name":"FluxTransformer2DModel","patch_size":1,"in_channels":64,"num_layers":19,
            "num_single_layers":38,"attention_head_dim":128,"num_attention_heads":24,"joint_attention_dim":4096,
            "pooled_projection_dim":768,"guidance_embeds":true}"#,
        )
        .unwrap()
    }

    #[test]
    fn the_published_model_has_its_published_number_of_parameters() {
        // FLUX.1-dev: 11 901 408 320 parameters.
        assert_eq!(published().layout().parameters, 11_901_408_320);
    }

    #[test]
    fn a_configuration_that_cannot_be_run_is_refused_with_what_was_expected() {
        type Fault = (fn(&mut FluxConfig), &'static str);
        let faults: [Fault; 5] = [
            (|c| c.axes_dims_rope = vec![16, 56, 54], "sum attention_head_dim, 128"),
            (|c| c.patch_size = 2, "expected 1"),
            (|c| c.in_channels = 6, "multiple of 4"),
            (|c| c.out_channels = Some(128), "expected in_channels, 64"),
            (|c| c.class_name = Some("UNet2DConditionModel".into()), "expected FluxTransformer2DModel"),
        ];
        published().check().unwrap();
        for (break_it, message) in faults {
            let mut config = published();
            break_it(&mut config);
            let error = config.check().unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }
}
