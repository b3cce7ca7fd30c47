//! The linears of a model: what an adapter can be attached to.

/// A linear of the model, by its name in the checkpoint without `.weight`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearLayout {
    /// E.g. `transformer_blocks.0.attn.to_q`.
    pub name: String,
    /// Width of the input.
    pub inputs: usize,
    /// Width of the output.
    pub outputs: usize,
}
