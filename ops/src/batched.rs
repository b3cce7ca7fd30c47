//! Ports whose values have one row per sample.

use crate::{
    port::{Port, take},
    rows::{Digest, SampleRows},
};

/// A port whose value has one row a sample.
pub trait Batched: Port {
    /// One digest a row.
    fn digests(&self) -> Vec<Digest>;
}

impl SampleRows {
    /// Those of `P`, which can be told apart but not kept.
    pub fn of<P: Batched>() -> Self {
        Self { digests: |value| Ok(Some(take::<P>(value).digests())), keep: None }
    }
}
