//! A network of a shape on a device, with weights of a file or random ones.
//!
//! Random weights of FLUX.1-dev are 24 GB, which no machine should write to measure a step. Here a small file holds one block of
//! values for each number of inputs, and a matrix is a window of the rows of its block: windows overlap, but every matrix is
//! uploaded, and so has memory of its own on a device.

use std::{
    collections::{BTreeMap, HashMap},
    error::Error,
    path::Path,
    sync::Arc,
};

use prefgraph_nn::{
    Backbone, Cpu, Device,
    cuda::Cuda,
    files::{Dtype, NamedTensor, TensorFiles, TensorView, write_safetensors},
    models::{Checkpointing, FluxConfig, FluxFiles, FluxOptions, flux::Flux},
};
use prefgraph_ops::{
    Ctx, Nothing, OpError, Operator,
    operator::{InShapes, OutShapes},
    ports::{BackboneHandle, BackboneShape},
};
use tempfile::TempDir;

use crate::random;

/// An open network.
pub enum Network {
    Cpu(Arc<Flux<Cpu>>),
    Gpu(Arc<Flux<Cuda>>),
}

/// What weights are read from.
pub struct Weights {
    config: FluxConfig,
    files: FluxFiles,
    /// Where random ones lie, until the process ends.
    folder: Option<TempDir>,
}

impl Weights {
    /// Those of a file or a folder.
    pub fn of_files(path: &Path) -> Result<Self, Box<dyn Error>> {
        let (config, files) = FluxFiles::open(path)?;
        Ok(Self { config, files, folder: None })
    }

    /// Random ones for a network of these sizes.
    pub fn random(config: &FluxConfig) -> Result<Self, Box<dyn Error>> {
        let folder = tempfile::tempdir()?;
        let files = random_files(config, &folder.path().join("random.safetensors"))?;
        Ok(Self { config: config.clone(), files, folder: Some(folder) })
    }

    /// The sizes of the network.
    pub fn config(&self) -> &FluxConfig {
        &self.config
    }

    /// The network on a device, and what must outlive it.
    pub fn open(
        self,
        host: &Cpu,
        gpu: Option<&Cuda>,
        options: FluxOptions,
    ) -> Result<(Network, Option<TempDir>), Box<dyn Error>> {
        fn on<D: Device>(
            device: &D,
            host: &Cpu,
            weights: (FluxConfig, FluxFiles),
            options: FluxOptions,
        ) -> Result<Arc<Flux<D>>, Box<dyn Error>> {
            let network = Flux::of_files(device.clone(), host.clone(), weights.0, weights.1, options)?;
            network.load()?;
            Ok(Arc::new(network))
        }
        let weights = (self.config, self.files);
        let network = match gpu {
            None => Network::Cpu(on(host, host, weights, options)?),
            Some(gpu) => Network::Gpu(on(gpu, host, weights, options)?),
        };
        Ok((network, self.folder))
    }
}

impl Network {
    /// For a graph.
    pub fn backbone(&self) -> Arc<dyn Backbone> {
        match self {
            Self::Cpu(network) => network.clone(),
            Self::Gpu(network) => network.clone(),
        }
    }

    /// Its files.
    pub fn files(&self) -> &FluxFiles {
        match self {
            Self::Cpu(network) => network.files(),
            Self::Gpu(network) => network.files(),
        }
    }

    /// What later passes keep for their backwards. No graph may hold the network now.
    pub fn set_checkpointing(&mut self, checkpointing: Checkpointing) -> Result<(), OpError> {
        let changed = match self {
            Self::Cpu(network) => Arc::get_mut(network).map(|n| n.set_checkpointing(checkpointing)),
            Self::Gpu(network) => Arc::get_mut(network).map(|n| n.set_checkpointing(checkpointing)),
        };
        changed.ok_or_else(|| OpError::internal("a graph still holds the network"))
    }
}

/// The block that a tensor is a window of.
fn block(name: &str, shape: &[usize]) -> String {
    match shape {
        [_, inputs] => format!("of {inputs} inputs"),
        _ if random::spread(name, shape).0 == 0.0 => "biases".into(),
        _ => "norms".into(),
    }
}

fn random_files(config: &FluxConfig, path: &Path) -> Result<FluxFiles, Box<dyn Error>> {
    let tensors = config.tensors();
    let mut blocks: BTreeMap<String, (&str, Vec<usize>)> = BTreeMap::new();
    for (name, shape) in &tensors {
        let (_, largest) = blocks.entry(block(name, shape)).or_insert((name, shape.clone()));
        largest[0] = largest[0].max(shape[0]);
    }
    let values = |(seed, (block, (name, mut shape))): (usize, (String, (&str, Vec<usize>)))| {
        // More than the largest has, so that there are several windows of its height, too.
        shape[0] += shape[0].div_ceil(4);
        let mut bytes = vec![0; 2 * shape.iter().product::<usize>()];
        random::fill(&mut bytes, seed as u64, random::spread(name, &shape));
        NamedTensor { name: block, dtype: Dtype::BF16, shape, bytes: bytes.into() }
    };
    let values: Vec<NamedTensor<'_>> = blocks.into_iter().enumerate().map(values).collect();
    write_safetensors(path, &values, &[])?;
    let files = Arc::new(TensorFiles::open(path)?);
    let mut views = HashMap::new();
    for (number, (name, shape)) in tensors.into_iter().enumerate() {
        let whole = TensorView::whole(&files, &block(&name, &shape))?;
        // A prime, so that neighbours begin far from each other.
        let first = number * 7919 % (whole.shape()[0] - shape[0] + 1);
        views.insert(name, whole.rows(first..first + shape[0])?);
    }
    Ok(FluxFiles::of_views(config, views)?)
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
