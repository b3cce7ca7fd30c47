//! The two layouts of names that a KL autoencoder is published in: that of diffusers, and the original one of the latent
//! diffusion code, which FLUX's `ae.safetensors` has.

/// The name in a diffusers checkpoint, which is the one that this library speaks.
pub(super) fn diffusers(name: &str, _levels: usize) -> String {
    name.into()
}

/// From a name in a diffusers checkpoint to that of the original layout, of a decoder with `levels` resolutions.
pub(super) fn original(name: &str, levels: usize) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let number = |text: &str| text.parse::<usize>().unwrap_or(0);
    let renamed: Vec<String> = match parts[..] {
        [half, "conv_norm_out", ref rest @ ..] => owned(&[half, "norm_out"], rest),
        [half, "down_blocks", i, "resnets", j, ref rest @ ..] => owned(&[half, "down", i, "block", j], rest),
        [half, "down_blocks", i, "downsamplers", _, ref rest @ ..] => {
            owned(&[half, "down", i, "downsample"], rest)
        }
        // The original layout counts from the picture's resolution, diffusers from that of the latents.
        [half, "up_blocks", i, "resnets", j, ref rest @ ..] => {
            let level = (levels - 1 - number(i)).to_string();
            owned(&[half, "up", &level, "block", j], rest)
        }
        [half, "up_blocks", i, "upsamplers", _, ref rest @ ..] => {
            let level = (levels - 1 - number(i)).to_string();
            owned(&[half, "up", &level, "upsample"], rest)
        }
        [half, "mid_block", "resnets", i, ref rest @ ..] => {
            let block = format!("block_{}", number(i) + 1);
            owned(&[half, "mid", &block], rest)
        }
        [half, "mid_block", "attentions", _, ref rest @ ..] => owned(&[half, "mid", "attn_1"], rest),
        _ => owned(&[], &parts),
    };
    let renamed = renamed.join(".");
    let renamed = renamed.replace("conv_shortcut", "nin_shortcut").replace("to_out.0", "proj_out");
    if renamed.contains(".attn_1.") {
        renamed.replace("group_norm", "norm").replace(".to_", ".")
    } else {
        renamed
    }
}

fn owned(first: &[&str], rest: &[&str]) -> Vec<String> {
    first.iter().chain(rest).map(|s| (*s).to_owned()).collect()
}

/// Is this tensor a 1x1 convolution in the original layout, and a linear in that of diffusers?
pub(super) fn is_attention(name: &str) -> bool {
    name.contains(".attentions.") && name.ends_with("weight") && !name.contains("group_norm")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_diffusers_become_those_of_the_original_file() {
        for (diffusers, expected) in [
            ("encoder.conv_in.weight", "encoder.conv_in.weight"),
            (
                "encoder.down_blocks.1.resnets.0.conv_shortcut.bias",
                "encoder.down.1.block.0.nin_shortcut.bias",
            ),
            ("encoder.down_blocks.2.downsamplers.0.conv.weight", "encoder.down.2.downsample.conv.weight"),
            ("encoder.mid_block.resnets.1.norm2.weight", "encoder.mid.block_2.norm2.weight"),
            ("decoder.mid_block.attentions.0.group_norm.bias", "decoder.mid.attn_1.norm.bias"),
            ("decoder.mid_block.attentions.0.to_q.weight", "decoder.mid.attn_1.q.weight"),
            ("decoder.mid_block.attentions.0.to_out.0.weight", "decoder.mid.attn_1.proj_out.weight"),
            ("decoder.up_blocks.0.upsamplers.0.conv.weight", "decoder.up.3.upsample.conv.weight"),
            ("decoder.up_blocks.3.resnets.2.conv1.weight", "decoder.up.0.block.2.conv1.weight"),
            ("decoder.conv_norm_out.weight", "decoder.norm_out.weight"),
            ("quant_conv.weight", "quant_conv.weight"),
        ] {
            assert_eq!(original(diffusers, 4), expected);
        }
    }
}
