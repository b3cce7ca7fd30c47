//! Adapters as files in the layout of PEFT, which diffusers and ComfyUI read.
//!
//! A module's factors are `PREFIX.MODULE.lora_A.weight [rank, inputs]` and `PREFIX.MODULE.lora_B.weight [outputs, rank]`;
//! rank, alpha and modules are also in the header, as diffusers writes them (`lora_adapter_metadata`).

use std::{collections::BTreeMap, path::Path, sync::Arc};

use super::{AdaptedLinear, Adapter, AdapterLayout};
use crate::{
    backbone::LinearLayout,
    error::{Error, Result},
    files::{NamedTensor, TensorFiles, nearest, write_safetensors},
};

const A: &str = ".lora_A.weight";
const B: &str = ".lora_B.weight";
const METADATA: &str = "lora_adapter_metadata";

impl Adapter {
    /// Write the adapter, read the file back, and compare every value.
    ///
    /// `prefix` is the part of a pipeline that the model is, e.g. `transformer`.
    ///
    /// # Errors
    /// If the file cannot be written, or does not read back as what was written.
    pub fn write(&self, path: &Path, prefix: &str) -> Result<()> {
        let layout = &self.layout;
        let mut tensors = Vec::with_capacity(2 * layout.modules.len());
        for (module, (a, b)) in layout.modules.iter().zip(layout.ranges()) {
            let name = format!("{prefix}.{}", module.name);
            let (a, b) = (&self.values[a], &self.values[b]);
            tensors.push(NamedTensor::f32(format!("{name}{A}"), vec![layout.rank, module.inputs], a));
            tensors.push(NamedTensor::f32(format!("{name}{B}"), vec![module.outputs, layout.rank], b));
        }
        let config = serde_json::json!({
            format!("{prefix}.r"): layout.rank,
            format!("{prefix}.lora_alpha"): alpha_as_json(layout.alpha),
            format!("{prefix}.target_modules"): layout.modules.iter().map(|m| &m.name).collect::<Vec<_>>(),
        });
        write_safetensors(path, &tensors, &[("format", "pt"), (METADATA, &config.to_string())])?;

        let linears: Vec<LinearLayout> = layout
            .modules
            .iter()
            .map(|m| LinearLayout { name: m.name.clone(), inputs: m.inputs, outputs: m.outputs })
            .collect();
        let back = Self::read(path, prefix, &linears)?;
        let same = self.values.iter().map(|v| v.to_bits()).eq(back.values.iter().map(|v| v.to_bits()));
        if back.layout != self.layout || !same {
            return Err(Error::file(path, "does not read back as the adapter that was written"));
        }
        Ok(())
    }

    /// Read an adapter for a model with these linears; keys may have the prefix or not.
    ///
    /// Without alpha in the header, alpha is the rank.
    ///
    /// # Errors
    /// If a key names no factor of the model; if a factor is missing, not finite or of another shape; if ranks differ.
    pub fn read(path: &Path, prefix: &str, linears: &[LinearLayout]) -> Result<Self> {
        let files = TensorFiles::open(path)?;
        let prefix = format!("{prefix}.");
        let mut keys: BTreeMap<&str, [Option<&str>; 2]> = BTreeMap::new();
        for key in files.names() {
            let bare = key.strip_prefix(&prefix).unwrap_or(key);
            let (module, side) = match (bare.strip_suffix(A), bare.strip_suffix(B)) {
                (Some(module), _) => (module, 0),
                (_, Some(module)) => (module, 1),
                _ => {
                    return Err(Error::file(
                        path,
                        format!("`{key}` is no factor of an adapter: expected MODULE{A} or MODULE{B}"),
                    ));
                }
            };
            if keys.entry(module).or_default()[side].replace(key).is_some() {
                return Err(Error::file(
                    path,
                    format!("`{module}` stands there with and without `{prefix}`"),
                ));
            }
        }
        let mut rank = None;
        let mut modules = Vec::new();
        let mut values = Vec::new();
        for linear in linears {
            let Some(sides) = keys.remove(linear.name.as_str()) else { continue };
            let [Some(a), Some(b)] = sides else {
                return Err(Error::file(path, format!("`{}` has only one of its two factors", linear.name)));
            };
            let found = files.info(a).and_then(|i| i.shape.first().copied()).unwrap_or(0);
            let rank = *rank.get_or_insert(found);
            if found != rank || rank == 0 {
                return Err(Error::file(path, format!("`{a}` has rank {found}, others have {rank}")));
            }
            values.extend(files.read_finite(a, &[rank, linear.inputs])?);
            values.extend(files.read_finite(b, &[linear.outputs, rank])?);
            modules.push(AdaptedLinear {
                name: linear.name.clone(),
                inputs: linear.inputs,
                outputs: linear.outputs,
            });
        }
        if let Some(unknown) = keys.keys().next() {
            let near = nearest(unknown, linears.iter().map(|l| l.name.as_str()));
            let hint = near.map_or(String::new(), |n| format!("; nearest: `{n}`"));
            return Err(Error::file(
                path,
                format!("{} modules are not in the model, e.g. `{unknown}`{hint}", keys.len()),
            ));
        }
        let Some(rank) = rank else { return Err(Error::file(path, "holds no factors")) };
        let alpha = alpha_of(&files, &prefix)?.unwrap_or(rank as f32);
        Ok(Self { layout: Arc::new(AdapterLayout { modules, rank, alpha }), values: Arc::new(values) })
    }
}

/// Whole numbers without a point, as PEFT writes them.
fn alpha_as_json(alpha: f32) -> serde_json::Value {
    if alpha.fract() == 0.0 && alpha.abs() < 1e9 { (alpha as i64).into() } else { f64::from(alpha).into() }
}

fn alpha_of(files: &TensorFiles, prefix: &str) -> Result<Option<f32>> {
    let Some(text) = files.metadata().get(METADATA) else { return Ok(None) };
    let config: serde_json::Value = serde_json::from_str(text)
        .map_err(|e| Error::file(files.path(), format!("{METADATA} in the header is no JSON: {e}")))?;
    let alpha = config.get(format!("{prefix}lora_alpha")).or_else(|| config.get("lora_alpha"));
    match alpha.map(|a| (a, a.as_f64())) {
        None => Ok(None),
        Some((_, Some(alpha))) if alpha > 0.0 => Ok(Some(alpha as f32)),
        Some((found, _)) => {
            Err(Error::file(files.path(), format!("lora_alpha is {found}: expected a positive number")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linears() -> Vec<LinearLayout> {
        [("blocks.0.to_q", 3, 2), ("blocks.0.to_k", 3, 2), ("blocks.1.to_q", 3, 4)]
            .map(|(name, inputs, outputs)| LinearLayout { name: name.into(), inputs, outputs })
            .into()
    }

    fn adapter() -> Adapter {
        let (layout, _) = AdapterLayout::matching(&linears(), &["to_q"], 2, 3.5).unwrap();
        let values = (0..layout.len()).map(|i| i as f32 / 7.0).collect();
        Adapter { layout: Arc::new(layout), values: Arc::new(values) }
    }

    #[test]
    fn an_adapter_is_read_back_as_it_was_with_its_rank_and_alpha() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapter.safetensors");
        adapter().write(&path, "transformer").unwrap();
        let back = Adapter::read(&path, "transformer", &linears()).unwrap();
        assert_eq!(back.layout, adapter().layout);
        assert_eq!(back.values, adapter().values);
        let files = TensorFiles::open(&path).unwrap();
        assert_eq!(files.info("transformer.blocks.1.to_q.lora_B.weight").unwrap().shape, [4, 2]);
        let config: serde_json::Value = serde_json::from_str(&files.metadata()[METADATA]).unwrap();
        assert_eq!(config["transformer.r"], 2);
        assert_eq!(config["transformer.lora_alpha"], 3.5);
        assert_eq!(config["transformer.target_modules"][1], "blocks.1.to_q");
        assert_eq!(files.metadata()["format"], "pt");
    }

    fn write_keys(path: &Path, keys: &[(&str, Vec<usize>)]) {
        let tensors: Vec<_> = keys
            .iter()
            .map(|(k, s)| NamedTensor::f32(*k, s.clone(), &vec![0.5; s.iter().product()]))
            .collect();
        write_safetensors(path, &tensors, &[]).unwrap();
    }

    #[test]
    fn keys_without_prefix_are_read_and_alpha_is_then_the_rank() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapter.safetensors");
        let keys = [("blocks.0.to_k.lora_A.weight", vec![2, 3]), ("blocks.0.to_k.lora_B.weight", vec![2, 2])];
        write_keys(&path, &keys);
        let adapter = Adapter::read(&path, "transformer", &linears()).unwrap();
        assert_eq!((adapter.layout.rank, adapter.layout.alpha), (2, 2.0));
        assert_eq!(adapter.layout.modules[0].name, "blocks.0.to_k");
    }

    #[test]
    fn files_that_are_no_adapter_of_the_model_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapter.safetensors");
        type Fault = (Vec<(&'static str, Vec<usize>)>, &'static str);
        let faults: [Fault; 5] = [
            (vec![("blocks.0.to_q.lora_A.weight", vec![2, 3])], "only one of its two factors"),
            (
                vec![
                    ("blocks.0.to_p.lora_A.weight", vec![2, 3]),
                    ("blocks.0.to_p.lora_B.weight", vec![2, 2]),
                ],
                "nearest: `blocks.0.to_",
            ),
            (
                vec![
                    ("blocks.0.to_q.lora_A.weight", vec![2, 5]),
                    ("blocks.0.to_q.lora_B.weight", vec![2, 2]),
                ],
                "expected [2, 3], got [2, 5]",
            ),
            (vec![("blocks.0.to_q.alpha", vec![1])], "no factor of an adapter"),
            (vec![], "holds no factors"),
        ];
        for (keys, message) in faults {
            write_keys(&path, &keys);
            let error = Adapter::read(&path, "transformer", &linears()).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
