//! What is trained: low-rank factors beside frozen linears, `y = x W^T + bias + (alpha / rank) (x A^T) B^T`.
//!
//! All factors of an adapter stand in one flat run of `f32`, module after module, A before B: the optimiser,
//! norms and sums are single passes, whatever the number of modules.
//!
//! ```text
//! adapter  what it is in memory                 pattern  which linears are adapted
//! init     what factors start from              frozen   an adapter that is part of the frozen network
//! read     a file of any tool                   write    files, read back and compared
//! folder   which file of a folder               format   the formats that are written
//! gather   its tensors as pairs of factors      names    prefixes, linears and endings, by tool
//! factors  a pair, and the linears it is for    peft     the configuration of PEFT
//! header   keys of the header
//! ```

mod adapter;
mod factors;
mod folder;
mod format;
mod frozen;
mod gather;
mod header;
mod init;
mod names;
mod pattern;
mod peft;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub use adapter::{Adapter, AdapterGrad, AdapterLayout, LARGEST_FACTOR};
pub use format::AdapterFormat;
pub use frozen::{FrozenAdapter, FrozenFactors};
pub use init::{Init, normal_pair};
pub use pattern::PatternMatch;
pub use read::{AdapterFile, FileModule};
pub use write::Written;
