//! `backbone`: a handle on frozen weights, shared by every node that reads it.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use prefgraph_nn::{
    self as nn, DeviceKind, cpu,
    files::TensorFiles,
    layers::{self, Loading},
    lora::AdapterFile,
    models::{
        self, FluxOptions, FluxUno, SdxlUNet,
        flux::Flux,
        unet::{ImagePrompt, ResamplerUse, UNet, UNetOptions},
    },
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
    words::count,
};

choices! {
    /// Kinds of network.
    pub enum BackboneKind {
        /// FLUX with reference images (UNO): the transformer folder of a diffusers checkpoint.
        FluxUno = "flux_uno",
        /// The U-Net of Stable Diffusion XL, alone or with an IP-Adapter-Plus: SDXL, RealVisXL and others of its shape.
        Sdxl = "sdxl",
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
        /// All that the backward reads.
        None = "none",
        /// What products have made; norms, activation functions and orders of heads are computed again: the same bits, less memory, a little more time.
        Selective = "selective",
        /// The input of each block, which the backward runs again: the same bits, the least memory, more time.
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

choices! {
    /// Where the resampler of an IP-Adapter-Plus runs.
    pub enum ResamplerPlace {
        /// In the node `image-prompt`: image tokens can be cached, and the resampler stays as it is.
        Outside = "outside",
        /// In the network, which takes the tokens of the image encoder: `targets` of a LoRA name its linears, too, by diffusers'
        /// names (`encoder_hid_proj...`).
        Inside = "inside",
    }
}

settings! {
    /// Settings of [`Backbone`].
    pub struct BackboneSettings {
        /// Kind of network.
        pub kind: BackboneKind = BackboneKind::FluxUno,
        /// The network's folder in diffusers' layout or the folder above it; of FLUX also one `.safetensors` file with the names of
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
        /// Of kind `sdxl`: the file of an IP-Adapter-Plus, e.g. `ip-adapter-plus_sdxl_vit-h.safetensors`, through which it sees references.
        pub ip_adapter: DataPath = DataPath::default(),
        /// What the attention over image tokens is multiplied by; 1 in training.
        pub ip_scale: f64 = 1.0,
        /// Where the IP-Adapter's resampler runs; the node `image-prompt` has the same setting, most simply `resampler: "@backbone.resampler"`.
        pub resampler: ResamplerPlace = ResamplerPlace::Outside,
        /// Of a resampler inside: tokens that the image encoder makes of a picture; 257 are those of ViT-H at 224 pixels.
        pub picture_tokens: usize = 257,
    }
}

impl BackboneSettings {
    /// Refuse settings of the other kind, which would be passed over in silence.
    fn check(&self) -> Result<(), OpError> {
        use BackboneKind::{FluxUno, Sdxl};
        let stated = [
            ("adapter", !self.adapter.is_empty(), FluxUno),
            ("adapter_use", self.adapter_use != FrozenUse::Branch, FluxUno),
            ("ip_adapter", !self.ip_adapter.is_empty(), Sdxl),
            ("ip_scale", self.ip_scale != 1.0, Sdxl),
            ("resampler", self.resampler != ResamplerPlace::Outside, Sdxl),
        ];
        match stated.into_iter().find(|(_, is_stated, kind)| *is_stated && *kind != self.kind) {
            Some((name, _, kind)) => Err(OpError::new(format!(
                "{name} is a setting of kind `{}`, and this node is of kind `{}`",
                kind.name(),
                self.kind.name()
            ))),
            None if self.weights.is_empty() => {
                Err(OpError::new("weights: the folder of a checkpoint is needed"))
            }
            None if self.ip_scale != 1.0 && self.ip_adapter.is_empty() => {
                Err(OpError::new("ip_scale: there is no IP-Adapter to scale; set `ip_adapter`"))
            }
            None if self.resampler == ResamplerPlace::Inside && self.ip_adapter.is_empty() => Err(
                OpError::new("resampler: there is no IP-Adapter whose resampler could run; set `ip_adapter`"),
            ),
            None if self.picture_tokens == 0 => {
                Err(OpError::new("picture_tokens: an image encoder makes at least 1 token of a picture"))
            }
            None => Ok(()),
        }
    }

    fn loading(&self) -> Loading {
        Loading {
            precision: match self.compute {
                Compute::F32 => cpu::Precision::F32,
                Compute::Bf16 => cpu::Precision::Bf16,
            },
            packing: match self.packing {
                Packing::Resident => layers::Packing::Resident,
                Packing::Streamed => layers::Packing::Streamed,
            },
        }
    }

    fn checkpointing(&self) -> models::Checkpointing {
        match self.checkpointing {
            Checkpointing::None => models::Checkpointing::None,
            Checkpointing::Selective => models::Checkpointing::Selective,
            Checkpointing::Blocks => models::Checkpointing::Blocks,
        }
    }

    /// Which network, and how it is run.
    fn network(&self) -> Network {
        let (loading, checkpointing) = (self.loading(), self.checkpointing());
        match self.kind {
            BackboneKind::FluxUno => {
                let how = match self.adapter_use {
                    FrozenUse::Branch => models::FrozenUse::Branch,
                    FrozenUse::Merged => models::FrozenUse::Merged,
                };
                let adapter = (!self.adapter.is_empty()).then(|| (self.adapter.0.clone(), how));
                Network::Flux(FluxOptions { loading, checkpointing, adapter })
            }
            BackboneKind::Sdxl => {
                let path = (!self.ip_adapter.is_empty()).then(|| self.ip_adapter.0.clone());
                let (scale, tokens) = (self.ip_scale as f32, self.picture_tokens);
                let resampler = match self.resampler {
                    ResamplerPlace::Outside => ResamplerUse::Outside,
                    ResamplerPlace::Inside => ResamplerUse::Inside { tokens },
                };
                let image_prompt = path.map(|path| ImagePrompt { path, scale, resampler });
                Network::UNet(UNetOptions { loading, checkpointing, image_prompt })
            }
        }
    }
}

/// A kind of network with its options.
#[derive(Clone)]
enum Network {
    Flux(FluxOptions),
    UNet(UNetOptions),
}

/// A network on the processor, with the files that it is read from.
type Described = (Arc<dyn nn::Backbone>, Arc<TensorFiles>);

impl Network {
    /// On the processor: its files are opened and compared with its configuration.
    fn described(&self, path: &Path) -> Result<Described, OpError> {
        // One thread: this copy reads headers only.
        let cpu = nn::Cpu::new(1)?;
        Ok(match self.clone() {
            Self::Flux(options) => {
                let network = FluxUno::open_with(cpu, path, options)?;
                let files = network.files().files().clone();
                (Arc::new(network), files)
            }
            Self::UNet(options) => {
                let network = SdxlUNet::open_with(cpu, path, options)?;
                let files = network.files().files().clone();
                (Arc::new(network), files)
            }
        })
    }

    /// Where it will run.
    fn running(&self, ctx: &Ctx<'_>, path: &Path) -> Result<Arc<dyn nn::Backbone>, OpError> {
        let host = ctx.cpu.clone();
        Ok(match (self.clone(), ctx.gpu) {
            (Self::Flux(options), None) => Arc::new(FluxUno::open_with(host, path, options)?),
            (Self::Flux(options), Some(gpu)) => Arc::new(Flux::open_on(gpu.clone(), host, path, options)?),
            (Self::UNet(options), None) => Arc::new(SdxlUNet::open_with(host, path, options)?),
            (Self::UNet(options), Some(gpu)) => Arc::new(UNet::open_on(gpu.clone(), host, path, options)?),
        })
    }

    fn loading(&self) -> Loading {
        match self {
            Self::Flux(options) => options.loading,
            Self::UNet(options) => options.loading,
        }
    }

    /// The file of what belongs to the frozen network beside its weights: its name for people, and how it takes effect.
    fn beside(&self) -> Option<(&'static str, &Path, String)> {
        match self {
            Self::Flux(options) => options.adapter.as_ref().map(|(path, how)| {
                let how = match how {
                    models::FrozenUse::Branch => "as a branch",
                    models::FrozenUse::Merged => "merged into its weights",
                };
                ("adapter", &**path, how.to_owned())
            }),
            Self::UNet(options) => options.image_prompt.as_ref().map(|i| {
                let inside = if i.resampler == ResamplerUse::Outside { "" } else { " and its resampler" };
                ("ip_adapter", &*i.path, format!("with scale {}{inside}", i.scale))
            }),
        }
    }
}

/// The frozen network. Its files are opened and compared with its configuration at once, its weights read by the
/// first run.
pub struct Backbone {
    path: PathBuf,
    network: Network,
    /// Counts, checks and shapes; never runs.
    described: Arc<dyn nn::Backbone>,
    files: Arc<TensorFiles>,
    running: OnceLock<Arc<dyn nn::Backbone>>,
}

impl Operator for Backbone {
    const NAME: &'static str = "backbone";
    const DOC: &'static str =
        "Open a frozen denoiser; every node that reads it shares one copy of the weights.";
    const IN: [&'static str; 0] = [];
    const OUT: [&'static str; 1] = ["backbone"];
    const FREE_SETTINGS: &'static [&'static str] = &["packing", "checkpointing"];
    type Settings = BackboneSettings;
    type In = ();
    type Out = (BackboneHandle,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(settings: BackboneSettings) -> Result<Self, OpError> {
        settings.check()?;
        let network = settings.network();
        let path = settings.weights.0;
        let (described, files) = network.described(&path)?;
        Ok(Self { path, network, described, files, running: OnceLock::new() })
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
            "{} with {:.2}M frozen parameters: {} of width {}, {}, from {}",
            l.kind,
            l.parameters as f64 / 1e6,
            count(l.blocks, "block"),
            l.width,
            count(l.heads, "head"),
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
            ("takes_image_tokens", json!(l.image_tokens)),
            ("parameters", json!(l.parameters)),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .to_vec()
    }

    fn external(&self) -> Vec<External> {
        let beside = self.files.path().with_file_name("config.json");
        let weights = self.files.paths().into_iter().chain(beside.is_file().then_some(beside)).collect();
        let more =
            self.network.beside().map(|(name, path, _)| External::files(name, AdapterFile::files_at(path)));
        std::iter::once(External::files("weights", weights)).chain(more).collect()
    }

    fn forward(&self, ctx: &Ctx<'_>, (): Self::In) -> Result<(Self::Out, ()), OpError> {
        let running = get_or_try_init(&self.running, || self.network.running(ctx, &self.path))?;
        running.load()?;
        Ok(((BackboneHandle(running.clone()),), ()))
    }
}

impl Backbone {
    /// How it is run, for people.
    fn how(&self) -> String {
        let Loading { precision, packing } = self.network.loading();
        let products = match precision {
            cpu::Precision::F32 => "products in f32",
            cpu::Precision::Bf16 => "products in bf16",
        };
        let weights = match packing {
            layers::Packing::Resident => "weights resident in memory",
            layers::Packing::Streamed => "weights streamed from the file",
        };
        let beside = self.network.beside().map_or(String::new(), |(_, path, how)| {
            format!("; {} is part of the frozen network, {how}", path.display())
        });
        format!("{products}, {weights}{beside}")
    }
}
