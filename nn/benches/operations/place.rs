//! What the bench has to know of a device.

use prefgraph_nn::{
    Cpu,
    cuda::Cuda,
    device::{Device, Kind, Precision},
};

/// A device that can be timed.
pub trait Place: Device {
    /// How it calls itself, in a table's title.
    fn title(&self) -> String;

    /// Bytes of a value.
    fn bytes(kind: Kind, precision: Precision) -> usize;

    /// Side of the square matrices whose product is the peak.
    const PEAK_SIDE: usize;

    /// Bytes of the copy whose rate is the bandwidth: far more than any cache has.
    const COPIED: usize;
}

impl Place for Cpu {
    fn title(&self) -> String {
        format!("{self:?}")
    }

    fn bytes(_: Kind, _: Precision) -> usize {
        4
    }

    const PEAK_SIDE: usize = 3072;
    const COPIED: usize = 1 << 28;
}

impl Place for Cuda {
    fn title(&self) -> String {
        let gpus = prefgraph_nn::cuda::devices().unwrap_or_default();
        let name = gpus
            .iter()
            .find(|gpu| format!("cuda:{}", gpu.ordinal) == self.name())
            .map(|gpu| gpu.name.clone());
        format!("{} ({})", self.name(), name.unwrap_or_default())
    }

    fn bytes(kind: Kind, precision: Precision) -> usize {
        if (kind, precision) == (Kind::Activation, Precision::Bf16) { 2 } else { 4 }
    }

    const PEAK_SIDE: usize = 8192;
    const COPIED: usize = 1 << 30;
}
