//! FLUX.
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

use super::{Benched, Opened, random_tensor};
use crate::random;
use prefgraph_nn::{
    Cpu, Device,
    cuda::Cuda,
    files::{NamedTensor, TensorFiles, TensorView, write_safetensors},
    layers::Loading,
    models::{Checkpointing, FluxConfig, FluxFiles, FluxOptions, flux::Flux},
};

impl<D: Device> Benched for Flux<D> {
    fn keep(&mut self, checkpointing: Checkpointing) {
        self.set_checkpointing(checkpointing);
    }

    fn frozen(&self) -> prefgraph_nn::Result<Vec<NamedTensor<'static>>> {
        let tensors = self.config().tensors().into_iter();
        tensors
            .map(|(name, shape)| {
                let values = self.files().view(&name)?.read();
                Ok(NamedTensor::f32(name, shape, &values))
            })
            .collect()
    }
}

/// The network.
pub(super) fn open(
    config: &FluxConfig,
    weights: Option<&Path>,
    host: &Cpu,
    gpu: Option<&Cuda>,
    loading: Loading,
) -> Result<Opened, Box<dyn Error>> {
    let (config, files, folder) = match weights {
        Some(path) => {
            let (found, files) = FluxFiles::open(path)?;
            if found.tensors() != config.tensors() {
                return Err("--weights are of a network of another shape".into());
            }
            (found, files, None)
        }
        None => {
            let folder = tempfile::tempdir()?;
            let files = random_files(config, &folder.path().join("random.safetensors"))?;
            (config.clone(), files, Some(folder))
        }
    };
    let options = FluxOptions { loading, ..Default::default() };
    let network: Arc<dyn Benched> = match gpu {
        None => Arc::new(Flux::of_files(host.clone(), host.clone(), config, files, options)?),
        Some(gpu) => Arc::new(Flux::of_files(gpu.clone(), host.clone(), config, files, options)?),
    };
    Ok(Opened { network, ip_adapter: None, _folder: folder })
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
        let values = random_tensor(name.to_owned(), shape, seed as u64);
        NamedTensor { name: block, ..values }
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
