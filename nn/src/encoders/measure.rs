//! Encoders in a single file, as ComfyUI stores them: sizes come from the shapes of tensors.

use crate::{
    error::{Error, Result},
    files::{Dtype, TensorFiles},
};

/// Rows and columns of a matrix that every encoder of a kind has.
///
/// # Errors
/// If there is no such matrix, which makes the file one of another model.
pub(crate) fn matrix(files: &TensorFiles, name: &str, what: &str) -> Result<[usize; 2]> {
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
pub(crate) fn blocks(files: &TensorFiles, name: impl Fn(usize) -> String) -> usize {
    (0..).take_while(|block| files.info(&name(*block)).is_some()).count()
}

/// Refuse weights of eight bits.
///
/// # Errors
/// If a tensor below `prefix` has them.
pub(crate) fn no_fp8(files: &TensorFiles, prefix: &str, instead: &str) -> Result<()> {
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
