//! Keys of the strings in the header of an adapter file, where both reading and writing need them.

/// PEFT's configuration as JSON, which diffusers writes and reads.
pub(super) const PEFT: &str = "lora_adapter_metadata";
/// Alpha of the whole network in files of sd-scripts.
pub(super) const NETWORK_ALPHA: &str = "ss_network_alpha";
/// Rank of the adapter. Only files that were written here have it.
pub(super) const RANK: &str = "prefgraph.rank";
/// Alpha that goes with the factors as they are in the file.
pub(super) const ALPHA: &str = "prefgraph.alpha";
/// Alpha that the adapter was trained with, where alpha / rank has been multiplied into B and can be divided out again
/// without rounding.
pub(super) const TRAINED_ALPHA: &str = "prefgraph.trained_alpha";
/// Kinds of linears.
pub(super) const TARGETS: &str = "prefgraph.targets";
