//! The linears of a model: what an adapter can be attached to.

use std::ops::Deref;

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
}

/// The linears that an adapter may have factors for, in the order of the model, and the table of their names in files.
#[derive(Clone, Debug)]
pub struct Linears {
    /// What files call the linears of such a model.
    pub names: &'static Names,
    /// In the order of the model.
    pub all: Vec<LinearLayout>,
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
