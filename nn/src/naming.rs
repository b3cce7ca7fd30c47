//! Names of the linears of FLUX in the two published layouts.
//!
//! The original layout fuses linears that read the same input into one tensor, stacked by rows;
//! diffusers keeps them separate. Checkpoints and adapters differ in the same way, and both use this table:
//!
//! ```text
//! original                      diffusers
//! double_blocks.3.img_attn.qkv  transformer_blocks.3.attn.to_q, .to_k, .to_v
//! single_blocks.3.linear1       single_transformer_blocks.3.attn.to_q, .to_k, .to_v, .proj_mlp
//! ```
//!
//! Source: the checkpoints of FLUX.1, and the conversion script of diffusers.

use std::ops::Range;

/// A linear of the original layout, as it is called within its block.
#[derive(Debug, PartialEq, Eq)]
pub struct Fused {
    /// In the original layout.
    pub original: &'static str,
    /// In diffusers' layout: names, and their shares of the rows, from the first row to the last.
    pub parts: &'static [(&'static str, usize)],
}

const fn one(original: &'static str, parts: &'static [(&'static str, usize)]) -> Fused {
    Fused { original, parts }
}

/// The linears of a block with two streams.
pub const DOUBLE: [Fused; 10] = [
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

/// The linears of a block with one stream. The MLP is four times as wide as the stream.
pub const SINGLE: [Fused; 3] = [
    one("modulation.lin", &[("norm.linear", 1)]),
    one("linear1", &[("attn.to_q", 1), ("attn.to_k", 1), ("attn.to_v", 1), ("proj_mlp", 4)]),
    one("linear2", &[("proj_out", 1)]),
];

/// A linear outside the blocks.
#[derive(Debug, PartialEq, Eq)]
pub struct Outside {
    /// In the original layout.
    pub original: &'static str,
    /// In diffusers' layout.
    pub diffusers: &'static str,
    /// Does diffusers have the lower half of its rows above the upper one?
    pub swapped: bool,
}

const fn outside(original: &'static str, diffusers: &'static str) -> Outside {
    Outside { original, diffusers, swapped: false }
}

impl Outside {
    /// All of them.
    pub const ALL: [Self; 10] = [
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
        Self { original: "final_layer.adaLN_modulation.1", diffusers: "norm_out.linear", swapped: true },
    ];

    /// The one that diffusers calls so.
    pub fn of_diffusers(name: &str) -> Option<&'static Self> {
        const ALL: &[Outside] = &Outside::ALL;
        ALL.iter().find(|outside| outside.diffusers == name)
    }
}

/// Which kind of block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stack {
    /// Two streams that meet in the attention.
    Double,
    /// One stream.
    Single,
}

impl Stack {
    /// Both, in the order of the model.
    pub const ALL: [Self; 2] = [Self::Double, Self::Single];

    /// What blocks are called in the original layout.
    pub fn original(self) -> &'static str {
        match self {
            Self::Double => "double_blocks",
            Self::Single => "single_blocks",
        }
    }

    /// What blocks are called in diffusers' layout.
    pub fn diffusers(self) -> &'static str {
        match self {
            Self::Double => "transformer_blocks",
            Self::Single => "single_transformer_blocks",
        }
    }

    /// The linears of a block.
    pub fn linears(self) -> &'static [Fused] {
        match self {
            Self::Double => &DOUBLE,
            Self::Single => &SINGLE,
        }
    }
}

/// A linear of the original layout: which block, and which of its linears.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Kind of the block.
    pub stack: Stack,
    /// Number of the block among its kind.
    pub block: usize,
    /// Number of the linear in [`Stack::linears`].
    pub linear: usize,
}

impl Place {
    /// Where a linear of diffusers' layout stands in the original one, and which of the parts it is.
    pub fn of_diffusers(name: &str) -> Option<(Self, usize)> {
        Self::find_part(name, '.', Stack::diffusers)
    }

    /// As [`of_diffusers`](Self::of_diffusers), for a name in which every dot is an underscore.
    pub fn of_underscored_diffusers(name: &str) -> Option<(Self, usize)> {
        Self::find_part(name, '_', Stack::diffusers)
    }

    /// The place of a linear of the original layout.
    pub fn of_original(name: &str) -> Option<Self> {
        let (stack, block, rest) = Self::split(name, '.', Stack::original)?;
        let linear = stack.linears().iter().position(|f| f.original == rest)?;
        Some(Self { stack, block, linear })
    }

    /// The place of a linear of the original layout whose name has every dot as an underscore.
    pub fn of_underscored_original(name: &str) -> Option<Self> {
        let (stack, block, rest) = Self::split(name, '_', Stack::original)?;
        let linear = stack.linears().iter().position(|f| f.original.replace('.', "_") == rest)?;
        Some(Self { stack, block, linear })
    }

    fn find_part(name: &str, dot: char, stacks: fn(Stack) -> &'static str) -> Option<(Self, usize)> {
        let (stack, block, rest) = Self::split(name, dot, stacks)?;
        let same = |part: &str| if dot == '.' { part == rest } else { part.replace('.', "_") == rest };
        stack.linears().iter().enumerate().find_map(|(linear, fused)| {
            let part = fused.parts.iter().position(|(name, _)| same(name))?;
            Some((Self { stack, block, linear }, part))
        })
    }

    /// `STACK.BLOCK.REST`, where a dot may be another character.
    fn split(name: &str, dot: char, stacks: fn(Stack) -> &'static str) -> Option<(Stack, usize, &str)> {
        Stack::ALL.into_iter().find_map(|stack| {
            let (block, rest) = name.strip_prefix(stacks(stack))?.strip_prefix(dot)?.split_once(dot)?;
            Some((stack, block_number(block)?, rest))
        })
    }

    fn fused(&self) -> &'static Fused {
        &self.stack.linears()[self.linear]
    }

    /// The name in the original layout.
    pub fn original(&self) -> String {
        format!("{}.{}.{}", self.stack.original(), self.block, self.fused().original)
    }

    /// The names in diffusers' layout, in the order of the rows.
    pub fn diffusers(&self) -> Vec<String> {
        let block = format!("{}.{}", self.stack.diffusers(), self.block);
        self.fused().parts.iter().map(|(name, _)| format!("{block}.{name}")).collect()
    }

    /// Which of so many rows belong to which part; nothing if they cannot be shared out.
    pub fn rows(&self, rows: usize) -> Option<Vec<Range<usize>>> {
        let shares: usize = self.fused().parts.iter().map(|(_, share)| share).sum();
        let unit = rows.is_multiple_of(shares).then(|| rows / shares)?;
        let mut at = 0;
        let ranges = self.fused().parts.iter().map(|(_, share)| {
            let start = at;
            at += share * unit;
            start..at
        });
        Some(ranges.collect())
    }

    /// How many rows each part has, if one of them has so many; nothing if they cannot be that many.
    pub fn rows_beside(&self, part: usize, rows: usize) -> Option<Vec<usize>> {
        let (_, share) = self.fused().parts.get(part)?;
        let unit = rows.is_multiple_of(*share).then(|| rows / share)?;
        Some(self.fused().parts.iter().map(|(_, share)| share * unit).collect())
    }
}

/// The number of a block as layouts write it: digits without a leading zero.
pub fn block_number(text: &str) -> Option<usize> {
    let digits = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if digits { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_layouts_lead_to_the_same_place() {
        for stack in Stack::ALL {
            for linear in 0..stack.linears().len() {
                let place = Place { stack, block: 17, linear };
                let original = place.original();
                assert_eq!(Place::of_original(&original), Some(place));
                assert_eq!(Place::of_underscored_original(&original.replace('.', "_")), Some(place));
                for (part, name) in place.diffusers().iter().enumerate() {
                    assert_eq!(Place::of_diffusers(name), Some((place, part)));
                    let underscored = name.replace('.', "_");
                    assert_eq!(Place::of_underscored_diffusers(&underscored), Some((place, part)));
                }
            }
        }
    }

    #[test]
    fn names_that_are_none_lead_nowhere() {
        for name in ["transformer_blocks.01.attn.to_q", "transformer_blocks.x.attn.to_q", "attn.to_q", ""] {
            assert_eq!(Place::of_diffusers(name), None, "{name}");
        }
        assert_eq!(Place::of_diffusers("transformer_blocks.1.attn.to_qq"), None);
        assert_eq!(Place::of_underscored_original("double_blocks_-1_img_attn_qkv"), None);
    }

    #[test]
    fn rows_are_shared_out_as_wide_as_the_parts_are() {
        let (place, part) = Place::of_diffusers("single_transformer_blocks.2.proj_mlp").unwrap();
        assert_eq!((place.original().as_str(), part), ("single_blocks.2.linear1", 3));
        assert_eq!(place.rows(21504).unwrap(), [0..3072, 3072..6144, 6144..9216, 9216..21504]);
        assert_eq!(place.rows_beside(3, 12288).unwrap(), [3072, 3072, 3072, 12288]);
        assert_eq!(place.rows(20), None);
        assert_eq!(place.rows_beside(3, 6), None);
    }
}
