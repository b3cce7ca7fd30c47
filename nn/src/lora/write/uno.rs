//! UNO's names: q, k and v as one pair with one A, no MLP, no modulations, no alpha.

use super::{contents::Contents, groups::grouped};
use crate::{
    error::{Error, Result},
    files::NamedTensor,
    lora::{
        adapter::{AdapterLayout, HostAdapter},
        names::uno::{QKV, pair_name},
    },
};

/// The tensors of an adapter whose scale is 1.
///
/// # Errors
/// If it has a module that UNO has no name for, only some of q, k and v, or A matrices of q, k and v that differ.
pub(super) fn tensors(adapter: &HostAdapter) -> Result<Contents<'static>> {
    let (layout, ranges) = (&adapter.layout, adapter.layout.ranges());
    fits(layout)?;
    let mut tensors = Vec::new();
    for (place, parts) in grouped(layout)?.fused {
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
        let name =
            pair_name(layout.names, &place).ok_or_else(|| Error::Internal("a pair without a name".into()))?;
        let (inputs, rank) = (first.inputs, layout.rank);
        tensors.push(NamedTensor::f32(format!("{name}.down.weight"), vec![rank, inputs], a(modules[0])));
        tensors.push(NamedTensor::f32(format!("{name}.up.weight"), vec![up.len() / rank, rank], &up));
    }
    Ok(Contents { tensors, header: Vec::new() })
}

/// Does UNO have names for the modules of this layout?
///
/// # Errors
/// If it has a module that UNO has no name for, or only some of q, k and v.
pub(super) fn fits(layout: &AdapterLayout) -> Result<()> {
    let groups = grouped(layout)?;
    let name = |number: usize| layout.modules[number].name.clone();
    let beyond_names = |beyond: usize| {
        Error::Setting(format!(
            "UNO's names cannot hold this adapter: they cover q, k, v and the linear after the attention, and it has \
             factors for `{}`; write it in diffusers' or kohya's names",
            name(beyond)
        ))
    };
    if let Some((_, beyond)) = groups.outside.first() {
        return Err(beyond_names(*beyond));
    }
    for (place, parts) in groups.fused {
        let beyond = parts.get(QKV).copied().flatten().or(match pair_name(layout.names, &place) {
            Some(_) => None,
            None => parts.iter().copied().flatten().next(),
        });
        if let Some(beyond) = beyond {
            return Err(beyond_names(beyond));
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
