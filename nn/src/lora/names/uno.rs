//! The names of UNO's own adapter, which XLabs introduced: `double_blocks.0.processor.qkv_lora1.down.weight`.
//!
//! They cover the attention only: q, k and v as one linear (`qkv_lora1` of the image stream, `qkv_lora2` of the text
//! stream, `qkv_lora` of a block with one stream, which leaves the MLP out) and what follows the attention
//! (`proj_lora...`). There is no alpha: the product is not scaled.

use crate::naming::{Names, Place, block_number};

/// What a pair is of: q, k and v, or one linear.
pub(in crate::lora) const QKV: usize = 3;

/// The linear of the original layout that a pair is for.
pub(in crate::lora) fn place(names: &'static Names, module: &str) -> Option<Place> {
    let (block, name) = module.split_once(".processor.")?;
    names.pairs.iter().filter(|pair| pair.name == name).find_map(|pair| {
        let stack = &names.stacks[pair.stack];
        let block = block.strip_prefix(stack.original)?.strip_prefix('.')?;
        let linear = stack.linears.iter().position(|f| f.original == pair.original)?;
        Some(names.place(pair.stack, block_number(block)?, linear))
    })
}

/// What the pair of a linear of the original layout is called, if there is one.
pub(in crate::lora) fn pair_name(names: &Names, place: &Place) -> Option<String> {
    let original = place.fused().original;
    let pair = names.pairs.iter().find(|p| p.stack == place.stack() && p.original == original)?;
    Some(format!("{}.{}.processor.{}", names.stacks[pair.stack].original, place.block(), pair.name))
}
