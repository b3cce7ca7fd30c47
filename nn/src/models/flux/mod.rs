//! FLUX with reference images (UNO): a rectified-flow transformer with two streams, then one.
//!
//! ```text
//! config    sizes, and from them every tensor of the checkpoint
//! names     where those tensors stand in the files that people have
//! linears   the names of its linears in all layouts
//! weights   the frozen weights, packed
//! tokens    2x2 patches of latents        sequence  where tokens lie in memory
//! rope      where tokens stand
//! block     what blocks are made of       double, single   the blocks, forward and backward
//! pass      a whole pass, forward and backward             probe   what is asked of its tokens
//! cost      what a pass costs           footprint   how many bytes its values and the weights take on a device
//! ```
//!
//! The model is that of diffusers' `FluxTransformer2DModel`; references are further tokens of the image stream
//! (Wu et al. 2025, "Less-to-More Generalization").

mod block;
mod config;
mod cost;
mod double;
mod footprint;
mod linears;
mod names;
mod pass;
mod probe;
mod rope;
mod sequence;
mod single;
mod tokens;
mod weights;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

pub use config::FluxConfig;
use footprint::FrozenWeights;
pub use linears::NAMES;
pub use names::{FluxFiles, FluxLayout};
use rope::RotaryTables;
use weights::Weights;

use crate::{
    backbone::{Backbone, BackboneLayout, DeviceKind, Inputs, Latents, PassCost, Prediction, Probe, Saved},
    cpu::{Cpu, WIDEST},
    device::Device,
    error::{Error, Result},
    layers::{FactorGroups, Loading, Packing},
    lora::{Adapter, AdapterGrad, AdapterLayout, FrozenAdapter},
    models::{Checkpointing, adapter::placed},
    once::MadeOnce,
    tensor::Tensor,
};

/// How an adapter that is part of the frozen network takes effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FrozenUse {
    /// As a low-rank branch beside each linear: nothing is copied, and every pass computes it.
    #[default]
    Branch,
    /// Added to the weights when they are packed: passes cost nothing more. Needs resident weights.
    Merged,
}

/// How a FLUX transformer is run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FluxOptions {
    /// Precision of products, and where packed weights live.
    pub loading: Loading,
    /// What a pass keeps for its backward.
    pub checkpointing: Checkpointing,
    /// An adapter that is part of the frozen network, such as UNO's own, and how it takes effect.
    pub adapter: Option<(PathBuf, FrozenUse)>,
}

/// A FLUX transformer on the processor.
pub type FluxUno = Flux<Cpu>;

/// A FLUX transformer read from a file or a folder.
#[derive(Debug)]
pub struct Flux<D: Device> {
    device: D,
    /// Where tensors of the caller live.
    host: Cpu,
    options: FluxOptions,
    config: FluxConfig,
    layout: BackboneLayout,
    files: FluxFiles,
    adapter: Option<(FrozenAdapter, FrozenUse)>,
    weights: MadeOnce<Weights<D>>,
    factors: Arc<FactorGroups>,
    rotary: Mutex<Vec<(Grids, Arc<RotaryTables<D>>)>>,
}

/// What rotary tables depend on: text tokens, and the token grids of the target and of every reference.
type Grids = (usize, (usize, usize), Vec<(usize, usize)>);

impl FluxUno {
    /// Read the headers of a checkpoint as [`FluxFiles::open`] finds it, and compare them with its sizes. Weights are read
    /// by the first pass.
    ///
    /// # Errors
    /// If a file is missing or torn; if the sizes are none that can be run; if tensors are missing, surplus or of another
    /// shape.
    pub fn open(device: Cpu, path: &Path) -> Result<Self> {
        Self::open_with(device, path, FluxOptions::default())
    }

    /// The same with options.
    ///
    /// # Errors
    /// As [`open`](Self::open); if the frozen adapter does not fit the model; if it is to be merged into weights that are
    /// not kept.
    pub fn open_with(device: Cpu, path: &Path, options: FluxOptions) -> Result<Self> {
        Self::open_on(device.clone(), device, path, options)
    }

    /// Bytes of working memory that are lent now, what passes keep for their backwards included, and the most that ever were.
    pub fn working_memory(&self) -> (usize, usize) {
        let buffers = self.device.buffers();
        (buffers.lent() * size_of::<f32>(), buffers.most_lent() * size_of::<f32>())
    }
}

impl<D: Device> Flux<D> {
    /// A checkpoint on a device; tensors of the caller live on `host`. See [`FluxUno::open_with`].
    ///
    /// # Errors
    /// As there.
    pub fn open_on(device: D, host: Cpu, path: &Path, options: FluxOptions) -> Result<Self> {
        let (config, files) = FluxFiles::open(path)?;
        Self::of_files(device, host, config, files, options)
    }

    /// A model of these sizes and files, which belong together. See [`FluxUno::open_with`].
    ///
    /// # Errors
    /// As there.
    pub fn of_files(
        device: D,
        host: Cpu,
        config: FluxConfig,
        files: FluxFiles,
        options: FluxOptions,
    ) -> Result<Self> {
        if config.attention_head_dim > WIDEST {
            return Err(Error::file(
                files.files().path(),
                format!("has heads of {}: at most {WIDEST} can be run", config.attention_head_dim),
            ));
        }
        let adapter = match &options.adapter {
            Some((_, FrozenUse::Merged)) if options.loading.packing == Packing::Streamed => {
                return Err(Error::Setting(
                    "the frozen adapter is to be merged into weights that are streamed, and so would be merged again for \
                     every product: merge it into resident weights, or use it as a branch"
                        .into(),
                ));
            }
            Some((path, how)) => Some((FrozenAdapter::open(path, &config.layout().linears)?, *how)),
            None => None,
        };
        Ok(Self {
            layout: config.layout(),
            device,
            host,
            options,
            config,
            files,
            adapter,
            weights: MadeOnce::new(),
            factors: Arc::default(),
            rotary: Mutex::new(Vec::new()),
        })
    }

    /// The files it is read from.
    pub fn files(&self) -> &FluxFiles {
        &self.files
    }

    /// The sizes of the model.
    pub fn config(&self) -> &FluxConfig {
        &self.config
    }

    /// The device it runs on.
    pub fn device(&self) -> &D {
        &self.device
    }

    fn frozen_weights(&self, on: DeviceKind) -> FrozenWeights<'_> {
        let adapter = self.adapter.as_ref().map(|(adapter, _)| adapter);
        FrozenWeights { on, config: &self.config, options: &self.options, adapter }
    }

    /// From now on passes keep this for their backwards: the weights stay where they are.
    pub fn set_checkpointing(&mut self, checkpointing: Checkpointing) {
        self.options.checkpointing = checkpointing;
    }

    fn queue(&self) -> Result<D::Queue> {
        self.device.queue(self.options.loading.precision)
    }

    fn weights(&self) -> Result<&Weights<D>> {
        self.weights.get_or_try_init(|| {
            let adapter = self.adapter.as_ref().map(|(adapter, how)| (adapter, *how));
            Weights::read(&self.device, &self.files, adapter, &self.config, self.options.loading)
        })
    }

    /// Run where the device wants it. Weights are read before, on the caller's thread: see [`MadeOnce`].
    fn on_device<T: Send>(&self, run: impl FnOnce(&Weights<D>) -> Result<T> + Send) -> Result<T> {
        let weights = self.weights()?;
        self.device.run(|| run(weights))
    }

    /// The rotary tables of these grids; the last few are kept, since steps repeat them.
    fn rotary(&self, grids: Grids) -> Result<Arc<RotaryTables<D>>> {
        const KEPT: usize = 8;
        let mut kept = self.rotary.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, tables)) = kept.iter().find(|(g, _)| *g == grids) {
            return Ok(Arc::clone(tables));
        }
        let positions = rope::positions(grids.0, grids.1, &grids.2);
        let axes = &self.config.axes_dims_rope;
        let tables = Arc::new(RotaryTables::new(&self.device, &positions, axes)?);
        if kept.len() == KEPT {
            kept.remove(0);
        }
        kept.push((grids, Arc::clone(&tables)));
        Ok(tables)
    }
}

impl<D: Device> Backbone for Flux<D> {
    fn layout(&self) -> &BackboneLayout {
        &self.layout
    }

    fn load(&self) -> Result<()> {
        self.weights().map(drop)
    }

    fn place(&self, adapter: Adapter) -> Result<Adapter> {
        placed::<D>(&self.queue()?, adapter)
    }

    fn predict(&self, inputs: &Inputs, adapter: Option<&Adapter>, probe: &Probe<'_>) -> Result<Prediction> {
        let pass = self.on_device(|weights| self.forward(weights, inputs, adapter, probe, false));
        pass.map(|(prediction, _)| prediction)
    }

    fn predict_saving(
        &self,
        inputs: &Inputs,
        adapter: &Adapter,
        probe: &Probe<'_>,
    ) -> Result<(Prediction, Saved)> {
        let (prediction, saved) =
            self.on_device(|weights| self.forward(weights, inputs, Some(adapter), probe, true))?;
        let saved = saved.ok_or_else(|| Error::Internal("a pass kept nothing for its backward".into()))?;
        Ok((prediction, Saved::new(saved)))
    }

    fn backward(&self, saved: Saved, adapter: &Adapter, cotangent: &Latents) -> Result<AdapterGrad> {
        let saved = saved.take()?;
        self.on_device(|weights| self.backward_pass(weights, saved, adapter, cotangent))
    }

    fn features(&self, inputs: &Inputs) -> Result<Tensor<(usize, usize, usize)>> {
        self.on_device(|weights| self.double_features(weights, inputs))
    }

    fn resident_bytes(&self, on: DeviceKind, adapter: Option<&AdapterLayout>) -> usize {
        self.frozen_weights(on).resident(adapter)
    }

    fn cost(
        &self,
        on: DeviceKind,
        batch: usize,
        grid: (usize, usize),
        references: &[(usize, usize)],
        text: usize,
        adapter: Option<&AdapterLayout>,
    ) -> PassCost {
        let sizes = cost::Sizes { batch, grid, references, text };
        cost::cost(&self.frozen_weights(on), sizes, adapter)
    }
}
