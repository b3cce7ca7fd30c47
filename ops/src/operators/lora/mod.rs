//! `lora`: what is trained, before the first step.

mod file;
mod patterns;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};

use prefgraph_nn::{Adapter, AdapterLayout, BackboneLayout, lora::AdaptedLinear};

use self::{
    file::AdapterFile,
    patterns::{Matches, matches},
};
use crate::{
    choices,
    operator::{Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{AdapterShape, BackboneHandle},
    random::Random,
    settings,
    settings::DataPath,
};

choices! {
    /// How A is drawn; B is zero.
    pub enum Init {
        /// Normal with standard deviation 1 / rank, as the published trainers of diffusion models do.
        Gaussian = "gaussian",
        /// Uniform within 1 / sqrt(inputs): Kaiming's with a = sqrt(5).
        Kaiming = "kaiming",
    }
}

settings! {
    /// Settings of [`Lora`].
    pub struct LoraSettings {
        /// Inner width of the factors.
        pub rank: usize = 16,
        /// The branch is scaled by alpha / rank; the rank where it is not given.
        pub alpha: Option<f64> = None,
        /// How A is drawn; B is zero.
        pub init: Init = Init::Gaussian,
        /// Which linears: ends of names at a dot, e.g. `attn.to_q`, or with `*` for any run of characters. None means every linear of the blocks but the modulations.
        pub targets: Vec<String> = Vec::new(),
        /// A safetensors file with an adapter to start from, in PEFT's names.
        pub from: Option<DataPath> = None,
        /// What the names in that file start with.
        pub from_prefix: String = String::new(),
    }
}

/// The adapter that a run starts from: a cell, whose later values come from `lora-update`.
pub struct Lora {
    settings: LoraSettings,
    file: Option<AdapterFile>,
    /// The layout of the last backbone seen, so that all adapters of a run share one.
    layout: OnceLock<Arc<AdapterLayout>>,
}

impl Lora {
    fn alpha(&self) -> f64 {
        self.settings.alpha.unwrap_or(self.settings.rank as f64)
    }

    fn matched<'a>(&self, backbone: &'a BackboneLayout) -> Result<Matches<'a>, OpError> {
        matches(&self.settings.targets, backbone)
    }

    fn layout_of(&self, backbone: &BackboneLayout) -> Result<Arc<AdapterLayout>, OpError> {
        let modules = self.matched(backbone)?.linears.into_iter().map(|l| AdaptedLinear {
            name: l.name.clone(),
            inputs: l.inputs,
            outputs: l.outputs,
        });
        let layout = AdapterLayout {
            modules: modules.collect(),
            rank: self.settings.rank,
            alpha: self.alpha() as f32,
        };
        let shared = self.layout.get_or_init(|| Arc::new(layout.clone()));
        Ok(if **shared == layout { shared.clone() } else { Arc::new(layout) })
    }

    fn drawn(&self, layout: &AdapterLayout, mut random: impl FnMut(&str) -> Random) -> Vec<f32> {
        let mut values = vec![0.0; layout.len()];
        for (module, (a, _)) in layout.modules.iter().zip(layout.ranges()) {
            // By name: another set of targets leaves the factors of the rest as they are.
            let mut random = random(&module.name);
            let count = a.len();
            let drawn = match self.settings.init {
                Init::Gaussian => {
                    let std = 1.0 / layout.rank as f32;
                    random.normals(count).into_iter().map(|x| std * x).collect::<Vec<_>>()
                }
                Init::Kaiming => {
                    let bound = 1.0 / (module.inputs as f64).sqrt();
                    (0..count).map(|_| (bound * (2.0 * random.uniform() - 1.0)) as f32).collect()
                }
            };
            values[a].copy_from_slice(&drawn);
        }
        values
    }
}

impl Operator for Lora {
    const NAME: &'static str = "lora";
    const DOC: &'static str = "The adapter a run starts from: factors for the linears that the targets match, drawn or \
                               read from a file. It is a cell: carry the result of lora-update into it.";
    const IN: [&'static str; 1] = ["backbone"];
    const OUT: [&'static str; 1] = ["adapter"];
    type Settings = LoraSettings;
    type In = (BackboneHandle,);
    type Out = (Adapter,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: LoraSettings) -> Result<Self, OpError> {
        if settings.rank == 0 {
            return Err(OpError::new("rank: at least 1 is needed"));
        }
        if let Some(alpha) = settings.alpha.filter(|a| !(*a > 0.0 && a.is_finite())) {
            return Err(OpError::new(format!("alpha {alpha}: a positive number is needed")));
        }
        let file = settings.from.as_ref().map(|p| AdapterFile::open(p.as_path(), &settings.from_prefix));
        Ok(Self { file: file.transpose()?, settings, layout: OnceLock::new() })
    }

    fn shapes(&self, (backbone,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        let layout = self.layout_of(backbone.layout())?;
        if let Some(file) = &self.file {
            file.check(&layout)?;
        }
        Ok((AdapterShape(layout),))
    }

    fn notes(&self, (backbone,): &InShapes<Self>) -> Vec<String> {
        let backbone = backbone.layout();
        let (Ok(matched), Ok(layout)) = (self.matched(backbone), self.layout_of(backbone)) else {
            return Vec::new();
        };
        let mut notes = vec![format!(
            "{} of {} linears, rank {}, alpha {}: {} trained values, {:.2} % of the {} frozen ones",
            layout.modules.len(),
            backbone.linears.len(),
            layout.rank,
            layout.alpha,
            layout.len(),
            100.0 * layout.len() as f64 / backbone.parameters.max(1) as f64,
            backbone.parameters
        )];
        notes.extend(matched.counts.iter().map(|(pattern, count)| format!("{pattern}: {count}")));
        if let Some(file) = &self.file {
            notes.push(format!("starts from {}", file.path().display()));
        }
        notes
    }

    fn forward(&self, ctx: &Ctx<'_>, (backbone,): Self::In) -> Result<(Self::Out, ()), OpError> {
        let layout = self.layout_of(backbone.0.layout())?;
        let values = match &self.file {
            Some(file) => file.read(&layout)?,
            None => self.drawn(&layout, |purpose| ctx.random_of_node(purpose)),
        };
        Ok(((Adapter { layout, values: Arc::new(values) },), ()))
    }
}
