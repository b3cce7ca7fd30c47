//! Text encoders in a single file, as ComfyUI stores them: sizes come from the shapes of tensors.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::{
    error::{Error, Result},
    files::{Dtype, TensorFiles},
};

/// The configuration beside a file, if there is one of this kind of model.
///
/// # Errors
/// If it cannot be read, or is none for all that it says.
pub(super) fn config_beside<C: DeserializeOwned>(file: &Path, kind: &str, what: &str) -> Result<Option<C>> {
    let path = file.with_file_name("config.json");
    let Ok(text) = std::fs::read_to_string(&path) else { return Ok(None) };
    let value: Option<serde_json::Value> = serde_json::from_str(&text).ok();
    // A folder of single files has files of several models, and a configuration of at most one of them.
    let of_kind = value.and_then(|v| Some(v.get("model_type")?.as_str()? == kind)).unwrap_or(false);
    of_kind.then(|| super::read_config(&path, kind, what)).transpose()
}

/// Rows and columns of a matrix that every encoder of a kind has.
///
/// # Errors
/// If there is no such matrix, which makes the file one of another model.
pub(super) fn matrix(files: &TensorFiles, name: &str, what: &str) -> Result<[usize; 2]> {
    match files.info(name).map(|info| &info.shape[..]) {
        Some([rows, columns]) => Ok([*rows, *columns]),
        Some(axes) => {
            Err(Error::file(files.path(), format!("`{name}` has axes {axes:?}: expected two, as in {what}")))
        }
        None => {
            let there = files.names().next().map_or("none".into(), |n| format!("e.g. `{n}`"));
            let message =
                format!("is not {what} in one file: expected `{name}`; tensors that it has: {there}");
            Err(Error::file(files.path(), message))
        }
    }
}

/// How many blocks there are, by a tensor that each of them has.
pub(super) fn blocks(files: &TensorFiles, name: impl Fn(usize) -> String) -> usize {
    (0..).take_while(|block| files.info(&name(*block)).is_some()).count()
}

/// Refuse weights of eight bits.
///
/// # Errors
/// If a tensor below `prefix` has them.
pub(super) fn no_fp8(files: &TensorFiles, prefix: &str, instead: &str) -> Result<()> {
    let dtype = |name: &str| files.info(name).map(|info| info.dtype);
    let small = |dtype: &Dtype| matches!(dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2 | Dtype::F8_E8M0);
    match files.names().filter(|n| n.starts_with(prefix)).filter_map(dtype).find(small) {
        None => Ok(()),
        Some(dtype) => Err(Error::file(
            files.path(),
            format!("holds weights in fp8 ({dtype}): expected f32, f16 or bf16, {instead}"),
        )),
    }
}
