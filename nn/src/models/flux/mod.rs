//! FLUX with reference images (UNO): a rectified-flow transformer with two streams, then one.
//!
//! ```text
//! config    sizes, and from them every tensor of the checkpoint
//! names     where those tensors stand in the files that people have
//! weights   the frozen weights, packed
//! tokens    2x2 patches of latents        sequence  where tokens lie in memory
//! rope      where tokens stand            embed     time, guidance, pooled text
//! block     what blocks are made of       double, single   the blocks, forward and backward
//! pass      a whole pass, forward and backward             cost    what it costs
//! ```
//!
//! The model is that of diffusers' `FluxTransformer2DModel`; references are further tokens of the image stream
//! (Wu et al. 2025, "Less-to-More Generalization").

mod block;
mod config;
mod cost;
mod double;
mod embed;
mod names;
mod pass;
mod rope;
mod sequence;
mod single;
mod tokens;
mod weights;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

pub use config::FluxConfig;
pub use names::{FluxFiles, FluxLayout};
use rope::RotaryTables;
use weights::Weights;

use crate::{
    backbone::{Backbone, BackboneLayout, Inputs, Latents, PassCost, Saved, Visitor},
    cpu::{Cpu, WIDEST},
    error::{Error, Result},
    layers::{Buffers, Loading, Packing},
    lora::{Adapter, AdapterGrad, AdapterLayout, FrozenAdapter},
    tensor::Tensor,
};

/// What a pass keeps for its backward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checkpointing {
    /// All that the backward of every block needs.
    #[default]
    None,
    /// The input of every block; the backward runs each block again, with the same kernels and so the same bits.
    Blocks,
}

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

/// A FLUX transformer read from a file or a folder.
#[derive(Debug)]
pub struct FluxUno {
    device: Cpu,
    options: FluxOptions,
    config: FluxConfig,
    layout: BackboneLayout,
    files: FluxFiles,
    adapter: Option<(FrozenAdapter, FrozenUse)>,
    weights: OnceLock<Weights>,
    /// Held while the weights are read, so that two passes that start together read them once. Never locked on a thread of
    /// the pool.
    loading: Mutex<()>,
    buffers: Buffers,
    rotary: Mutex<Vec<(Grids, Arc<RotaryTables>)>>,
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
        let (config, files) = FluxFiles::open(path)?;
        if config.attention_head_dim > WIDEST {
            return Err(Error::file(
                path,
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
            Some((path, how)) => Some((FrozenAdapter::open(path, &config.linears())?, *how)),
            None => None,
        };
        Ok(Self {
            layout: config.layout(),
            device,
            options,
            config,
            files,
            adapter,
            weights: OnceLock::new(),
            loading: Mutex::new(()),
            buffers: Buffers::default(),
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
    pub fn device(&self) -> &Cpu {
        &self.device
    }

    /// Bytes of working memory that passes hold now, with what they keep for their backwards, and the most they
    /// ever held.
    pub fn working_memory(&self) -> (usize, usize) {
        (self.buffers.lent() * size_of::<f32>(), self.buffers.most_lent() * size_of::<f32>())
    }

    fn weights(&self) -> Result<&Weights> {
        if let Some(weights) = self.weights.get() {
            return Ok(weights);
        }
        let _one_at_a_time = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(weights) = self.weights.get() {
            return Ok(weights);
        }
        let adapter = self.adapter.as_ref().map(|(adapter, how)| (adapter, *how));
        let weights = Weights::read(&self.device, &self.files, adapter, &self.config, self.options.loading)?;
        Ok(self.weights.get_or_init(|| weights))
    }

    /// Run on the device's own threads, so that kernels need not change threads one by one.
    ///
    /// Weights are loaded before, on the caller's thread: loading holds a lock while it uses the pool, and a thread of the
    /// pool that waits there may take up another pass, which would wait for the lock on the same thread for ever.
    fn on_device<T: Send>(&self, run: impl FnOnce(&Weights) -> Result<T> + Send) -> Result<T> {
        let weights = self.weights()?;
        self.device.pool().install(|| run(weights))
    }

    /// The rotary tables of these grids; the last few are kept, since steps repeat them.
    fn rotary(&self, grids: Grids) -> Arc<RotaryTables> {
        const KEPT: usize = 8;
        let mut kept = self.rotary.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, tables)) = kept.iter().find(|(g, _)| *g == grids) {
            return Arc::clone(tables);
        }
        let positions = rope::positions(grids.0, grids.1, &grids.2);
        let tables = Arc::new(RotaryTables::new(&positions, &self.config.axes_dims_rope));
        if kept.len() == KEPT {
            kept.remove(0);
        }
        kept.push((grids, Arc::clone(&tables)));
        tables
    }
}

impl Backbone for FluxUno {
    fn layout(&self) -> &BackboneLayout {
        &self.layout
    }

    fn load(&self) -> Result<()> {
        self.weights().map(drop)
    }

    fn predict(
        &self,
        inputs: &Inputs,
        adapter: Option<&Adapter>,
        visitor: &mut dyn Visitor,
    ) -> Result<Latents> {
        let pass = self.on_device(|weights| self.forward(weights, inputs, adapter, visitor, false));
        pass.map(|(prediction, _)| prediction)
    }

    fn predict_saving(
        &self,
        inputs: &Inputs,
        adapter: &Adapter,
        visitor: &mut dyn Visitor,
    ) -> Result<(Latents, Saved)> {
        let (prediction, saved) =
            self.on_device(|weights| self.forward(weights, inputs, Some(adapter), visitor, true))?;
        let saved = saved.ok_or_else(|| Error::Internal("a pass kept nothing for its backward".into()))?;
        Ok((prediction, Saved(Box::new(saved))))
    }

    fn backward(&self, saved: Saved, adapter: &Adapter, cotangent: &Latents) -> Result<AdapterGrad> {
        let saved = saved
            .0
            .downcast::<pass::SavedPass>()
            .map_err(|_| Error::Setting("what was kept comes from another kind of backbone".into()))?;
        self.on_device(|weights| self.backward_pass(weights, *saved, adapter, cotangent))
    }

    fn features(&self, inputs: &Inputs) -> Result<Tensor<(usize, usize, usize)>> {
        self.on_device(|weights| self.double_features(weights, inputs))
    }

    fn resident_bytes(&self, adapter: Option<&AdapterLayout>) -> usize {
        cost::resident(&self.config, &self.options, self.adapter.as_ref().map(|a| &a.0), adapter)
    }

    fn cost(
        &self,
        batch: usize,
        grid: (usize, usize),
        references: &[(usize, usize)],
        text: usize,
        adapter: Option<&AdapterLayout>,
    ) -> PassCost {
        let sizes = cost::Sizes { batch, grid, references, text };
        let cost =
            cost::cost(&self.config, &self.options, self.adapter.as_ref().map(|a| &a.0), sizes, adapter);
        PassCost { precision: self.options.loading.precision, ..cost }
    }
}
