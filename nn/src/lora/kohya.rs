//! The names of kohya's sd-scripts, which ComfyUI and most others read: `lora_unet_` and the original name of the
//! linear with underscores, then `.lora_down.weight`, `.lora_up.weight` and `.alpha`.
//!
//! q, k and v are one linear there. Factors that were trained apart are written one below the other, with `up` in
//! blocks along the diagonal: the rank is that of all parts together, and so is alpha, so that the scale stays. This is
//! what sd-scripts' own conversion writes, and what diffusers takes apart again.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Adapter, AdapterLayout,
    format::{Contents, Factors, Part, Side, blocks, gather},
};
use crate::{
    error::{Error, Result},
    files::{NamedTensor, TensorFiles, TensorView},
    naming::Place,
};

const PREFIXES: [&str; 2] = ["lora_unet_", "lora_transformer_"];
/// Alpha of the whole network, in the header.
pub(super) const NETWORK_ALPHA: &str = "ss_network_alpha";

pub(super) fn side(name: &str) -> Option<(&str, Side)> {
    [(".lora_down.weight", Side::Down), (".lora_up.weight", Side::Up), (".alpha", Side::Alpha)]
        .into_iter()
        .find_map(|(suffix, side)| Some((name.strip_suffix(suffix)?, side)))
}

fn bare(module: &str) -> &str {
    PREFIXES.iter().find_map(|p| module.strip_prefix(p)).unwrap_or(module)
}

pub(super) fn factors(files: &Arc<TensorFiles>, under: &str) -> Result<Vec<Factors>> {
    gather(files, under, side, bare)?.into_iter().map(|(module, sides)| one(files, &module, &sides)).collect()
}

fn one(files: &Arc<TensorFiles>, module: &str, sides: &[Option<String>; 3]) -> Result<Factors> {
    let alpha = match &sides[Side::Alpha as usize] {
        None => sides[0].as_deref().and_then(|down| files.info(down)?.shape.first().map(|r| *r as f32)),
        Some(name) => match TensorView::whole(files, name)?.read()[..] {
            [alpha] => Some(alpha),
            _ => return Err(Error::file(files.path(), format!("`{name}` is no single number"))),
        },
    };
    if let Some(place) = Place::of_underscored_original(module) {
        let parts = |rows| {
            let parts = place.diffusers().into_iter().zip(place.rows(rows)?);
            Some(parts.map(|(name, rows)| Part { name, rows }).collect())
        };
        return Factors::new(files, module, sides, alpha, parts);
    }
    if let Some((place, part)) = Place::of_underscored_diffusers(module) {
        let part = |rows| Some(vec![Part { name: place.diffusers().swap_remove(part), rows: 0..rows }]);
        return Factors::new(files, module, sides, alpha, part);
    }
    let why = if module.starts_with("lora_te") {
        "belongs to a text encoder: an adapter is for the transformer alone"
    } else {
        "is none of the linears in the blocks of a FLUX transformer"
    };
    Err(Error::file(files.path(), format!("`{module}` {why}")))
}

/// The tensors of an adapter, and what the header says.
///
/// # Errors
/// If a module is no linear of a FLUX transformer.
pub(super) fn tensors(adapter: &Adapter) -> Result<Contents<'static>> {
    let layout = &adapter.layout;
    let mut tensors = Vec::new();
    for (place, parts) in grouped(layout)? {
        let name = format!("{}{}", PREFIXES[0], place.original().replace('.', "_"));
        let Group { inputs, rank, down, up, outputs } = fuse(adapter, &place, &parts)?;
        tensors.push(NamedTensor::f32(format!("{name}.lora_down.weight"), vec![rank, inputs], &down));
        tensors.push(NamedTensor::f32(format!("{name}.lora_up.weight"), vec![outputs, rank], &up));
        let alpha = layout.alpha * (rank / layout.rank) as f32;
        tensors.push(NamedTensor::f32(format!("{name}.alpha"), Vec::new(), &[alpha]));
    }
    let header = [
        ("ss_network_module", "networks.lora_flux".to_owned()),
        ("ss_network_dim", layout.rank.to_string()),
        (NETWORK_ALPHA, layout.alpha.to_string()),
        ("ss_base_model_version", "flux1".to_owned()),
    ];
    Ok(Contents { tensors, header: header.map(|(k, v)| (k.to_owned(), v)).to_vec() })
}

/// The modules of a layout by the linear of the original layout that they are parts of: for each part the number of
/// its module.
///
/// # Errors
/// If a module is no linear of a FLUX transformer.
pub(super) fn grouped(layout: &AdapterLayout) -> Result<BTreeMap<Place, Vec<Option<usize>>>> {
    let mut groups: BTreeMap<Place, Vec<Option<usize>>> = BTreeMap::new();
    for (number, module) in layout.modules.iter().enumerate() {
        let (place, part) = Place::of_diffusers(&module.name).ok_or_else(|| {
            Error::Setting(format!(
                "`{}` is no linear of a FLUX transformer, which kohya's and UNO's names are made for: write the adapter \
                 in diffusers' names",
                module.name
            ))
        })?;
        groups.entry(place).or_insert_with(|| vec![None; place.diffusers().len()])[part] = Some(number);
    }
    Ok(groups)
}

struct Group {
    inputs: usize,
    outputs: usize,
    rank: usize,
    down: Vec<f32>,
    up: Vec<f32>,
}

/// One pair of factors for all parts of a linear.
fn fuse(adapter: &Adapter, place: &Place, parts: &[Option<usize>]) -> Result<Group> {
    let (layout, ranges) = (&adapter.layout, adapter.layout.ranges());
    let r = layout.rank;
    let there: Vec<(usize, usize)> =
        parts.iter().enumerate().filter_map(|(part, module)| module.map(|m| (part, m))).collect();
    let widths = there.iter().map(|(part, m)| {
        let module = &layout.modules[*m];
        place.rows_beside(*part, module.outputs).map(|rows| (module.inputs, rows))
    });
    let mut widths: Vec<_> = widths.collect();
    widths.dedup();
    let [Some((inputs, rows))] = &widths[..] else {
        return Err(Error::Setting(format!(
            "the parts of `{}` have widths that do not go together in one linear: {}",
            place.original(),
            place.diffusers().join(", ")
        )));
    };
    let (inputs, outputs) = (*inputs, rows.iter().sum());
    let a = |module: usize| &adapter.values[ranges[module].0.clone()];
    let b = |module: usize| &adapter.values[ranges[module].1.clone()];
    if there.len() == parts.len() {
        let first = a(there[0].1);
        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        if there.iter().all(|(_, m)| bits(a(*m)) == bits(first)) {
            let up: Vec<f32> = there.iter().flat_map(|(_, m)| b(*m)).copied().collect();
            let ranges = place.rows(outputs).unwrap_or_default();
            // What happens to look like blocks would be read as blocks.
            if parts.len() == 1 || blocks(&up, r, &ranges).is_none() {
                return Ok(Group { inputs, outputs, rank: r, down: first.to_vec(), up });
            }
        }
    }
    let rank = r * parts.len();
    let mut down = vec![0.0; rank * inputs];
    let mut up = vec![0.0; outputs * rank];
    for (part, module) in there {
        down[part * r * inputs..(part + 1) * r * inputs].copy_from_slice(a(module));
        let top: usize = rows[..part].iter().sum();
        for (row, values) in b(module).chunks_exact(r).enumerate() {
            let at = (top + row) * rank + part * r;
            up[at..at + r].copy_from_slice(values);
        }
    }
    Ok(Group { inputs, outputs, rank, down, up })
}
