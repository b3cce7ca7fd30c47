//! The names of UNO's own adapter, which XLabs introduced: `double_blocks.0.processor.qkv_lora1.down.weight`.
//!
//! It covers the attention only: q, k and v as one linear (`qkv_lora1` of the image stream, `qkv_lora2` of the text
//! stream, `qkv_lora` of a block with one stream, which leaves the MLP out) and what follows the attention
//! (`proj_lora...`). There is no alpha: the product is not scaled.
//!
//! Source: the released `dit_lora.safetensors` of UNO (Wu et al. 2025), rank 512.

use std::sync::Arc;

use super::{
    Adapter, AdapterLayout,
    format::{Contents, Factors, Part, Side, gather},
    kohya::grouped,
};
use crate::{
    error::{Error, Result},
    files::{NamedTensor, TensorFiles},
    naming::{Place, Stack, block_number},
};

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
const QKV: usize = 3;

pub(super) fn side(name: &str) -> Option<(&str, Side)> {
    let (module, side) = [(".down.weight", Side::Down), (".up.weight", Side::Up)]
        .into_iter()
        .find_map(|(suffix, side)| Some((name.strip_suffix(suffix)?, side)))?;
    module.contains(".processor.").then_some((module, side))
}

fn bare(module: &str) -> &str {
    module.strip_prefix("diffusion_model.").unwrap_or(module)
}

/// The linear of the original layout that a pair is for.
fn place_of(module: &str) -> Option<Place> {
    let (block, pair) = module.split_once(".processor.")?;
    PAIRS.iter().find_map(|(stack, name, original)| {
        let block = block.strip_prefix(stack.original())?.strip_prefix('.')?;
        let linear = stack.linears().iter().position(|f| f.original == *original)?;
        (*name == pair).then_some(Place { stack: *stack, block: block_number(block)?, linear })
    })
}

/// The linears of diffusers' layout that the pair of a place is for; of `linear1` the MLP is left out.
fn covered(place: &Place) -> Vec<String> {
    let mut parts = place.diffusers();
    parts.truncate(QKV);
    parts
}

pub(super) fn factors(files: &Arc<TensorFiles>, under: &str) -> Result<Vec<Factors>> {
    let one = |(module, sides): (String, [Option<String>; 3])| {
        let place = place_of(&module).ok_or_else(|| {
            Error::file(files.path(), format!("`{module}` is no pair of factors that UNO or XLabs has"))
        })?;
        let rank = sides[0].as_deref().and_then(|down| files.info(down)?.shape.first().copied());
        let parts = |rows: usize| {
            let names = covered(&place);
            let each = rows.is_multiple_of(names.len()).then(|| rows / names.len())?;
            let part = |(i, name)| Part { name, rows: i * each..(i + 1) * each };
            Some(names.into_iter().enumerate().map(part).collect())
        };
        Factors::new(files, &module, &sides, rank.map(|r| r as f32), parts)
    };
    gather(files, under, side, bare)?.into_iter().map(one).collect()
}

/// The tensors of an adapter whose scale is 1.
///
/// # Errors
/// If it has a module that UNO has no name for, only some of q, k and v, or A matrices of q, k and v that differ.
pub(super) fn tensors(adapter: &Adapter) -> Result<Contents<'static>> {
    let (layout, ranges) = (&adapter.layout, adapter.layout.ranges());
    fits(layout)?;
    let mut tensors = Vec::new();
    for (place, parts) in grouped(layout)? {
        let modules: Vec<usize> = parts.iter().take(QKV).copied().flatten().collect();
        let a = |module: usize| &adapter.values[ranges[module].0.clone()];
        let bits = |module: usize| a(module).iter().map(|v| v.to_bits());
        if let Some(other) = modules.iter().find(|m| !bits(**m).eq(bits(modules[0]))) {
            return Err(Error::Setting(format!(
                "UNO's names cannot hold this adapter: q, k and v share one A there, and `{}` has another than `{}`; \
                 adapters that are trained on q, k and v apart can be written in diffusers' or kohya's names",
                layout.modules[*other].name, layout.modules[modules[0]].name
            )));
        }
        let first = &layout.modules[modules[0]];
        let up: Vec<f32> =
            modules.iter().flat_map(|m| &adapter.values[ranges[*m].1.clone()]).copied().collect();
        let name = pair_name(&place).ok_or_else(|| Error::Internal("a pair without a name".into()))?;
        let (inputs, rank) = (first.inputs, layout.rank);
        tensors.push(NamedTensor::f32(format!("{name}.down.weight"), vec![rank, inputs], a(modules[0])));
        tensors.push(NamedTensor::f32(format!("{name}.up.weight"), vec![up.len() / rank, rank], &up));
    }
    Ok(Contents { tensors, header: Vec::new() })
}

fn pair_name(place: &Place) -> Option<String> {
    let original = place.stack.linears()[place.linear].original;
    let (_, pair, _) = PAIRS.iter().find(|(s, _, o)| *s == place.stack && *o == original)?;
    Some(format!("{}.{}.processor.{pair}", place.stack.original(), place.block))
}

/// Does UNO have names for the modules of this layout?
///
/// # Errors
/// If it has a module that UNO has no name for, or only some of q, k and v.
pub(super) fn fits(layout: &AdapterLayout) -> Result<()> {
    for (place, parts) in grouped(layout)? {
        let name = |number: usize| layout.modules[number].name.clone();
        let beyond = parts.get(QKV).copied().flatten().or(match pair_name(&place) {
            Some(_) => None,
            None => parts.iter().copied().flatten().next(),
        });
        if let Some(beyond) = beyond {
            return Err(Error::Setting(format!(
                "UNO's names cannot hold this adapter: they cover q, k, v and the linear after the attention, and it has \
                 factors for `{}`; write it in diffusers' or kohya's names",
                name(beyond)
            )));
        }
        if let Some(missing) = parts.iter().take(QKV).position(Option::is_none) {
            return Err(Error::Setting(format!(
                "UNO's names cannot hold this adapter: q, k and v are one linear there, and it has no factors for `{}`; \
                 write it in diffusers' or kohya's names",
                place.diffusers()[missing]
            )));
        }
    }
    Ok(())
}
