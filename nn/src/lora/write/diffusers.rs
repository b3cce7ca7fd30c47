//! PEFT's names, as diffusers writes and reads them: `PART.MODULE.lora_A.weight [rank, inputs]` and
//! `PART.MODULE.lora_B.weight [outputs, rank]`, where the part of a pipeline is `transformer` or `unet`; rank and modules in the header
//! (`lora_adapter_metadata`).
//!
//! Alpha stands in that header, too, but ComfyUI does not read it, and diffusers refuses a file that has `.alpha` beside it.
//! So alpha is the rank here, and the strength of the adapter is in its factors, which every program reads.

use super::contents::Contents;
use crate::{
    files::NamedTensor,
    lora::{adapter::HostAdapter, header},
};

/// The tensors of an adapter whose scale is 1, and what the header says.
pub(super) fn tensors(adapter: &HostAdapter) -> Contents<'_> {
    let layout = &adapter.layout;
    let part = layout.names.part;
    let mut tensors = Vec::with_capacity(2 * layout.modules.len());
    for (module, (a, b)) in layout.modules.iter().zip(layout.ranges()) {
        let name = format!("{part}.{}", module.name);
        let (a, b) = (&adapter.values[a], &adapter.values[b]);
        let [of_a, of_b] = module.factor_axes(layout.rank);
        tensors.push(NamedTensor::borrowed(format!("{name}.lora_A.weight"), of_a, a));
        tensors.push(NamedTensor::borrowed(format!("{name}.lora_B.weight"), of_b, b));
    }
    let config = serde_json::json!({
        format!("{part}.r"): layout.rank,
        format!("{part}.lora_alpha"): alpha_as_json(layout.alpha),
        format!("{part}.target_modules"): layout.modules.iter().map(|m| &m.name).collect::<Vec<_>>(),
        format!("{part}.bias"): "none",
    });
    Contents { tensors, header: vec![(header::PEFT.into(), config.to_string())] }
}

/// Whole numbers without a point, as PEFT writes them.
fn alpha_as_json(alpha: f32) -> serde_json::Value {
    if alpha.fract() == 0.0 && alpha.abs() < 1e9 { (alpha as i64).into() } else { f64::from(alpha).into() }
}
