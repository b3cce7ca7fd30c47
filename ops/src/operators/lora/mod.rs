//! `lora`: the adapter before the first step.

mod start;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};

use prefgraph_nn::{
    Adapter, AdapterLayout, BackboneLayout,
    lora::{self, AdapterFile, AdapterFormat, PatternMatch},
};

use self::start::Start;
use crate::{
    choices,
    operator::{Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{AdapterShape, BackboneHandle},
    resume::{External, Restart, Restated},
    settings,
    settings::DataPath,
    words::count,
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
        /// Which linears are trained whole, in the same patterns: keys and values of an IP-Adapter, `["*.to_k_ip", "*.to_v_ip"]`, and those of its resampler where it is inside. They start at their frozen weights. Without `targets`, no other linear is trained then.
        pub whole: Vec<String> = Vec::new(),
        /// An adapter to start from: a safetensors file in the names of diffusers, PEFT, ComfyUI, kohya or UNO, or the folder that PEFT or diffusers saved.
        pub from: Option<DataPath> = None,
        /// What the names in that file start with.
        pub from_prefix: String = String::new(),
    }
}

impl From<Init> for lora::Init {
    fn from(init: Init) -> Self {
        match init {
            Init::Gaussian => Self::Gaussian,
            Init::Kaiming => Self::KaimingUniform,
        }
    }
}

/// The adapter that a run starts from: a cell, whose later values come from `lora-update`.
pub struct Lora {
    settings: LoraSettings,
    file: Option<Start>,
    /// The layout for the first backbone seen, so that all adapters of a run share one.
    layout: OnceLock<Arc<AdapterLayout>>,
}

impl Lora {
    fn matched(&self, backbone: &BackboneLayout) -> Result<(Arc<AdapterLayout>, Vec<PatternMatch>), OpError> {
        let rank = self.settings.rank;
        let alpha = self.settings.alpha.unwrap_or(rank as f64) as f32;
        let LoraSettings { targets, whole, .. } = &self.settings;
        let linears = &backbone.linears;
        let (mut layout, mut matches) = match targets.is_empty() && !whole.is_empty() {
            true => (AdapterLayout::of_factors(linears.names, Vec::new(), rank, alpha), Vec::new()),
            false => AdapterLayout::matching(linears, targets, rank, alpha)?,
        };
        if !whole.is_empty() {
            let (with_whole, named) = layout.with_whole(linears, whole)?;
            layout = with_whole;
            matches.extend(named);
        }
        let shared = self.layout.get_or_init(|| Arc::new(layout.clone()));
        Ok((if **shared == layout { shared.clone() } else { Arc::new(layout) }, matches))
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
        if settings.from.is_some() && settings.targets.is_empty() && !settings.whole.is_empty() {
            return Err(OpError::new(
                "from: without `targets` there are no factors that could start from a file; `whole` starts at the frozen weights",
            ));
        }
        let file = settings.from.as_ref().map(|p| Start::open(p.as_path(), &settings.from_prefix));
        Ok(Self { file: file.transpose()?, settings, layout: OnceLock::new() })
    }

    fn shapes(&self, (backbone,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        let (layout, _) = self.matched(backbone.layout())?;
        if let Some(file) = &self.file {
            file.check(&layout, &backbone.layout().linears)?;
        }
        Ok((AdapterShape(layout),))
    }

    fn notes(&self, (backbone,): &InShapes<Self>) -> Vec<String> {
        let backbone = backbone.layout();
        let Ok((layout, matches)) = self.matched(backbone) else { return Vec::new() };
        let factors = match (layout.modules.len(), layout.whole.len()) {
            (factors, 0) => format!(
                "{factors} of {} linears, rank {}, alpha {}",
                backbone.linears.len(),
                layout.rank,
                layout.alpha
            ),
            (0, whole) => format!("{whole} of {} linears whole", backbone.linears.len()),
            (factors, whole) => format!(
                "{factors} of {} linears, rank {}, alpha {}, and {whole} whole",
                backbone.linears.len(),
                layout.rank,
                layout.alpha
            ),
        };
        let mut notes = vec![format!(
            "{factors}: {} trained values, {:.2} % of the {} frozen ones",
            layout.len(),
            100.0 * layout.len() as f64 / backbone.parameters.max(1) as f64,
            backbone.parameters
        )];
        notes.extend(matches.iter().map(|m| format!("{}: {}", m.pattern, m.linears)));
        if let Some(file) = &self.file {
            notes.extend(file.notes(&layout));
        }
        if !layout.modules.is_empty() && layout.is_rounded_in(AdapterFormat::Diffusers) {
            notes.push(format!(
                "alpha / rank, {} / {}, is no power of two: in `adapter.safetensors`, where it is multiplied into B, each value \
                 is rounded by up to 6e-8 of itself; kohya's names keep alpha",
                layout.alpha, layout.rank
            ));
        }
        notes
    }

    fn external(&self) -> Vec<External> {
        self.settings
            .from
            .iter()
            .map(|path| External::files("from", AdapterFile::files_at(path.as_path())))
            .collect()
    }

    fn restated(&self, old: &LoraSettings, restart: &Restart<'_>) -> Option<Restated> {
        let new = &self.settings;
        let changed = [
            ("init", old.init != new.init),
            ("from", old.from != new.from),
            ("from_prefix", old.from_prefix != new.from_prefix),
        ];
        let settings: Vec<&'static str> =
            changed.into_iter().filter_map(|(name, is)| is.then_some(name)).collect();
        let named: Vec<String> = settings.iter().map(|name| format!("`{name}`")).collect();
        let effect = format!(
            "{}: read when a run begins; this one has made {} and goes on from the checkpoint's factors, so there is no effect; a new run (--out) \
             begins with what is set",
            named.join(" and "),
            count(restart.step, "step")
        );
        // At step 0 it begins.
        (!settings.is_empty() && restart.step > 0).then_some(Restated { settings, effect, follows: false })
    }

    fn forward(&self, ctx: &Ctx<'_>, (backbone,): Self::In) -> Result<(Self::Out, ()), OpError> {
        let backbone = backbone.0.layout();
        let (layout, _) = self.matched(backbone)?;
        let adapter = match &self.file {
            Some(file) => file.read(&layout, &backbone.linears)?,
            // By name: another set of targets leaves the factors of the rest as they are.
            None => Adapter::new(layout, self.settings.init.into(), |module| {
                let mut random = ctx.random_of_node(module);
                move || random.uniform()
            }),
        };
        Ok(((adapter,), ()))
    }
}
