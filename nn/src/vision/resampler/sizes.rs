//! The sizes of a resampler, as the tensors of an IP-Adapter's file show them.
//!
//! The letters are those of the module above.

use crate::{
    encoders::measure::{blocks, matrix},
    error::{Error, Result},
    files::TensorFiles,
};

/// What the names of its tensors begin with.
pub(super) const PREFIX: &str = "image_proj.";
/// Width of a head, which no tensor shows: all published files have it.
const HEAD: usize = 64;
/// What is expected, in messages.
const WHAT: &str = "an IP-Adapter-Plus";

/// The sizes of a resampler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResamplerSizes {
    /// I.
    pub input: usize,
    /// Q.
    pub queries: usize,
    /// E.
    pub width: usize,
    /// Heads times their width.
    pub inner: usize,
    /// M.
    pub mlp: usize,
    /// Layers.
    pub depth: usize,
    /// W.
    pub output: usize,
}

impl ResamplerSizes {
    /// Measure the tensors of a file.
    pub(super) fn measured(files: &TensorFiles) -> Result<Self> {
        let fault = |message: String| Error::file(files.path(), message);
        let known = |name: &str| files.names().any(|n| n.starts_with(&format!("{PREFIX}{name}")));
        let kind = [
            ("perceiver_resampler.", "an IP-Adapter-FaceID-Plus, whose prompts are made of faces"),
            ("proj.0.", "an IP-Adapter of another kind (full face or FaceID), which has no resampler"),
            ("proj.", "a plain IP-Adapter, which has no resampler"),
        ];
        if let Some((_, kind)) = kind.iter().find(|(name, _)| known(name)) {
            return Err(fault(format!("is {kind}: expected {WHAT}, `ip-adapter-plus_*.safetensors`")));
        }
        let size = |name: &str| matrix(files, &format!("{PREFIX}{name}.weight"), WHAT);
        let [width, input] = size("proj_in")?;
        let [output, _] = size("proj_out")?;
        let [inner, _] = size("layers.0.0.to_q")?;
        let [mlp, _] = size("layers.0.1.1")?;
        let queries = match files.info(&format!("{PREFIX}latents")).map(|info| &info.shape[..]) {
            Some([1, queries, _]) => *queries,
            other => {
                return Err(fault(format!(
                    "`{PREFIX}latents` has axes {other:?}: expected [1, queries, width], as in {WHAT}"
                )));
            }
        };
        if inner == 0 || !inner.is_multiple_of(HEAD) || queries == 0 {
            return Err(fault(format!(
                "has {queries} queries in heads that are {inner} wide together: expected a multiple of {HEAD}, as in {WHAT}"
            )));
        }
        let depth = blocks(files, |i| format!("{PREFIX}layers.{i}.0.to_q.weight"));
        Ok(Self { input, queries, width, inner, mlp, depth, output })
    }

    /// Heads.
    pub fn heads(&self) -> usize {
        self.inner / HEAD
    }

    /// Number of its values.
    pub(crate) fn parameters(&self) -> usize {
        self.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// Every tensor of the resampler, with its shape.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (e, w) = (self.width, self.output);
        let mut all = vec![("latents".to_owned(), vec![1, self.queries, e])];
        let both = |name: String, shape: Vec<usize>| {
            let bias = (format!("{name}.bias"), vec![shape[0]]);
            [(format!("{name}.weight"), shape), bias]
        };
        all.extend(both("proj_in".into(), vec![e, self.input]));
        all.extend(both("proj_out".into(), vec![w, e]));
        all.extend(both("norm_out".into(), vec![w]));
        for layer in 0..self.depth {
            let at = |part: &str| format!("layers.{layer}.{part}");
            all.extend(["0.norm1", "0.norm2", "1.0"].into_iter().flat_map(|norm| both(at(norm), vec![e])));
            all.extend([
                (at("0.to_q.weight"), vec![self.inner, e]),
                (at("0.to_kv.weight"), vec![2 * self.inner, e]),
                (at("0.to_out.weight"), vec![e, self.inner]),
                (at("1.1.weight"), vec![self.mlp, e]),
                (at("1.3.weight"), vec![e, self.mlp]),
            ]);
        }
        all.into_iter().map(|(name, shape)| (format!("{PREFIX}{name}"), shape)).collect()
    }
}
