//! The names of the linears and convolutions of Stable Diffusion XL's U-Net in the published layouts.
//!
//! The original layout counts all that lies on the way down as `input_blocks`, and on the way up as `output_blocks`, in which a
//! transformer is the second part of its block. Every published model has two residual blocks on a level (and three on the way up), so
//! that the number of a block follows from its level: the table has four of them.
//!
//! Source: the checkpoint of SDXL base 1.0, and the conversion scripts of diffusers.

use crate::naming::{Fused, Names, Outside, Stack};

/// The names of all linears of the U-Net's transformers, and of its convolutions.
pub static NAMES: Names = Names {
    network: "a U-Net of Stable Diffusion XL",
    short: "SDXL",
    part: "unet",
    kohya: ("networks.lora", "sdxl_base_v1-0"),
    stacks: STACKS,
    outside: OUTSIDE,
    pairs: &[],
};

/// For each transformer, each residual block and each other convolution a row: its name in the original layout, and in that of diffusers.
macro_rules! modules {
    (
        transformers $($original:literal $diffusers:literal,)*
        resnets $($resnet:literal $of_resnet:literal,)*
        convs $($conv:literal $of_conv:literal,)*
    ) => {
        const STACKS: &[Stack] = &[$(Stack {
            original: concat!($original, ".transformer_blocks"),
            diffusers: concat!($diffusers, ".transformer_blocks"),
            linears: &BLOCK,
        }),*];
        const OUTSIDE: &[Outside] = &[
            $(
                outside(concat!($original, ".proj_in"), concat!($diffusers, ".proj_in")),
                outside(concat!($original, ".proj_out"), concat!($diffusers, ".proj_out")),
            )*
            $(
                outside(concat!($resnet, ".in_layers.2"), concat!($of_resnet, ".conv1")),
                outside(concat!($resnet, ".out_layers.3"), concat!($of_resnet, ".conv2")),
                outside(concat!($resnet, ".skip_connection"), concat!($of_resnet, ".conv_shortcut")),
            )*
            $(outside($conv, $of_conv),)*
        ];
    };
}

modules! {
    transformers
    "input_blocks.1.1" "down_blocks.0.attentions.0",
    "input_blocks.2.1" "down_blocks.0.attentions.1",
    "input_blocks.4.1" "down_blocks.1.attentions.0",
    "input_blocks.5.1" "down_blocks.1.attentions.1",
    "input_blocks.7.1" "down_blocks.2.attentions.0",
    "input_blocks.8.1" "down_blocks.2.attentions.1",
    "input_blocks.10.1" "down_blocks.3.attentions.0",
    "input_blocks.11.1" "down_blocks.3.attentions.1",
    "middle_block.1" "mid_block.attentions.0",
    "output_blocks.0.1" "up_blocks.0.attentions.0",
    "output_blocks.1.1" "up_blocks.0.attentions.1",
    "output_blocks.2.1" "up_blocks.0.attentions.2",
    "output_blocks.3.1" "up_blocks.1.attentions.0",
    "output_blocks.4.1" "up_blocks.1.attentions.1",
    "output_blocks.5.1" "up_blocks.1.attentions.2",
    "output_blocks.6.1" "up_blocks.2.attentions.0",
    "output_blocks.7.1" "up_blocks.2.attentions.1",
    "output_blocks.8.1" "up_blocks.2.attentions.2",
    "output_blocks.9.1" "up_blocks.3.attentions.0",
    "output_blocks.10.1" "up_blocks.3.attentions.1",
    "output_blocks.11.1" "up_blocks.3.attentions.2",
    resnets
    "input_blocks.1.0" "down_blocks.0.resnets.0",
    "input_blocks.2.0" "down_blocks.0.resnets.1",
    "input_blocks.4.0" "down_blocks.1.resnets.0",
    "input_blocks.5.0" "down_blocks.1.resnets.1",
    "input_blocks.7.0" "down_blocks.2.resnets.0",
    "input_blocks.8.0" "down_blocks.2.resnets.1",
    "input_blocks.10.0" "down_blocks.3.resnets.0",
    "input_blocks.11.0" "down_blocks.3.resnets.1",
    "middle_block.0" "mid_block.resnets.0",
    "middle_block.2" "mid_block.resnets.1",
    "output_blocks.0.0" "up_blocks.0.resnets.0",
    "output_blocks.1.0" "up_blocks.0.resnets.1",
    "output_blocks.2.0" "up_blocks.0.resnets.2",
    "output_blocks.3.0" "up_blocks.1.resnets.0",
    "output_blocks.4.0" "up_blocks.1.resnets.1",
    "output_blocks.5.0" "up_blocks.1.resnets.2",
    "output_blocks.6.0" "up_blocks.2.resnets.0",
    "output_blocks.7.0" "up_blocks.2.resnets.1",
    "output_blocks.8.0" "up_blocks.2.resnets.2",
    "output_blocks.9.0" "up_blocks.3.resnets.0",
    "output_blocks.10.0" "up_blocks.3.resnets.1",
    "output_blocks.11.0" "up_blocks.3.resnets.2",
    convs
    "input_blocks.0.0" "conv_in",
    "input_blocks.3.0.op" "down_blocks.0.downsamplers.0.conv",
    "input_blocks.6.0.op" "down_blocks.1.downsamplers.0.conv",
    "input_blocks.9.0.op" "down_blocks.2.downsamplers.0.conv",
    // Behind a transformer, as in SDXL.
    "output_blocks.2.2.conv" "up_blocks.0.upsamplers.0.conv",
    "output_blocks.5.2.conv" "up_blocks.1.upsamplers.0.conv",
    "output_blocks.8.2.conv" "up_blocks.2.upsamplers.0.conv",
    "out.2" "conv_out",
}

const fn outside(original: &'static str, diffusers: &'static str) -> Outside {
    Outside { original, diffusers, swapped: false }
}

/// A linear that both layouts call the same.
macro_rules! same {
    ($($name:literal),*) => { [$(Fused { original: $name, parts: &[($name, 1)] }),*] };
}

/// The linears of a transformer's block.
const BLOCK: [Fused; 12] = same![
    "attn1.to_q",
    "attn1.to_k",
    "attn1.to_v",
    "attn1.to_out.0",
    "attn2.to_q",
    "attn2.to_k",
    "attn2.to_v",
    "attn2.to_out.0",
    "attn2.to_k_ip",
    "attn2.to_v_ip",
    "ff.net.0.proj",
    "ff.net.2"
];
