//! What a pass keeps for its backward.

use crate::error::Result;

/// What a pass keeps for its backward. The gradient has the same bits in all three: what was not kept is made again by the same kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checkpointing {
    /// All that the backward of every block reads.
    #[default]
    None,
    /// What products have made. What costs no product is made again from it: normed rows, results of activation functions and of gates,
    /// queries and keys by heads. Selective recomputation, as Korthikanti et al. 2022 call it, of other parts: attention keeps no scores here.
    Selective,
    /// The input of every block; the backward runs each block again. What no backward reads is left out then: FLUX's last linears, unless
    /// their gates are adapted, those of the U-Net's MLPs, and of its residual blocks all from the second norm on.
    Blocks,
}

impl Checkpointing {
    /// All of them, from the one that keeps most.
    pub const ALL: [Self; 3] = [Self::None, Self::Selective, Self::Blocks];
}

/// How much a block keeps for its backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// It has none.
    Nothing,
    /// Its input.
    Input,
    /// What products have made.
    Products,
    /// All that the backward reads.
    All,
}

impl Keep {
    /// In a pass that is to have a backward, or not.
    pub fn of_pass(checkpointing: Checkpointing, saving: bool) -> Self {
        match checkpointing {
            _ if !saving => Self::Nothing,
            Checkpointing::None => Self::All,
            Checkpointing::Selective => Self::Products,
            Checkpointing::Blocks => Self::Input,
        }
    }

    /// The same where a backward reaches the block.
    pub fn if_reached(self, reached: bool) -> Self {
        if reached { self } else { Self::Nothing }
    }

    /// What the block itself keeps while it runs: the pass has its input.
    pub fn inside(self) -> Self {
        if self == Self::Input { Self::Nothing } else { self }
    }

    /// Is there anything?
    pub fn is_some(self) -> bool {
        self != Self::Nothing
    }
}

/// What was kept of a block with inputs `I` whose backward needs `S`.
#[derive(Debug)]
pub(super) enum Kept<I, S> {
    /// What its backward needs.
    Inside(S),
    /// Its input, from which the backward runs it again.
    Input(I),
}

impl<I, S> Kept<I, S> {
    /// What the backward needs, from `run` if it was not kept.
    pub fn saved(self, run: impl FnOnce(I) -> Result<S>) -> Result<S> {
        match self {
            Self::Inside(saved) => Ok(saved),
            Self::Input(x) => run(x),
        }
    }
}
