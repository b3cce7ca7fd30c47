//! The names of UNO's own adapter, which XLabs introduced: `double_blocks.0.processor.qkv_lora1.down.weight`.
//!
//! They cover the attention only: q, k and v as one linear (`qkv_lora1` of the image stream, `qkv_lora2` of the text
//! stream, `qkv_lora` of a block with one stream, which leaves the MLP out) and what follows the attention
//! (`proj_lora...`). There is no alpha: the product is not scaled.
//!
//! Source: the released `dit_lora.safetensors` of UNO (Wu et al. 2025), rank 512.

use crate::naming::{Place, Stack, block_number};

/// Kind of block, name of the pair, name of the linear in the original layout.
const PAIRS: [(Stack, &str, &str); 6] = [
    (Stack::Double, "qkv_lora1", "img_attn.qkv"),
    (Stack::Double, "proj_lora1", "img_attn.proj"),
    (Stack::Double, "qkv_lora2", "txt_attn.qkv"),
    (Stack::Double, "proj_lora2", "txt_attn.proj"),
    (Stack::Single, "qkv_lora", "linear1"),
    (Stack::Single, "proj_lora", "linear2"),
];

/// What a pair is of: q, k and v, or one linear.
pub(in crate::lora) const QKV: usize = 3;

/// The linear of the original layout that a pair is for.
pub(in crate::lora) fn place(module: &str) -> Option<Place> {
    let (block, pair) = module.split_once(".processor.")?;
    PAIRS.iter().find_map(|(stack, name, original)| {
        let block = block.strip_prefix(stack.original())?.strip_prefix('.')?;
        let linear = stack.linears().iter().position(|f| f.original == *original)?;
        (*name == pair).then_some(Place { stack: *stack, block: block_number(block)?, linear })
    })
}

/// What the pair of a linear of the original layout is called, if there is one.
pub(in crate::lora) fn pair_name(place: &Place) -> Option<String> {
    let original = place.stack.linears()[place.linear].original;
    let (_, pair, _) = PAIRS.iter().find(|(s, _, o)| *s == place.stack && *o == original)?;
    Some(format!("{}.{}.processor.{pair}", place.stack.original(), place.block))
}
