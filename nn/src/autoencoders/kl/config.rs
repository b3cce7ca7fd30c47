//! The sizes of a KL autoencoder, as `config.json` of a diffusers folder states them.

use std::path::Path;

use crate::{
    autoencoders::{
        MOST_LEVELS,
        steps::{self, Step},
    },
    device::ConvWindow,
    error::{Error, Result},
    files::{TensorFiles, read_model_config},
};

/// What diffusers calls the model.
const CLASS: &str = "AutoencoderKL";

/// `config.json` of an `AutoencoderKL`.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct KlConfig {
    /// Kind of model, if the file says so.
    #[serde(rename = "_class_name")]
    pub class_name: Option<String>,
    /// Channels of a picture.
    #[serde(default = "three")]
    pub in_channels: usize,
    /// Channels of a decoded picture.
    #[serde(default = "three")]
    pub out_channels: usize,
    /// Channels of a latent cell.
    pub latent_channels: usize,
    /// Channels at every resolution, from that of the picture down.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks at every resolution of the encoder; the decoder has one more.
    #[serde(default = "one")]
    pub layers_per_block: usize,
    /// Groups of every group norm.
    #[serde(default = "published_groups")]
    pub norm_num_groups: usize,
    /// Activation.
    #[serde(default = "silu")]
    pub act_fn: String,
    /// Blocks of the encoder, by name.
    #[serde(default)]
    pub down_block_types: Vec<String>,
    /// Blocks of the decoder, by name.
    #[serde(default)]
    pub up_block_types: Vec<String>,
    /// Is there attention at the lowest resolution?
    #[serde(default = "yes")]
    pub mid_block_add_attention: bool,
    /// Is there a 1x1 convolution after the encoder?
    #[serde(default = "yes")]
    pub use_quant_conv: bool,
    /// Is there a 1x1 convolution before the decoder?
    #[serde(default = "yes")]
    pub use_post_quant_conv: bool,
    /// What shifted latents are multiplied by.
    #[serde(default = "published_scale")]
    pub scaling_factor: f32,
    /// What is taken off latents; nothing where it is not given.
    #[serde(default)]
    pub shift_factor: Option<f32>,
    /// Mean of each channel, of models that this library does not run.
    #[serde(default)]
    pub latents_mean: Option<Vec<f32>>,
    /// Deviation of each channel, likewise.
    #[serde(default)]
    pub latents_std: Option<Vec<f32>>,
}

fn one() -> usize {
    1
}
fn three() -> usize {
    3
}
fn published_groups() -> usize {
    32
}
fn published_scale() -> f32 {
    0.18215
}
fn silu() -> String {
    "silu".into()
}
fn yes() -> bool {
    true
}

impl KlConfig {
    /// The autoencoder of FLUX.1, whose original file comes without a configuration.
    pub fn flux() -> Self {
        Self {
            class_name: Some("AutoencoderKL".into()),
            in_channels: 3,
            out_channels: 3,
            latent_channels: 16,
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            norm_num_groups: 32,
            act_fn: silu(),
            down_block_types: Vec::new(),
            up_block_types: Vec::new(),
            mid_block_add_attention: true,
            use_quant_conv: false,
            use_post_quant_conv: false,
            scaling_factor: 0.3611,
            shift_factor: Some(0.1159),
            latents_mean: None,
            latents_std: None,
        }
    }

    /// The autoencoder of SDXL, which its checkpoints in one file have without a configuration.
    pub fn sdxl() -> Self {
        Self {
            latent_channels: 4,
            use_quant_conv: true,
            use_post_quant_conv: true,
            scaling_factor: 0.13025,
            shift_factor: None,
            ..Self::flux()
        }
    }

    /// Read and check `config.json`.
    ///
    /// # Errors
    /// If the file is missing, is no such configuration, or describes a model that this library does not run.
    pub fn read(path: &Path) -> Result<Self> {
        let config: Self = read_model_config(path, CLASS, "an AutoencoderKL")?;
        config.check().map_err(|message| Error::file(path, message))?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let others = |types: &[String], expected: &str| types.iter().find(|t| *t != expected).cloned();
        let groups = self.norm_num_groups;
        let fault = if let Some(name) = self.class_name.as_deref().filter(|n| *n != CLASS) {
            format!("_class_name is {name:?}: expected {CLASS}")
        } else if self.act_fn != "silu" {
            format!("act_fn is {:?}: expected silu", self.act_fn)
        } else if let Some(name) = others(&self.down_block_types, "DownEncoderBlock2D") {
            format!("down_block_types has {name:?}: expected DownEncoderBlock2D")
        } else if let Some(name) = others(&self.up_block_types, "UpDecoderBlock2D") {
            format!("up_block_types has {name:?}: expected UpDecoderBlock2D")
        } else if (self.in_channels, self.out_channels) != (3, 3) {
            format!(
                "in_channels and out_channels are {} and {}: expected 3",
                self.in_channels, self.out_channels
            )
        } else if self.latent_channels == 0
            || self.layers_per_block == 0
            || self.block_out_channels.is_empty()
        {
            "latent_channels, layers_per_block and block_out_channels must be positive".into()
        } else if self.block_out_channels.len() > MOST_LEVELS {
            let levels = self.block_out_channels.len();
            format!("block_out_channels has {levels} resolutions: expected at most {MOST_LEVELS}")
        } else if groups == 0 || self.block_out_channels.iter().any(|c| *c == 0 || !c.is_multiple_of(groups))
        {
            format!(
                "block_out_channels is {:?}: expected multiples of norm_num_groups, {groups}",
                self.block_out_channels
            )
        } else if self.latents_mean.is_some() || self.latents_std.is_some() {
            "latents_mean and latents_std are given: expected scaling_factor and shift_factor only".into()
        } else if !(self.scaling_factor.is_finite() && self.scaling_factor > 0.0) {
            format!("scaling_factor is {}: expected a positive number", self.scaling_factor)
        } else {
            return Ok(());
        };
        Err(fault)
    }

    /// Refuse sizes that no model in these files can have; `path` states them.
    pub(super) fn bound(&self, path: &Path, files: &TensorFiles) -> Result<()> {
        let widths = self.block_out_channels.iter().map(|width| ("block_out_channels", *width as u128));
        let axes: Vec<_> = widths.chain([("latent_channels", self.latent_channels as u128)]).collect();
        files.bound(path, &[("layers_per_block", self.layers_per_block)], &axes)
    }

    /// Pixels along each side of a latent cell.
    pub fn cell(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// Every tensor of a diffusers checkpoint, with its shape.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        steps::tensors([&self.encoder()[..], &self.decoder()[..]])
    }

    /// From a picture to the mean and the logarithm of the variance of its latents.
    pub(super) fn encoder(&self) -> Vec<Step> {
        let (widths, groups) = (&self.block_out_channels, self.norm_num_groups);
        let mut steps = vec![conv("encoder.conv_in", self.in_channels, widths[0], ConvWindow::Three)];
        let mut channels = widths[0];
        for (level, &width) in widths.iter().enumerate() {
            for layer in 0..self.layers_per_block {
                let name = format!("encoder.down_blocks.{level}.resnets.{layer}");
                steps.push(Step::Residual { name, inputs: channels, outputs: width, groups });
                channels = width;
            }
            if level + 1 < widths.len() {
                let name = format!("encoder.down_blocks.{level}.downsamplers.0.conv");
                steps.push(conv(&name, width, width, ConvWindow::ThreeHalving));
            }
        }
        steps.extend(self.middle("encoder", channels));
        steps.push(Step::NormSilu { name: "encoder.conv_norm_out".into(), channels, groups });
        let moments = 2 * self.latent_channels;
        steps.push(conv("encoder.conv_out", channels, moments, ConvWindow::Three));
        if self.use_quant_conv {
            steps.push(conv("quant_conv", moments, moments, ConvWindow::One));
        }
        steps
    }

    /// From latents to a picture.
    pub(super) fn decoder(&self) -> Vec<Step> {
        let (widths, groups, latent) = (&self.block_out_channels, self.norm_num_groups, self.latent_channels);
        let mut channels = widths[widths.len() - 1];
        let mut steps = Vec::new();
        if self.use_post_quant_conv {
            steps.push(conv("post_quant_conv", latent, latent, ConvWindow::One));
        }
        steps.push(conv("decoder.conv_in", latent, channels, ConvWindow::Three));
        steps.extend(self.middle("decoder", channels));
        for (level, &width) in widths.iter().rev().enumerate() {
            for layer in 0..=self.layers_per_block {
                let name = format!("decoder.up_blocks.{level}.resnets.{layer}");
                steps.push(Step::Residual { name, inputs: channels, outputs: width, groups });
                channels = width;
            }
            if level + 1 < widths.len() {
                let name = format!("decoder.up_blocks.{level}.upsamplers.0.conv");
                steps.push(conv(&name, width, width, ConvWindow::ThreeOfDoubled));
            }
        }
        steps.push(Step::NormSilu { name: "decoder.conv_norm_out".into(), channels, groups });
        steps.push(conv("decoder.conv_out", channels, self.out_channels, ConvWindow::Three));
        steps
    }

    fn middle(&self, half: &str, channels: usize) -> Vec<Step> {
        let groups = self.norm_num_groups;
        let residual = |i: usize| {
            let name = format!("{half}.mid_block.resnets.{i}");
            Step::Residual { name, inputs: channels, outputs: channels, groups }
        };
        let attention = Step::Attention { name: format!("{half}.mid_block.attentions.0"), channels, groups };
        let attention = self.mid_block_add_attention.then_some(attention);
        std::iter::once(residual(0)).chain(attention).chain([residual(1)]).collect()
    }
}

fn conv(name: &str, inputs: usize, outputs: usize, window: ConvWindow) -> Step {
    Step::Conv { name: name.into(), bias: true, inputs, outputs, window }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoding_a_picture_of_512_pixels_takes_far_less_than_two_gigabytes() {
        let cost = steps::cost(&KlConfig::flux().decoder(), (64, 64));
        // The first block at full resolution: its input twice, its output, and the windows of a few pixels.
        let least = 512 * 512 * (2 * 256 + 128) * 4;
        assert!((least..least + (100 << 20)).contains(&cost.scratch_bytes), "{cost:?}");
        // Multiply-adds of the reference implementation's convolutions and linears, as hooks on them count; attention.
        assert_eq!(cost.forward_flops, 2.0 * (1_240_306_024_448.0 + 2.0 * 4096.0 * 4096.0 * 512.0));
    }

    #[test]
    fn a_configuration_that_cannot_be_run_is_refused_with_what_was_expected() {
        type Fault = (fn(&mut KlConfig), &'static str);
        let faults: [Fault; 6] = [
            (|c| c.class_name = Some("AutoencoderTiny".into()), "expected AutoencoderKL"),
            (|c| c.act_fn = "gelu".into(), "expected silu"),
            (|c| c.down_block_types = vec!["AttnDownBlock2D".into()], "expected DownEncoderBlock2D"),
            (|c| c.block_out_channels[1] = 100, "multiples of norm_num_groups, 32"),
            (|c| c.latents_mean = Some(vec![0.0]), "expected scaling_factor"),
            (|c| c.scaling_factor = 0.0, "expected a positive number"),
        ];
        KlConfig::flux().check().unwrap();
        for (break_it, message) in faults {
            let mut config = KlConfig::flux();
            break_it(&mut config);
            let error = config.check().unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }
}
