//! Where networks run.

use prefgraph_nn::cuda::{Cuda, GpuInfo, devices};
use prefgraph_ops::{Operator, operators::backbone::Backbone};

use super::{Failure, say::say, system};
use crate::{
    graph::Graph,
    plan::GpuOptions,
    spec::{CPU, gpu_number},
};

/// The GPU of this name; none for the processor.
///
/// # Errors
/// If there is no driver or no such GPU, or if one is too old: what is missing, and that the processor can be used.
pub(super) fn open(device: &str) -> Result<Option<Cuda>, Failure> {
    let Some(number) = gpu_number(device) else { return Ok(None) };
    let gpu = Cuda::open(number)
        .map_err(|e| Failure::new(format!("{e}\n--device cpu runs the networks on the processor")))?;
    Ok(Some(gpu))
}

/// What the driver holds of a GPU besides what is allocated: its context, the code of kernels and of cuBLASLt. With what allocations leave
/// between them it was 1.1 GiB on an H200; how much of that is the driver's is not known.
const DRIVER: usize = 512 << 20;

/// The GPU of this name in a plan, whether or not it is there; none for the processor.
pub(super) fn planned(device: &str) -> Option<GpuOptions> {
    gpu_number(device).map(|number| GpuOptions { number, rates: None, driver: DRIVER })
}

/// Bytes of memory of the GPU of this name, where the driver shows it.
pub(super) fn memory(device: &str) -> Option<u64> {
    let number = gpu_number(device)?;
    let gpu = devices().ok()?.into_iter().find(|gpu| gpu.ordinal == number)?;
    Some(gpu.memory as u64)
}

/// A line about the GPU of a run.
pub(super) fn introduce(gpu: &Cuda, graph: &Graph) {
    let has_network = graph.nodes().any(|(_, node)| node.op.name() == <Backbone as Operator>::NAME);
    match has_network {
        true => say!("  networks run on {gpu:?}"),
        false => say!("  note: no node of this graph opens a network, so that nothing runs on {gpu:?}"),
    }
}

/// The first GPU that can be used, or the processor, with a sentence that says why.
pub(super) fn automatic() -> String {
    let usable = |gpus: Vec<GpuInfo>| {
        gpus.iter().find(|gpu| gpu.usable().is_ok()).map(|gpu| format!("cuda:{}", gpu.ordinal))
    };
    match devices().map(usable) {
        Ok(Some(gpu)) => gpu,
        Ok(None) => {
            say!("note: there is no GPU that can be used; networks run on the processor");
            CPU.to_owned()
        }
        Err(why) => {
            say!("note: {why}; networks run on the processor");
            CPU.to_owned()
        }
    }
}

/// `graph-run devices`: what there is.
pub(super) fn list() -> Result<u8, Failure> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = system::machine_memory().map_or(String::new(), |m| format!(", {}", system::bytes(m)));
    let mut text = format!("cpu      {cores} cores{memory}\n");
    match devices() {
        Ok(gpus) if gpus.is_empty() => text.push_str("cuda     the driver shows no GPU\n"),
        Ok(gpus) => {
            for gpu in gpus {
                let (major, minor) = gpu.capability;
                let memory = system::bytes(gpu.memory as u64);
                let unfit = gpu.usable().err().map_or(String::new(), |_| ", too old".to_owned());
                text.push_str(&format!(
                    "cuda:{:<3} {}, {memory}, compute capability {major}.{minor}{unfit}\n",
                    gpu.ordinal, gpu.name
                ));
            }
        }
        Err(why) => text.push_str(&format!("{why}\n")),
    }
    system::print(&text)?;
    Ok(0)
}
