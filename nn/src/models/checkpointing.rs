//! What a pass keeps for its backward.

use crate::error::Result;

/// What a pass keeps for its backward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checkpointing {
    /// All that the backward of every block needs.
    #[default]
    None,
    /// The input of every block; the backward runs each block again with the same kernels, and so gets the same bits. What no backward
    /// reads is left out then: FLUX's last linears, unless their gates are adapted, those of the U-Net's MLPs, and of its residual blocks
    /// all from the second norm on.
    Blocks,
}

/// What was kept of a block with inputs `I` whose backward needs `S`.
#[derive(Debug)]
pub(super) enum Kept<I, S> {
    /// All that its backward needs.
    All(S),
    /// Its input, from which the backward runs it again.
    Input(I),
}

impl<I, S> Kept<I, S> {
    /// What the backward needs, from `run` if it was not kept.
    pub fn saved(self, run: impl FnOnce(I) -> Result<S>) -> Result<S> {
        match self {
            Self::All(saved) => Ok(saved),
            Self::Input(x) => run(x),
        }
    }
}
