//! What the tests of operators share: a context, pseudo-random tensors, golden cases.

use std::path::PathBuf;

use prefgraph_nn as nn;

use super::tensors::{mask, tensor};
use crate::{
    operator::Ctx,
    ports::{Latents, Mask},
    random::Random,
    tensor::host,
};

/// Owns what a [`Ctx`] borrows.
pub(crate) struct Bench {
    cpu: nn::Cpu,
    host: dfdx::tensor::Cpu,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self { cpu: nn::Cpu::new(1).unwrap(), host: host() }
    }

    pub(crate) fn ctx(&self) -> Ctx<'_> {
        self.at(0)
    }

    pub(crate) fn at(&self, step: u64) -> Ctx<'_> {
        Ctx {
            step,
            seed: 7,
            node: "node",
            backward_follows: true,
            cpu: &self.cpu,
            gpu: None,
            host: &self.host,
        }
    }
}

/// Standard normal latents, in any role.
pub(crate) fn latents<L: From<Latents>>(ctx: &Ctx<'_>, shape: (usize, usize, usize, usize), seed: u64) -> L {
    let (b, c, h, w) = shape;
    tensor(ctx, shape, Random::new(seed, "latents", 0, "").normals(b * c * h * w)).unwrap().into()
}

/// A mask of the given values, in any role.
pub(crate) fn mask_of<M: From<Mask>>(ctx: &Ctx<'_>, shape: (usize, usize, usize), values: &[f32]) -> M {
    mask(ctx, shape, values.to_vec()).unwrap().into()
}

#[track_caller]
pub(crate) fn assert_close(found: f32, expected: f32, tolerance: f32) {
    assert!((found - expected).abs() <= tolerance * expected.abs().max(1.0), "{found} and {expected}");
}

/// The largest difference between two runs of values.
#[track_caller]
pub(crate) fn worst(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The folder of a golden case.
///
/// # Panics
/// If it is nowhere.
pub(crate) fn case(name: &str) -> PathBuf {
    let root = std::env::var_os("PREFGRAPH_FIXTURES").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures")),
        PathBuf::from,
    );
    let folder = root.join(name);
    assert!(folder.is_dir(), "no golden case at {}: see PREFGRAPH_FIXTURES", folder.display());
    folder
}
