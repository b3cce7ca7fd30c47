//! Rows of a table in a mapped file, read on demand.

use crate::{
    error::{Error, Result},
    files::{TensorFiles, Values},
};

/// Rows `ids` of the table `name`, `[rows, width]`, one after the other.
///
/// # Errors
/// If the table is missing or has other axes, or an id is not below `rows`.
pub fn embed(
    files: &TensorFiles,
    name: &str,
    (rows, width): (usize, usize),
    ids: &[u32],
) -> Result<Vec<f32>> {
    let bytes = files.bytes(name)?;
    let info =
        files.info(name).ok_or_else(|| Error::Internal(format!("a tensor `{name}` without a header")))?;
    if info.shape != [rows, width] {
        let what = format!("`{name}` of {}", files.path().display());
        return Err(Error::shape(what, [rows, width], &info.shape));
    }
    let values = Values::of_file(info.dtype, bytes).ok_or_else(|| {
        let message = format!("`{name}` is {}: expected f32, f16 or bf16", info.dtype);
        Error::file(files.path(), message)
    })?;
    let mut out = vec![0.0; ids.len() * width];
    for (id, to) in ids.iter().zip(out.chunks_exact_mut(width.max(1))) {
        let row = *id as usize;
        if row >= rows {
            return Err(Error::Setting(format!(
                "token id {id} for `{name}` of {}: expected ids below {rows}; is the tokeniser that of this encoder?",
                files.path().display()
            )));
        }
        values.read(row * width, to);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::files::{Dtype, NamedTensor, write_safetensors};

    #[test]
    fn rows_are_read_in_the_dtype_of_the_file_and_an_id_too_large_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        let numbers = [1.0f32, -2.0, 0.5, 4.0, -0.25, 8.0];
        let half: Vec<u8> = numbers.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        let brain: Vec<u8> = numbers.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        let tensors = [
            NamedTensor::f32("f", vec![3, 2], &numbers),
            NamedTensor { name: "h".into(), dtype: Dtype::F16, shape: vec![3, 2], bytes: half.into() },
            NamedTensor { name: "b".into(), dtype: Dtype::BF16, shape: vec![3, 2], bytes: brain.into() },
        ];
        write_safetensors(&path, &tensors, &[]).unwrap();
        let files = TensorFiles::open(&path).unwrap();
        for name in ["f", "h", "b"] {
            assert_eq!(embed(&files, name, (3, 2), &[2, 0]).unwrap(), [-0.25, 8.0, 1.0, -2.0]);
            let error = embed(&files, name, (3, 2), &[3]).unwrap_err().to_string();
            assert!(error.contains("id 3") && error.contains("below 3"), "{error}");
        }
        assert!(embed(&files, "f", (2, 3), &[0]).is_err());
    }
}
