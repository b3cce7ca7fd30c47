//! Sizes of a model's tensors as stored in a file.

use crate::files::{Dtype, TensorFiles};

/// Number of values of these tensors, and the bytes that they take in the file.
pub fn stored(files: &TensorFiles, tensors: &[(String, Vec<usize>)]) -> (usize, usize) {
    tensors.iter().fold((0, 0), |(values, bytes), (name, shape)| {
        let count: usize = shape.iter().product();
        let wide = files.info(name).is_none_or(|i| i.dtype == Dtype::F32);
        (values + count, bytes + count * if wide { 4 } else { 2 })
    })
}
