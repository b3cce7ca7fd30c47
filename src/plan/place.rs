//! Where work is done and values lie: the processor with its memory, or the GPU that networks run on.

use std::fmt;

use prefgraph_ops::{
    ErasedShape,
    ports::{AdapterShape, MomentsShape},
};

use super::Rates;

/// A pool of arithmetic units with a memory of its own. Tasks of one place share it; those of two run beside each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// The processor.
    #[default]
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.pad("cpu"),
            Self::Cuda(number) => f.pad(&format!("cuda:{number}")),
        }
    }
}

/// The GPU that the networks of a plan run on. It need not exist.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GpuOptions {
    /// Its number.
    pub number: usize,
    /// Its speeds; `None` where nobody has measured them. Tasks are still ordered then, but the plan has no times to show.
    pub rates: Option<Rates>,
    /// Bytes of its memory that the driver holds: its context, the code of kernels and libraries.
    pub driver: usize,
}

impl GpuOptions {
    /// As a place.
    pub fn place(&self) -> Place {
        Place::Cuda(self.number)
    }
}

/// Where a value of this shape lies in a run with networks at `networks`. An adapter and the state of its optimiser lie beside
/// the network that reads them; all else is the host's.
pub(super) fn of_value(shape: &ErasedShape, networks: Place) -> Place {
    let is_state = shape.get::<AdapterShape>().is_some() || shape.get::<MomentsShape>().is_some();
    if is_state { networks } else { Place::Cpu }
}
