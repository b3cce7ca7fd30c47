//! Which file of a folder is the adapter.

use std::path::{Path, PathBuf};

use super::AdapterFormat;
use crate::error::{Error, Result};

/// What PEFT, diffusers and a run here call the file of an adapter in its folder.
const NAMES: [&str; 3] =
    ["adapter_model.safetensors", "pytorch_lora_weights.safetensors", "adapter.safetensors"];
/// The same, as older versions of PEFT and diffusers saved it.
const PICKLES: [&str; 2] = ["adapter_model.bin", "pytorch_lora_weights.bin"];

/// The adapter file of a folder; a path that is none is that of the file.
///
/// # Errors
/// If the folder has no such file, or more than one.
pub(super) fn file_in(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.into());
    }
    let there = |names: &[&'static str]| -> Vec<&str> {
        names.iter().copied().filter(|name| path.join(name).is_file()).collect()
    };
    let ip_adapter = AdapterFormat::IpAdapter.file_name("adapter");
    match (&there(&NAMES)[..], &there(&PICKLES)[..]) {
        ([name], _) => Ok(path.join(name)),
        ([], [pickle, ..]) => Err(Error::file(
            path,
            format!(
                "has the adapter in `{pickle}`, a pickle, which can run any program: save it as safetensors"
            ),
        )),
        ([], []) if path.join(&ip_adapter).is_file() => Err(Error::file(
            path,
            format!(
                "has no factors, but an IP-Adapter, `{ip_adapter}`, whose matrices are whole: it is part of a network, set as \
                 `ip_adapter` of its `backbone` and of its `image-prompt`"
            ),
        )),
        ([], []) => Err(Error::file(
            path,
            format!("is a folder without an adapter: expected one of {}", NAMES.join(", ")),
        )),
        (several, _) => Err(Error::file(
            path,
            format!("has several adapters, {}: name the file itself", several.join(" and ")),
        )),
    }
}
