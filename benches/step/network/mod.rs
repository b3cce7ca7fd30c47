//! A network of a shape on a device, with weights of a file or random ones, and the operator that gives it to a graph.
//!
//! ```text
//!  flux   FLUX    unet   SDXL's U-Net with an IP-Adapter
//! ```

mod flux;
mod unet;

use std::{
    error::Error,
    path::{Path, PathBuf},
    sync::Arc,
};

use prefgraph_nn::{
    Backbone, Cpu,
    cuda::Cuda,
    files::{Dtype, NamedTensor},
    layers::Loading,
    models::Checkpointing,
};
use prefgraph_ops::{
    Ctx, Nothing, OpError, Operator,
    operator::{InShapes, OutShapes},
    ports::{BackboneHandle, BackboneShape},
};
use tempfile::TempDir;

use crate::{
    random,
    shape::{Shape, Sizes},
};

/// What a bench asks of a network beyond its passes.
trait Benched: Backbone {
    /// From now on passes keep this for their backwards.
    fn keep(&mut self, checkpointing: Checkpointing);

    /// Its frozen tensors in f32, by diffusers' names; without those of an IP-Adapter.
    fn frozen(&self) -> prefgraph_nn::Result<Vec<NamedTensor<'static>>>;
}

/// An open network, and the files that it needs.
struct Opened {
    network: Arc<dyn Benched>,
    ip_adapter: Option<PathBuf>,
    /// Where random weights lie, until the process ends.
    _folder: Option<TempDir>,
}

/// An open network.
pub struct Network(Opened);

impl Network {
    /// The network of a shape on a GPU, or on the host. Its weights are those of `weights`, or random.
    pub fn open(
        shape: &Shape,
        weights: Option<&Path>,
        host: &Cpu,
        gpu: Option<&Cuda>,
        loading: Loading,
    ) -> Result<Self, Box<dyn Error>> {
        let opened = match &shape.network {
            Sizes::Flux(config) => flux::open(config, weights, host, gpu, loading)?,
            Sizes::UNet(config) => unet::open(config, weights, host, gpu, loading)?,
        };
        opened.network.load()?;
        Ok(Self(opened))
    }

    /// For a graph.
    pub fn backbone(&self) -> Arc<dyn Backbone> {
        self.0.network.clone()
    }

    /// Its frozen tensors in f32, by diffusers' names; those of an IP-Adapter by the names of their linears.
    pub fn frozen(&self) -> prefgraph_nn::Result<Vec<NamedTensor<'static>>> {
        let Opened { network, ip_adapter, .. } = &self.0;
        let mut all = network.frozen()?;
        if let Some(file) = ip_adapter {
            all.extend(unet::frozen_adapter(file, network.layout())?);
        }
        Ok(all)
    }

    /// What later passes keep for their backwards. No graph may hold the network now.
    pub fn set_checkpointing(&mut self, checkpointing: Checkpointing) -> Result<(), OpError> {
        let network = Arc::get_mut(&mut self.0.network);
        network
            .map(|network| network.keep(checkpointing))
            .ok_or_else(|| OpError::internal("a graph still holds the network"))
    }
}

/// Write random weights of a U-Net into a folder. FLUX's are windows of a small file, and need none.
pub fn make(shape: &Shape, folder: &Path) -> Result<(), Box<dyn Error>> {
    match &shape.network {
        Sizes::Flux(_) => Err("--make: only a U-Net's random weights take time to make".into()),
        Sizes::UNet(config) => unet::write(config, folder),
    }
}

/// A tensor of random values in bf16.
fn random_tensor(name: String, shape: Vec<usize>, seed: u64) -> NamedTensor<'static> {
    let mut bytes = vec![0; 2 * shape.iter().product::<usize>()];
    random::fill(&mut bytes, seed, random::spread(&name, &shape));
    NamedTensor { name, dtype: Dtype::BF16, shape, bytes: bytes.into() }
}

/// Gives an open network to the nodes of a graph.
pub struct Open(pub Arc<dyn Backbone>);

impl Operator for Open {
    const NAME: &'static str = "open";
    const DOC: &'static str = "A network that is open already.";
    const IN: [&'static str; 0] = [];
    const OUT: [&'static str; 1] = ["backbone"];
    type Settings = Nothing;
    type In = ();
    type Out = (BackboneHandle,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn new(_: Nothing) -> Result<Self, OpError> {
        Err(OpError::new("a network is opened by the program"))
    }

    fn shapes(&self, (): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((BackboneShape(self.0.clone()),))
    }

    fn forward(&self, _: &Ctx<'_>, (): ()) -> Result<(Self::Out, ()), OpError> {
        Ok(((BackboneHandle(self.0.clone()),), ()))
    }
}
