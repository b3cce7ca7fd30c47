//! `export`: the adapter as a file.

use prefgraph_nn::Adapter;
use serde_json::json;

use crate::{
    operator::{Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{Effect, Effects, EffectsShape},
    settings,
};

settings! {
    /// Settings of [`Export`].
    pub struct ExportSettings {
        /// Steps between two exports; 0 means only at the end.
        pub every: u64 = 0,
        /// Steps of the whole run: the last is always exported. 0 means unknown.
        pub steps: u64 = 0,
    }
}

/// The adapter after a step, with what other programs need to read it.
pub struct Export(ExportSettings);

/// What PEFT and diffusers look for beside the tensors; both read `lora_adapter_metadata`.
fn metadata(adapter: &Adapter, step: u64) -> Vec<(String, String)> {
    let layout = &adapter.layout;
    let modules: Vec<&str> = layout.modules.iter().map(|m| m.name.as_str()).collect();
    let config = json!({
        "transformer.r": layout.rank,
        "transformer.lora_alpha": layout.alpha,
        "transformer.target_modules": modules,
        "transformer.bias": "none",
    });
    [
        ("format", "pt".to_owned()),
        ("lora_adapter_metadata", config.to_string()),
        ("prefgraph.step", step.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .to_vec()
}

impl Operator for Export {
    const NAME: &'static str = "export";
    const DOC: &'static str =
        "Have the adapter written to the run's folder, every so many steps and after the last.";
    const IN: [&'static str; 1] = ["adapter"];
    const OUT: [&'static str; 1] = ["file"];
    type Settings = ExportSettings;
    type In = (Adapter,);
    type Out = (Effects,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: ExportSettings) -> Result<Self, OpError> {
        if settings.every == 0 && settings.steps == 0 {
            return Err(OpError::new(
                "nothing would be exported: set `every`, or `steps` to those of the run",
            ));
        }
        Ok(Self(settings))
    }

    fn shapes(&self, (adapter,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((EffectsShape { bytes: adapter.0.len() * size_of::<f32>() },))
    }

    fn forward(&self, ctx: &Ctx<'_>, (adapter,): Self::In) -> Result<(Self::Out, ()), OpError> {
        let done = ctx.step + 1;
        let due = (self.0.every > 0 && done.is_multiple_of(self.0.every)) || done == self.0.steps;
        let effects = if due {
            let metadata = metadata(&adapter, done);
            vec![Effect::Export(adapter, metadata)]
        } else {
            Vec::new()
        };
        Ok(((Effects(effects),), ()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prefgraph_nn::AdapterLayout;

    use super::*;
    use crate::operators::testing::Bench;

    #[test]
    fn the_adapter_is_due_every_so_many_steps_and_after_the_last() {
        let bench = Bench::new();
        let layout = Arc::new(AdapterLayout { modules: Vec::new(), rank: 4, alpha: 8.0 });
        let adapter = Adapter { layout, values: Arc::default() };
        let op = Export::new(ExportSettings { every: 3, steps: 8 }).unwrap();
        let due = |step| !op.forward(&bench.at(step), (adapter.clone(),)).unwrap().0.0.0.is_empty();
        assert_eq!((0..8).filter(|s| due(*s)).collect::<Vec<_>>(), [2, 5, 7]);
        let config = metadata(&adapter, 1)[1].1.clone();
        assert!(config.contains("\"transformer.lora_alpha\":8"), "{config}");
    }
}
