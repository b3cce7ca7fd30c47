//! `backbone`: a handle on frozen weights, shared by every node that reads it.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use prefgraph_nn::{
    self as nn, Backbone as _, DeviceKind, cpu,
    layers::{self, Loading},
    models::{self, FluxOptions, FluxUno, flux::Flux},
    once::get_or_try_init,
};
use serde_json::json;

use crate::{
    choices,
    operator::{Cost, Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{BackboneHandle, BackboneShape},
    resume::External,
    settings,
    settings::DataPath,
};

choices! {
    /// Kinds of network.
    pub enum BackboneKind {
        /// FLUX with reference images (UNO): the transformer folder of a diffusers checkpoint.
        FluxUno = "flux_uno",
    }
}

choices! {
    /// What the operands of products are rounded to.
    pub enum Compute {
        /// Not rounded.
        F32 = "f32",
        /// To bf16; sums, activations, adapters, errors and moments stay in f32.
        Bf16 = "bf16",
    }
}

choices! {
    /// Where packed weights live.
    pub enum Packing {
        /// In memory: fastest. The processor has a copy of the weights for each direction, a GPU one for both.
        Resident = "resident",
        /// Nowhere: the processor packs for each product what it needs from the mapped file; to a GPU each block is copied while
        /// those before it are computed.
        Streamed = "streamed",
    }
}

choices! {
    /// What a pass keeps for its backward.
    pub enum Checkpointing {
        /// All that the backward needs.
        None = "none",
        /// The input of each block, which the backward runs again: the same bits, less memory, more time.
        Blocks = "blocks",
    }
}

choices! {
    /// How a frozen adapter takes effect.
    pub enum FrozenUse {
        /// As a low-rank branch, computed in every pass.
        Branch = "branch",
        /// Added to the weights when they are read; needs `packing: resident`.
        Merged = "merged",
    }
}

settings! {
    /// Settings of [`Backbone`].
    pub struct BackboneSettings {
        /// Kind of network.
        pub kind: BackboneKind = BackboneKind::FluxUno,
        /// The transformer's folder in diffusers' layout or the folder above it, or one `.safetensors` file with the names of
        /// diffusers or of the original release.
        pub weights: DataPath = DataPath::default(),
        /// What the operands of products are rounded to.
        pub compute: Compute = Compute::F32,
        /// Where packed weights live.
        pub packing: Packing = Packing::Resident,
        /// What a pass keeps for its backward.
        pub checkpointing: Checkpointing = Checkpointing::None,
        /// An adapter that belongs to the frozen network, such as UNO's `dit_lora.safetensors`: policy and reference have it.
        pub adapter: DataPath = DataPath::default(),
        /// How that adapter takes effect.
        pub adapter_use: FrozenUse = FrozenUse::Branch,
    }
}

/// The frozen network. Its files are opened and compared with its configuration at once, its weights read by the
/// first run.
pub struct Backbone {
    path: PathBuf,
    options: FluxOptions,
    /// Counts, checks and shapes; never runs.
    described: Arc<FluxUno>,
    running: OnceLock<Arc<dyn nn::Backbone>>,
}

impl Operator for Backbone {
    const NAME: &'static str = "backbone";
    const DOC: &'static str =
        "Open a frozen denoiser; every node that reads it shares one copy of the weights.";
    const IN: [&'static str; 0] = [];
    const OUT: [&'static str; 1] = ["backbone"];
    type Settings = BackboneSettings;
    type In = ();
    type Out = (BackboneHandle,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: BackboneSettings) -> Result<Self, OpError> {
        if settings.weights.is_empty() {
            return Err(OpError::new("weights: the folder of a checkpoint is needed"));
        }
        let options = options(&settings);
        let path = settings.weights.0;
        // One thread: this copy reads headers only.
        let described = Arc::new(FluxUno::open_with(nn::Cpu::new(1)?, &path, options.clone())?);
        Ok(Self { path, options, described, running: OnceLock::new() })
    }

    fn shapes(&self, (): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((BackboneShape(self.described.clone()),))
    }

    fn cost(&self, (): &InShapes<Self>, _: &OutShapes<Self>) -> Cost {
        Cost { resident_bytes: self.described.resident_bytes(DeviceKind::Cpu, None), ..Cost::default() }
    }

    fn gpu_cost(&self, (): &InShapes<Self>, _: &OutShapes<Self>) -> Option<Cost> {
        let resident_bytes = self.described.resident_bytes(DeviceKind::Cuda, None);
        Some(Cost { resident_bytes, ..Cost::default() })
    }

    fn notes(&self, (): &InShapes<Self>) -> Vec<String> {
        let l = self.described.layout();
        let mut notes = vec![format!(
            "{} with {:.2}M frozen parameters: {} blocks of width {}, {} heads, from {}",
            l.kind,
            l.parameters as f64 / 1e6,
            l.blocks,
            l.width,
            l.heads,
            self.path.display()
        )];
        notes.push(self.how());
        notes
    }

    fn exports(&self) -> Vec<(String, serde_json::Value)> {
        let l = self.described.layout();
        [
            ("channels", json!(l.channels)),
            ("patch", json!(l.patch)),
            ("text_width", json!(l.text_width)),
            ("pooled_width", json!(l.pooled_width)),
            ("width", json!(l.width)),
            ("blocks", json!(l.blocks)),
            ("heads", json!(l.heads)),
            ("takes_guidance", json!(l.guidance)),
            ("parameters", json!(l.parameters)),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .to_vec()
    }

    fn external(&self) -> Vec<External> {
        let files = self.described.files().files();
        let beside = files.path().with_file_name("config.json");
        let weights = files.paths().into_iter().chain(beside.is_file().then_some(beside)).collect();
        let adapter = self.options.adapter.iter().map(|(path, _)| External::file("adapter", path));
        std::iter::once(External::files("weights", weights)).chain(adapter).collect()
    }

    fn forward(&self, ctx: &Ctx<'_>, (): Self::In) -> Result<(Self::Out, ()), OpError> {
        let running = get_or_try_init(&self.running, || self.open(ctx))?;
        running.load()?;
        Ok(((BackboneHandle(running.clone()),), ()))
    }
}

impl Backbone {
    /// The network where it will run.
    fn open(&self, ctx: &Ctx<'_>) -> Result<Arc<dyn nn::Backbone>, OpError> {
        let (host, options) = (ctx.cpu.clone(), self.options.clone());
        Ok(match ctx.gpu {
            None => Arc::new(FluxUno::open_with(host, &self.path, options)?),
            Some(gpu) => Arc::new(Flux::open_on(gpu.clone(), host, &self.path, options)?),
        })
    }

    /// How it is run, for people.
    fn how(&self) -> String {
        let Loading { precision, packing } = self.options.loading;
        let products = match precision {
            cpu::Precision::F32 => "products in f32",
            cpu::Precision::Bf16 => "products in bf16",
        };
        let weights = match packing {
            layers::Packing::Resident => "weights packed in memory",
            layers::Packing::Streamed => "weights streamed from the file",
        };
        let adapter = match &self.options.adapter {
            None => String::new(),
            Some((path, how)) => format!(
                "; {} is part of the frozen network, {}",
                path.display(),
                match how {
                    models::FrozenUse::Branch => "as a branch",
                    models::FrozenUse::Merged => "merged into its weights",
                }
            ),
        };
        format!("{products}, {weights}{adapter}")
    }
}

fn options(settings: &BackboneSettings) -> FluxOptions {
    FluxOptions {
        loading: Loading {
            precision: match settings.compute {
                Compute::F32 => cpu::Precision::F32,
                Compute::Bf16 => cpu::Precision::Bf16,
            },
            packing: match settings.packing {
                Packing::Resident => layers::Packing::Resident,
                Packing::Streamed => layers::Packing::Streamed,
            },
        },
        checkpointing: match settings.checkpointing {
            Checkpointing::None => models::Checkpointing::None,
            Checkpointing::Blocks => models::Checkpointing::Blocks,
        },
        adapter: (!settings.adapter.is_empty()).then(|| {
            let how = match settings.adapter_use {
                FrozenUse::Branch => models::FrozenUse::Branch,
                FrozenUse::Merged => models::FrozenUse::Merged,
            };
            (settings.adapter.0.clone(), how)
        }),
    }
}
