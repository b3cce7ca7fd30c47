//! Weights of a text encoder in their mapped file, and its layers over them.

use std::sync::Arc;

use crate::{
    cpu::Cpu,
    error::Result,
    files::TensorFiles,
    layers::{Weight, dense, embedding::embed, stored},
};

/// A checkpoint and the prefix of the names in it.
#[derive(Debug)]
pub(super) struct PrefixedFiles {
    files: Arc<TensorFiles>,
    prefix: &'static str,
    /// Number of frozen values.
    pub parameters: usize,
    /// Bytes that they take in the file.
    pub weight_bytes: usize,
}

impl PrefixedFiles {
    pub fn new(files: Arc<TensorFiles>, prefix: &'static str, tensors: &[(String, Vec<usize>)]) -> Self {
        let (parameters, weight_bytes) = stored(&files, tensors);
        Self { files, prefix, parameters, weight_bytes }
    }

    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>> {
        self.files.read_finite(&self.name(name), &[length])
    }

    pub fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Vec<f32>> {
        self.files.read_finite(&self.name(name), &shape)
    }

    pub fn embed(&self, name: &str, shape: (usize, usize), ids: &[u32]) -> Result<Vec<f32>> {
        embed(&self.files, &self.name(name), shape, ids)
    }

    /// `x W^T + bias` for all rows of `x`, with `NAME.weight` and, where there is one, `NAME.bias`.
    pub fn linear(
        &self,
        device: &Cpu,
        name: &str,
        bias: bool,
        x: &[f32],
        (inputs, outputs): (usize, usize),
    ) -> Result<Vec<f32>> {
        let weight = Weight::locate(&self.files, &self.name(&format!("{name}.weight")), outputs, inputs)?;
        let bias = bias.then(|| self.vector(&format!("{name}.bias"), outputs)).transpose()?;
        let rows = x.len() / inputs;
        let mut out = vec![0.0; rows * outputs];
        dense(device, rows, (x, inputs), &weight, bias.as_deref(), (&mut out, outputs))?;
        Ok(out)
    }
}
