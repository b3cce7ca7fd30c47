//! The names of FLUX's linears in the published layouts.
//!
//! Source: the checkpoints of FLUX.1, and the conversion script of diffusers; the released `dit_lora.safetensors` of UNO (Wu et
//! al. 2025), whose names XLabs introduced.

use crate::naming::{Fused, Names, Outside, Pair, Stack};

/// Where blocks with two streams stand in [`NAMES`].
pub(super) const DOUBLE_STACK: usize = 0;
/// Where blocks with one stream do.
pub(super) const SINGLE_STACK: usize = 1;

/// The names of all of FLUX's linears.
pub static NAMES: Names = Names {
    network: "a FLUX transformer",
    short: "FLUX",
    part: "transformer",
    kohya: ("networks.lora_flux", "flux1"),
    stacks: &[
        Stack { original: "double_blocks", diffusers: "transformer_blocks", linears: &DOUBLE },
        // The MLP is four times as wide as the stream.
        Stack { original: "single_blocks", diffusers: "single_transformer_blocks", linears: &SINGLE },
    ],
    outside: &OUTSIDE,
    pairs: &[
        pair(DOUBLE_STACK, "qkv_lora1", "img_attn.qkv"),
        pair(DOUBLE_STACK, "proj_lora1", "img_attn.proj"),
        pair(DOUBLE_STACK, "qkv_lora2", "txt_attn.qkv"),
        pair(DOUBLE_STACK, "proj_lora2", "txt_attn.proj"),
        pair(SINGLE_STACK, "qkv_lora", "linear1"),
        pair(SINGLE_STACK, "proj_lora", "linear2"),
    ],
};

const fn pair(stack: usize, name: &'static str, original: &'static str) -> Pair {
    Pair { stack, name, original }
}

const fn one(original: &'static str, parts: &'static [(&'static str, usize)]) -> Fused {
    Fused { original, parts }
}

/// The linears of a block with two streams.
const DOUBLE: [Fused; 10] = [
    one("img_mod.lin", &[("norm1.linear", 1)]),
    one("img_attn.qkv", &[("attn.to_q", 1), ("attn.to_k", 1), ("attn.to_v", 1)]),
    one("img_attn.proj", &[("attn.to_out.0", 1)]),
    one("img_mlp.0", &[("ff.net.0.proj", 1)]),
    one("img_mlp.2", &[("ff.net.2", 1)]),
    one("txt_mod.lin", &[("norm1_context.linear", 1)]),
    one("txt_attn.qkv", &[("attn.add_q_proj", 1), ("attn.add_k_proj", 1), ("attn.add_v_proj", 1)]),
    one("txt_attn.proj", &[("attn.to_add_out", 1)]),
    one("txt_mlp.0", &[("ff_context.net.0.proj", 1)]),
    one("txt_mlp.2", &[("ff_context.net.2", 1)]),
];

/// The linears of a block with one stream.
const SINGLE: [Fused; 3] = [
    one("modulation.lin", &[("norm.linear", 1)]),
    one("linear1", &[("attn.to_q", 1), ("attn.to_k", 1), ("attn.to_v", 1), ("proj_mlp", 4)]),
    one("linear2", &[("proj_out", 1)]),
];

const fn outside(original: &'static str, diffusers: &'static str) -> Outside {
    Outside { original, diffusers, swapped: false }
}

/// The linears outside the blocks.
const OUTSIDE: [Outside; 10] = [
    outside("img_in", "x_embedder"),
    outside("txt_in", "context_embedder"),
    outside("time_in.in_layer", "time_text_embed.timestep_embedder.linear_1"),
    outside("time_in.out_layer", "time_text_embed.timestep_embedder.linear_2"),
    outside("vector_in.in_layer", "time_text_embed.text_embedder.linear_1"),
    outside("vector_in.out_layer", "time_text_embed.text_embedder.linear_2"),
    outside("guidance_in.in_layer", "time_text_embed.guidance_embedder.linear_1"),
    outside("guidance_in.out_layer", "time_text_embed.guidance_embedder.linear_2"),
    outside("final_layer.linear", "proj_out"),
    // Shift above scale in the original, scale above shift in diffusers.
    Outside { original: "final_layer.adaLN_modulation.1", diffusers: "norm_out.linear", swapped: true },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_layouts_lead_to_the_same_place() {
        for (stack, of_stack) in NAMES.stacks.iter().enumerate() {
            for linear in 0..of_stack.linears.len() {
                let place = NAMES.place(stack, 17, linear);
                let original = place.original();
                assert_eq!(NAMES.of_original(&original), Some(place));
                assert_eq!(NAMES.of_underscored_original(&original.replace('.', "_")), Some(place));
                for (part, name) in place.diffusers().iter().enumerate() {
                    assert_eq!(NAMES.of_diffusers(name), Some((place, part)));
                    let underscored = name.replace('.', "_");
                    assert_eq!(NAMES.of_underscored_diffusers(&underscored), Some((place, part)));
                }
            }
        }
    }

    #[test]
    fn names_that_are_none_lead_nowhere() {
        for name in ["transformer_blocks.01.attn.to_q", "transformer_blocks.x.attn.to_q", "attn.to_q", ""] {
            assert_eq!(NAMES.of_diffusers(name), None, "{name}");
        }
        assert_eq!(NAMES.of_diffusers("transformer_blocks.1.attn.to_qq"), None);
        assert_eq!(NAMES.of_underscored_original("double_blocks_-1_img_attn_qkv"), None);
    }

    #[test]
    fn rows_are_shared_out_as_wide_as_the_parts_are() {
        let (place, part) = NAMES.of_diffusers("single_transformer_blocks.2.proj_mlp").unwrap();
        assert_eq!((place.original().as_str(), part), ("single_blocks.2.linear1", 3));
        assert_eq!(place.rows(21504).unwrap(), [0..3072, 3072..6144, 6144..9216, 9216..21504]);
        assert_eq!(place.rows_beside(3, 12288).unwrap(), [3072, 3072, 3072, 12288]);
        assert_eq!(place.rows(20), None);
        assert_eq!(place.rows_beside(3, 6), None);
    }
}
