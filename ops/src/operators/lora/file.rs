//! An adapter file in PEFT's names, as the start of a run.

use std::path::{Path, PathBuf};

use prefgraph_nn::{AdapterLayout, files::TensorFiles};

use crate::operator::OpError;

/// An open file. Names may carry the prefixes that diffusers and PEFT add.
pub(super) struct AdapterFile {
    files: TensorFiles,
    path: PathBuf,
    /// Prefixes to try, longest first.
    prefixes: Vec<String>,
}

impl AdapterFile {
    pub(super) fn open(path: &Path, prefix: &str) -> Result<Self, OpError> {
        let files = TensorFiles::open(path)?;
        let prefixes = ["base_model.model.", "transformer.", ""].map(|p| format!("{prefix}{p}")).to_vec();
        Ok(Self { files, path: path.into(), prefixes })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Key and axes of every factor, in the order of an adapter's values.
    fn keys(&self, layout: &AdapterLayout) -> Vec<(String, [usize; 2])> {
        let first = layout.modules.first().map_or("", |m| m.name.as_str());
        let there = |p: &&String| self.files.info(&format!("{p}{first}.lora_A.weight")).is_some();
        let prefix = self.prefixes.iter().find(there).or(self.prefixes.last()).map_or("", String::as_str);
        let module = |m: &prefgraph_nn::lora::AdaptedLinear| {
            [
                (format!("{prefix}{}.lora_A.weight", m.name), [layout.rank, m.inputs]),
                (format!("{prefix}{}.lora_B.weight", m.name), [m.outputs, layout.rank]),
            ]
        };
        layout.modules.iter().flat_map(module).collect()
    }

    /// Are there factors for exactly these linears, of this rank?
    pub(super) fn check(&self, layout: &AdapterLayout) -> Result<(), OpError> {
        let keys = self.keys(layout);
        for (key, axes) in &keys {
            let Some(info) = self.files.info(key) else {
                let mut there = self.files.names().filter(|n| n.contains(".lora_"));
                let example = there.next().map_or("none".into(), |n| format!("e.g. `{n}`"));
                return Err(OpError::new(format!(
                    "{} has no `{key}`; factors that it has: {example} (see `from_prefix` and `targets`)",
                    self.path.display()
                )));
            };
            if info.shape != axes {
                return Err(OpError::new(format!(
                    "`{key}` of {} has axes {:?}, the graph wants {axes:?}: is `rank` the file's?",
                    self.path.display(),
                    info.shape
                )));
            }
        }
        let prefix = self.prefixes.last().map_or("", String::as_str);
        let surplus = self.files.names().find(|n| {
            n.starts_with(prefix) && n[prefix.len()..].contains(".lora_") && !keys.iter().any(|(k, _)| k == n)
        });
        if let Some(name) = surplus {
            return Err(OpError::new(format!(
                "{} has `{name}`, a factor of a linear that `targets` does not match",
                self.path.display()
            )));
        }
        self.check_alpha(layout)
    }

    /// The alpha that PEFT's metadata states, if it does, must be the graph's.
    fn check_alpha(&self, layout: &AdapterLayout) -> Result<(), OpError> {
        let Some(config) = self.files.metadata().get("lora_adapter_metadata") else { return Ok(()) };
        let Ok(config) = serde_json::from_str::<serde_json::Value>(config) else { return Ok(()) };
        let stated = ["transformer.lora_alpha", "lora_alpha"].iter().find_map(|k| config.get(k)?.as_f64());
        match stated {
            Some(alpha) if alpha as f32 != layout.alpha => Err(OpError::new(format!(
                "{} was trained with alpha {alpha}, the graph says {}: set `alpha`",
                self.path.display(),
                layout.alpha
            ))),
            _ => Ok(()),
        }
    }

    /// All values, in the order of the layout.
    pub(super) fn read(&self, layout: &AdapterLayout) -> Result<Vec<f32>, OpError> {
        self.check(layout)?;
        let mut values = Vec::with_capacity(layout.len());
        for (key, axes) in self.keys(layout) {
            values.extend(self.files.read_finite(&key, &axes)?);
        }
        Ok(values)
    }
}
