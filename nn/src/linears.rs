//! The linears of a model: what an adapter can be attached to.

use std::{
    collections::BTreeMap,
    ops::{Deref, Range},
    path::PathBuf,
    sync::Arc,
};

use crate::naming::Names;

/// A linear of the model, by its name in the checkpoint without `.weight`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearLayout {
    /// As diffusers names it, e.g. `transformer_blocks.0.attn.to_q`.
    pub name: String,
    /// Width of the input: a factor A is `[rank, inputs]`.
    pub inputs: usize,
    /// Width of the output: a factor B is `[outputs, rank]`.
    pub outputs: usize,
    /// Of a convolution, the side of its window: an input is the window's pixels, one after the other, with all their channels.
    pub window: Option<usize>,
}

impl LinearLayout {
    /// A linear, which is no convolution.
    pub fn new(name: impl Into<String>, inputs: usize, outputs: usize) -> Self {
        Self { name: name.into(), inputs, outputs, window: None }
    }

    /// The axes of its factors in files: A `[rank, inputs]` and B `[outputs, rank]`, of a convolution `[rank, channels, side, side]` and
    /// `[outputs, rank, 1, 1]`.
    pub fn factor_axes(&self, rank: usize) -> [Vec<usize>; 2] {
        match self.window {
            None => [vec![rank, self.inputs], vec![self.outputs, rank]],
            Some(side) => {
                let channels = self.inputs / (side * side).max(1);
                [vec![rank, channels, side, side], vec![self.outputs, rank, 1, 1]]
            }
        }
    }
}

/// The linears that an adapter may have factors for, in the order of the model, and the table of their names in files.
#[derive(Clone, Debug)]
pub struct Linears {
    /// What files call the linears of such a model.
    pub names: &'static Names,
    /// In the order of the model.
    pub all: Vec<LinearLayout>,
    /// The file of their own that some of them stand in: the IP-Adapter beside a U-Net. Such linears can be trained whole.
    pub ip_adapter: Option<Arc<IpAdapterPlaces>>,
}

/// Where linears of a network stand in the file of an IP-Adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpAdapterPlaces {
    /// The file.
    pub path: PathBuf,
    /// By the name of the linear: the tensor that has its weight, and its rows there.
    pub places: BTreeMap<String, (String, Range<usize>)>,
}

impl Linears {
    /// Linears that all stand in the checkpoint.
    pub fn new(names: &'static Names, all: Vec<LinearLayout>) -> Self {
        Self { names, all, ip_adapter: None }
    }
}

impl Deref for Linears {
    type Target = [LinearLayout];

    fn deref(&self) -> &[LinearLayout] {
        &self.all
    }
}

impl PartialEq for Linears {
    fn eq(&self, other: &Self) -> bool {
        (self.names.network, &self.all) == (other.names.network, &other.all)
    }
}
