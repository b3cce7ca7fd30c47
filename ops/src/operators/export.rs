//! `export`: the adapter as a file.

use prefgraph_nn::{Adapter, lora::AdapterFormat};

use crate::{
    choices,
    operator::{Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{Effect, Effects, EffectsShape},
    settings,
};

choices! {
    /// How an adapter file names its tensors.
    pub enum Format {
        /// `adapter.safetensors` in PEFT's names, for diffusers and ComfyUI.
        Diffusers = "diffusers",
        /// `adapter.kohya.safetensors`, in the names of sd-scripts.
        Kohya = "kohya",
        /// `adapter.uno.safetensors`, in the names of UNO's own adapter.
        Uno = "uno",
        /// `adapter.ip_adapter.safetensors`: the IP-Adapter's file with what was trained of it.
        IpAdapter = "ip_adapter",
    }
}

impl From<Format> for AdapterFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Diffusers => Self::Diffusers,
            Format::Kohya => Self::Kohya,
            Format::Uno => Self::Uno,
            Format::IpAdapter => Self::IpAdapter,
        }
    }
}

settings! {
    /// Settings of [`Export`].
    pub struct ExportSettings {
        /// Steps between two exports; 0 means only at the end.
        pub every: u64 = 0,
        /// Steps of the whole run: the last is always exported. 0 means unknown.
        pub steps: u64 = 0,
        /// Names of the tensors, a file for each: `adapter.safetensors`, `adapter.kohya.safetensors`, `adapter.uno.safetensors`; every file is read back and compared. UNO's names hold no q, k and v that are trained. Linears that are trained whole, and no others, take `ip_adapter`: a copy of their IP-Adapter's file.
        pub formats: Vec<Format> = vec![Format::Diffusers],
    }
}

/// The adapter after a step, with what other programs need to read it.
pub struct Export(ExportSettings);

impl Export {
    fn formats(&self) -> impl Iterator<Item = AdapterFormat> {
        self.0.formats.iter().copied().map(AdapterFormat::from)
    }
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
        if settings.formats.is_empty() {
            return Err(OpError::new("formats: at least one is needed, e.g. [diffusers]"));
        }
        Ok(Self(settings))
    }

    fn shapes(&self, (adapter,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        // Before the first step rather than after the last one.
        self.formats().try_for_each(|format| adapter.0.writable(format))?;
        Ok((EffectsShape { bytes: adapter.0.len() * size_of::<f32>() },))
    }

    fn forward(&self, ctx: &Ctx<'_>, (adapter,): Self::In) -> Result<(Self::Out, ()), OpError> {
        let done = ctx.step + 1;
        let due = (self.0.every > 0 && done.is_multiple_of(self.0.every)) || done == self.0.steps;
        let effects = if due { vec![Effect::Export(adapter, self.formats().collect())] } else { Vec::new() };
        Ok(((Effects(effects),), ()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prefgraph_nn::{AdapterLayout, LinearLayout, models::flux::NAMES};

    use super::*;
    use crate::operators::testing::Bench;

    fn adapter(module: &str) -> Adapter {
        let modules = vec![LinearLayout { name: module.into(), inputs: 4, outputs: 4, window: None }];
        let layout = Arc::new(AdapterLayout::of_factors(&NAMES, modules, 1, 1.0));
        Adapter { values: vec![0.5; layout.len()].into(), layout }
    }

    #[test]
    fn the_adapter_is_due_every_so_many_steps_and_after_the_last() {
        let bench = Bench::new();
        let adapter = adapter("transformer_blocks.0.attn.to_out.0");
        let op = Export::new(ExportSettings { every: 3, steps: 8, ..Default::default() }).unwrap();
        let due = |step| !op.forward(&bench.at(step), (adapter.clone(),)).unwrap().0.0.0.is_empty();
        assert_eq!((0..8).filter(|s| due(*s)).collect::<Vec<_>>(), [2, 5, 7]);
    }

    #[test]
    fn a_format_that_cannot_hold_what_is_trained_is_refused_before_the_run() {
        let shapes = |module: &str, formats: &[Format]| {
            let settings = ExportSettings { every: 1, formats: formats.to_vec(), ..Default::default() };
            let adapter = adapter(module);
            Export::new(settings)?.shapes((crate::Port::shape(&adapter),), 0).map(drop)
        };
        let all = [Format::Diffusers, Format::Kohya, Format::Uno];
        shapes("transformer_blocks.0.attn.to_out.0", &all).unwrap();
        shapes("transformer_blocks.0.attn.to_q", &all[..2]).unwrap();
        let error = shapes("transformer_blocks.0.attn.to_q", &all).unwrap_err().to_string();
        assert!(error.contains("UNO's names") && error.contains("diffusers' or kohya's"), "{error}");
        let error = shapes("blocks.0.to_q", &all[..2]).unwrap_err().to_string();
        assert!(error.contains("no linear of a FLUX transformer"), "{error}");
        assert!(shapes("blocks.0.to_q", &[]).is_err());
    }
}
