//! `backbone`: a handle on frozen weights, shared by every node that reads it.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use prefgraph_nn::{self as nn, Backbone as _, models::FluxUno};
use serde_json::json;

use crate::{
    choices,
    operator::{Cost, Ctx, InShapes, OpError, Operator, OutShapes},
    ports::{BackboneHandle, BackboneShape},
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

settings! {
    /// Settings of [`Backbone`].
    pub struct BackboneSettings {
        /// Kind of network.
        pub kind: BackboneKind = BackboneKind::FluxUno,
        /// Folder with `config.json` and the weights, or the folder above its `transformer`.
        pub weights: DataPath = DataPath::default(),
    }
}

/// The frozen network. Its files are opened and compared with its configuration at once, its weights read by the
/// first run.
pub struct Backbone {
    folder: PathBuf,
    /// Counts, checks and shapes; never runs.
    described: Arc<FluxUno>,
    running: OnceLock<Arc<FluxUno>>,
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
        let mut folder = settings.weights.0;
        if !folder.join("config.json").exists() && folder.join("transformer").is_dir() {
            folder.push("transformer");
        }
        // One thread: this copy reads headers only.
        let described = Arc::new(FluxUno::open(nn::Cpu::new(1)?, &folder)?);
        Ok(Self { folder, described, running: OnceLock::new() })
    }

    fn shapes(&self, (): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((BackboneShape(self.described.clone()),))
    }

    fn cost(&self, (): &InShapes<Self>, _: &OutShapes<Self>) -> Cost {
        Cost { resident_bytes: self.described.layout().parameters * size_of::<f32>(), ..Cost::default() }
    }

    fn notes(&self, (): &InShapes<Self>) -> Vec<String> {
        let l = self.described.layout();
        vec![format!(
            "{} with {:.2}M frozen parameters: {} blocks of width {}, {} heads, from {}",
            l.kind,
            l.parameters as f64 / 1e6,
            l.blocks,
            l.width,
            l.heads,
            self.folder.display()
        )]
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

    fn forward(&self, ctx: &Ctx<'_>, (): Self::In) -> Result<(Self::Out, ()), OpError> {
        let running = match self.running.get() {
            Some(running) => running.clone(),
            None => {
                let opened = Arc::new(FluxUno::open(ctx.cpu.clone(), &self.folder)?);
                self.running.get_or_init(|| opened).clone()
            }
        };
        running.load()?;
        Ok(((BackboneHandle(running),), ()))
    }
}
