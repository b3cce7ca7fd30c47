//! Weights of an encoder in their mapped file, and its layers over them.
//!
//! Matrices are packed for every product: those of the largest published encoder are 4.7 billion values, and it runs once for
//! a prompt or a picture. Norms and biases are kept.

use std::sync::Arc;

use crate::{
    device::{Device, Kind, NormKind, Precision},
    error::Result,
    files::{TensorFiles, TensorView},
    layers::{Attention, Frozen, Linear, Loading, Norm, Packing, embedding::embed, stored, vector},
};

/// How matrices are used.
pub(crate) const LOADING: Loading = Loading { precision: Precision::F32, packing: Packing::Streamed };

/// Where a file has what transformers calls otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The name in the file, without the prefix.
    pub name: String,
    /// Which third of its rows, where three tensors are one.
    pub third: Option<usize>,
}

/// From a name of transformers to its place in a file.
pub(crate) type Layout = fn(&str) -> Place;

/// The layout of transformers itself.
pub(crate) fn transformers(name: &str) -> Place {
    Place { name: name.into(), third: None }
}

/// Tensors of transformers as a file has them.
pub(crate) fn placed(
    (prefix, layout): (&str, Layout),
    tensors: Vec<(String, Vec<usize>)>,
) -> Vec<(String, Vec<usize>)> {
    let of = |(name, mut shape): (String, Vec<usize>)| {
        let Place { name, third } = layout(&name);
        match third {
            Some(third) if third > 0 => return None,
            Some(_) => shape[0] = shape[0].saturating_mul(3),
            None => {}
        }
        Some((format!("{prefix}{name}"), shape))
    };
    tensors.into_iter().filter_map(of).collect()
}

/// A checkpoint, the prefix of the names in it, and its layout.
#[derive(Debug)]
pub(crate) struct PrefixedFiles {
    files: Arc<TensorFiles>,
    prefix: &'static str,
    layout: Layout,
    /// Number of frozen values.
    pub parameters: usize,
    /// Bytes that they take in the file.
    pub weight_bytes: usize,
}

impl PrefixedFiles {
    pub fn new(files: Arc<TensorFiles>, prefix: &'static str, tensors: &[(String, Vec<usize>)]) -> Self {
        let (parameters, weight_bytes) = stored(&files, tensors);
        Self { files, prefix, layout: transformers, parameters, weight_bytes }
    }

    /// In another layout than that of transformers.
    pub fn in_layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// The same files, for names as they are.
    pub fn unprefixed(&self) -> Self {
        Self { files: Arc::clone(&self.files), prefix: "", layout: transformers, ..*self }
    }

    fn name(&self, name: &str) -> String {
        format!("{}{}", self.prefix, (self.layout)(name).name)
    }

    pub fn view(&self, name: &str) -> Result<TensorView> {
        let view = TensorView::whole(&self.files, &self.name(name))?;
        let Some(third) = (self.layout)(name).third else { return Ok(view) };
        let rows = view.shape().first().copied().unwrap_or(0) / 3;
        view.rows(third * rows..(third + 1) * rows)
    }

    /// The values of a tensor with these axes.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.files.read_finite(&self.name(name), shape)
    }

    /// A tensor of one axis on the device.
    pub fn vector<D: Device>(&self, device: &D, name: &str, width: usize) -> Result<D::Buffer> {
        vector(device, &self.view(name)?, width, Kind::Activation, LOADING.precision)
    }

    pub fn embed(&self, name: &str, shape: (usize, usize), ids: &[u32]) -> Result<Vec<f32>> {
        embed(&self.files, &self.name(name), shape, ids)
    }

    /// `NAME.weight` and, where there is one, `NAME.bias`.
    pub fn linear<D: Device>(
        &self,
        device: &D,
        name: &str,
        bias: bool,
        (inputs, outputs): (usize, usize),
    ) -> Result<Linear<D>> {
        let bias = bias.then(|| self.view(&format!("{name}.bias"))).transpose()?;
        linear(device, (self.view(&format!("{name}.weight"))?, bias), (inputs, outputs))
    }

    /// The linears of an attention: those of queries, keys and values, and the one behind it.
    pub fn attention<D: Device>(
        &self,
        device: &D,
        names: &[String; 4],
        bias: bool,
        heads: usize,
        (width, inner): (usize, usize),
    ) -> Result<Attention<D>> {
        let [q, k, v, out] = names;
        let linear = |name: &str, io| self.linear(device, name, bias, io);
        let (q, k, v) = (linear(q, (width, inner))?, linear(k, (width, inner))?, linear(v, (width, inner))?);
        Ok(Attention { heads, q, k, v, out: linear(out, (inner, width))? })
    }

    /// A layer norm with a bias, or an RMS norm without one.
    pub fn norm<D: Device>(
        &self,
        device: &D,
        kind: NormKind,
        name: &str,
        width: usize,
        eps: f64,
    ) -> Result<Norm<D>> {
        let bias = (kind == NormKind::Layer).then(|| self.view(&format!("{name}.bias"))).transpose()?;
        Norm::new(device, kind, width, &self.view(&format!("{name}.weight"))?, bias.as_ref(), eps)
    }
}

/// A linear over its weight and perhaps its bias.
pub(crate) fn linear<D: Device>(
    device: &D,
    (weight, bias): (TensorView, Option<TensorView>),
    (inputs, outputs): (usize, usize),
) -> Result<Linear<D>> {
    let weight = Frozen::new(device, weight, (outputs, inputs), LOADING, None)?;
    Linear::plain(device, weight, bias)
}
