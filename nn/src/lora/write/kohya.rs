//! The names of kohya's sd-scripts, which ComfyUI and most others read: `lora_unet_` and the original name of the
//! linear with underscores, then `.lora_down.weight`, `.lora_up.weight` and `.alpha`.
//!
//! q, k and v are one linear there. Factors that were trained apart are written one below the other, with `up` in
//! blocks along the diagonal: the rank is that of all parts together, and so is alpha, so that the scale stays. This is
//! what sd-scripts' own conversion writes, and what diffusers takes apart again.

use super::{contents::Contents, groups::grouped};
use crate::{
    error::{Error, Result},
    files::NamedTensor,
    lora::{adapter::HostAdapter, factors::blocks, header},
    naming::{Outside, Place},
};

const PREFIX: &str = "lora_unet_";

/// The tensors of an adapter, and what the header says.
///
/// # Errors
/// If a module is no linear of the network.
pub(super) fn tensors(adapter: &HostAdapter) -> Result<Contents<'static>> {
    let layout = &adapter.layout;
    let mut tensors = Vec::new();
    let groups = grouped(layout)?;
    let fused =
        groups.fused.iter().map(|(place, parts)| Ok((place.original(), fuse(adapter, place, parts)?)));
    let outside =
        groups.outside.iter().map(|(o, module)| Ok((o.original.to_owned(), alone(adapter, o, *module))));
    for group in fused.chain(outside) {
        let (original, Group { axes, rank, down, up }) = group?;
        let [of_down, of_up] = axes;
        let name = format!("{PREFIX}{}", original.replace('.', "_"));
        tensors.push(NamedTensor::f32(format!("{name}.lora_down.weight"), of_down, &down));
        tensors.push(NamedTensor::f32(format!("{name}.lora_up.weight"), of_up, &up));
        let alpha = layout.alpha * (rank / layout.rank) as f32;
        tensors.push(NamedTensor::f32(format!("{name}.alpha"), Vec::new(), &[alpha]));
    }
    let header = [
        ("ss_network_module", layout.names.kohya.0.to_owned()),
        ("ss_network_dim", layout.rank.to_string()),
        (header::NETWORK_ALPHA, layout.alpha.to_string()),
        ("ss_base_model_version", layout.names.kohya.1.to_owned()),
    ];
    Ok(Contents { tensors, header: header.map(|(k, v)| (k.to_owned(), v)).to_vec() })
}

struct Group {
    /// Of both factors.
    axes: [Vec<usize>; 2],
    rank: usize,
    down: Vec<f32>,
    up: Vec<f32>,
}

/// The factors of a linear outside the blocks.
fn alone(adapter: &HostAdapter, outside: &Outside, module: usize) -> Group {
    let (rank, linear) = (adapter.layout.rank, &adapter.layout.modules[module]);
    let (a, b) = adapter.layout.ranges()[module].clone();
    let (down, mut up) = (adapter.values[a].to_vec(), adapter.values[b].to_vec());
    if outside.swapped {
        let half = up.len() / 2;
        up.rotate_left(half);
    }
    Group { axes: linear.factor_axes(rank), rank, down, up }
}

/// One pair of factors for all parts of a linear.
fn fuse(adapter: &HostAdapter, place: &Place, parts: &[Option<usize>]) -> Result<Group> {
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
                let axes = [vec![r, inputs], vec![outputs, r]];
                return Ok(Group { axes, rank: r, down: first.to_vec(), up });
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
    Ok(Group { axes: [vec![rank, inputs], vec![outputs, rank]], rank, down, up })
}
