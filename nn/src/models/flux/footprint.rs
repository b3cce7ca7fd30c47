//! How many bytes the values of a pass and the frozen weights take, on the processor and on a GPU.
//!
//! `N` outputs, `K` inputs, `R` rank of a frozen branch.
//!
//! | | processor | GPU |
//! |---|---|---|
//! | activations | f32 | the precision of products |
//! | a frozen matrix | packed once for each direction | once |
//! | biases, norms | as they are, in the file's memory | beside the matrices |
//! | streamed weights | one matrix, packed for one product | the blocks of a window, and pinned buffers |

use super::{
    FluxOptions, FrozenUse,
    config::{DOUBLE_LINEARS, FluxConfig, SINGLE_LINEARS},
};
use crate::{
    backbone::LinearLayout,
    cost::DeviceKind,
    cuda,
    layers::Packing,
    lora::{AdapterLayout, FrozenAdapter},
    models::footprint::{Storage, value},
};

/// The linears of every block with two streams and of every block with one, in the order of the configuration.
pub(super) fn blocks(config: &FluxConfig) -> (Vec<Vec<LinearLayout>>, Vec<Vec<LinearLayout>>) {
    let mut linears = config.linears().into_iter();
    let double = (0..config.num_layers).map(|_| linears.by_ref().take(DOUBLE_LINEARS).collect()).collect();
    let single =
        (0..config.num_single_layers).map(|_| linears.by_ref().take(SINGLE_LINEARS).collect()).collect();
    (double, single)
}

/// The frozen weights as a device holds them.
pub(super) struct FrozenWeights<'a> {
    pub on: DeviceKind,
    pub config: &'a FluxConfig,
    pub options: &'a FluxOptions,
    /// An adapter of the frozen network.
    pub adapter: Option<&'a FrozenAdapter>,
}

impl<'a> FrozenWeights<'a> {
    pub fn storage(&self) -> Storage {
        Storage::new(self.on, self.options.loading.precision)
    }

    /// The adapter of the frozen network where it is a branch.
    pub fn branches(&self) -> Option<&'a FrozenAdapter> {
        let is_branch = self.options.adapter.as_ref().is_some_and(|(_, how)| *how == FrozenUse::Branch);
        self.adapter.filter(|_| is_branch)
    }

    fn value(&self) -> usize {
        value(self.options.loading.precision)
    }

    /// Values of a linear's matrices. Linears that share their first factors are counted as if they did not.
    fn values(&self, linear: &LinearLayout) -> usize {
        let rank = self.branches().and_then(|b| b.get(&linear.name)).map_or(0, |f| f.rank());
        linear.inputs * linear.outputs + rank * (linear.inputs + linear.outputs)
    }

    fn all_linears(&self) -> impl Iterator<Item = LinearLayout> {
        self.config.linears().into_iter().chain(self.config.outer_linears())
    }

    /// Bytes of weights that stay on the device. For the processor those packed for the forward, and with an adapter those that
    /// a backward passes once more.
    pub fn resident(&self, adapter: Option<&AdapterLayout>) -> usize {
        let matrices = match self.options.loading.packing {
            Packing::Streamed => 0,
            Packing::Resident => self.all_linears().map(|l| self.values(&l)).sum::<usize>() * self.value(),
        };
        match self.on {
            DeviceKind::Cpu if self.options.loading.packing == Packing::Resident && adapter.is_some() => {
                // The modulations' inputs need no derivative.
                let linears = self.config.linears();
                let passed = linears.iter().filter(|l| !l.name.ends_with(".linear"));
                matrices + passed.map(|l| self.values(l)).sum::<usize>() * self.value()
            }
            DeviceKind::Cpu => matrices,
            DeviceKind::Cuda => {
                let biases = self.all_linears().map(|l| l.outputs).sum::<usize>() * self.value();
                // Of queries and keys, in both streams of a block that has two.
                let norms = 4 * self.config.num_layers + 2 * self.config.num_single_layers;
                matrices + biases + norms * self.config.attention_head_dim * size_of::<f32>()
            }
        }
    }

    /// Bytes of a block's matrices.
    fn block(&self, linears: &[LinearLayout]) -> usize {
        linears.iter().map(|l| self.values(l)).sum::<usize>() * self.value()
    }

    /// Bytes on the device while a pass runs, for weights that are streamed.
    pub fn streamed(&self) -> usize {
        let (double, single) = blocks(self.config);
        let largest = || double.iter().chain(&single).map(|b| self.block(b)).max().unwrap_or(0);
        match (self.options.loading.packing, self.on) {
            (Packing::Resident, _) => 0,
            (Packing::Streamed, DeviceKind::Cpu) => {
                let matrices = self.config.linears();
                matrices.iter().map(|l| l.inputs * l.outputs).max().unwrap_or(0) * self.value()
            }
            (Packing::Streamed, DeviceKind::Cuda) => cuda::GROUPS * largest(),
        }
    }

    /// The same between a pass and its backward: the last block, with which the backward begins.
    pub fn kept_streamed(&self) -> usize {
        let (double, single) = blocks(self.config);
        match (self.options.loading.packing, self.on) {
            (Packing::Streamed, DeviceKind::Cuda) => {
                single.last().or(double.last()).map_or(0, |b| self.block(b))
            }
            _ => 0,
        }
    }

    /// Bytes of host memory of a queue: what streamed weights pass through.
    pub fn pinned(&self) -> usize {
        match self.options.loading.packing {
            Packing::Resident => 0,
            Packing::Streamed => self.on.pinned_bytes(),
        }
    }

    /// Bytes of weights that a forward reads: the processor's products widen them to f32.
    pub fn read_by_a_forward(&self) -> f64 {
        let value = match self.on {
            DeviceKind::Cpu => size_of::<f32>(),
            DeviceKind::Cuda => self.value(),
        };
        self.config.layout().parameters as f64 * value as f64
    }
}
