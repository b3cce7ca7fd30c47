//! PEFT's names, as diffusers writes and reads them: `transformer.MODULE.lora_A.weight [rank, inputs]` and
//! `transformer.MODULE.lora_B.weight [outputs, rank]`; rank, alpha and modules in the header
//! (`lora_adapter_metadata`), without which alpha is the rank.

use std::sync::Arc;

use super::{
    Adapter,
    format::{Contents, Factors, Part, Side, gather},
};
use crate::{
    error::{Error, Result},
    files::{NamedTensor, TensorFiles},
};

/// The part of a pipeline that the adapted model is.
const PREFIX: &str = "transformer.";
const METADATA: &str = "lora_adapter_metadata";

pub(super) fn side(name: &str) -> Option<(&str, Side)> {
    let down = name.strip_suffix(".lora_A.weight").map(|module| (module, Side::Down));
    down.or_else(|| name.strip_suffix(".lora_B.weight").map(|module| (module, Side::Up)))
}

/// Without what PEFT and diffusers put before it.
fn bare(module: &str) -> &str {
    let module = module.strip_prefix("base_model.model.").unwrap_or(module);
    module.strip_prefix(PREFIX).unwrap_or(module)
}

pub(super) fn factors(files: &Arc<TensorFiles>, under: &str) -> Result<Vec<Factors>> {
    let alpha = alpha(files)?;
    let one = |(module, sides): (String, _)| {
        let part = |rows| Some(vec![Part { name: module.clone(), rows: 0..rows }]);
        Factors::new(files, &module, &sides, alpha, part)
    };
    gather(files, under, side, bare)?.into_iter().map(one).collect()
}

/// The alpha of the header, if it states one.
fn alpha(files: &TensorFiles) -> Result<Option<f32>> {
    let Some(text) = files.metadata().get(METADATA) else { return Ok(None) };
    let config: serde_json::Value = serde_json::from_str(text)
        .map_err(|e| Error::file(files.path(), format!("{METADATA} in the header is no JSON: {e}")))?;
    let get = |key: &str| config.get(format!("{PREFIX}{key}")).or_else(|| config.get(key));
    if get("alpha_pattern").and_then(|p| p.as_object()).is_some_and(|p| !p.is_empty()) {
        return Err(Error::file(
            files.path(),
            "states alphas for single modules (alpha_pattern): expected one alpha",
        ));
    }
    if get("use_rslora").and_then(serde_json::Value::as_bool) == Some(true) {
        let message =
            "is scaled by alpha over the root of the rank (use_rslora): expected alpha over the rank";
        return Err(Error::file(files.path(), message));
    }
    match get("lora_alpha").map(|a| (a, a.as_f64())) {
        None => Ok(None),
        Some((_, Some(alpha))) if alpha > 0.0 => Ok(Some(alpha as f32)),
        Some((found, _)) => {
            Err(Error::file(files.path(), format!("lora_alpha is {found}: expected a positive number")))
        }
    }
}

/// The tensors of an adapter, and what the header says.
pub(super) fn tensors(adapter: &Adapter) -> Contents<'_> {
    let layout = &adapter.layout;
    let mut tensors = Vec::with_capacity(2 * layout.modules.len());
    for (module, (a, b)) in layout.modules.iter().zip(layout.ranges()) {
        let name = format!("{PREFIX}{}", module.name);
        let (a, b) = (&adapter.values[a], &adapter.values[b]);
        tensors.push(NamedTensor::borrowed(
            format!("{name}.lora_A.weight"),
            vec![layout.rank, module.inputs],
            a,
        ));
        tensors.push(NamedTensor::borrowed(
            format!("{name}.lora_B.weight"),
            vec![module.outputs, layout.rank],
            b,
        ));
    }
    let config = serde_json::json!({
        format!("{PREFIX}r"): layout.rank,
        format!("{PREFIX}lora_alpha"): alpha_as_json(layout.alpha),
        format!("{PREFIX}target_modules"): layout.modules.iter().map(|m| &m.name).collect::<Vec<_>>(),
        format!("{PREFIX}bias"): "none",
    });
    Contents { tensors, header: vec![(METADATA.into(), config.to_string())] }
}

/// Whole numbers without a point, as PEFT writes them.
fn alpha_as_json(alpha: f32) -> serde_json::Value {
    if alpha.fract() == 0.0 && alpha.abs() < 1e9 { (alpha as i64).into() } else { f64::from(alpha).into() }
}
