//! Values as rows, one per sample: what a port provides so that its values can be cached.

use crate::{
    error::OpError,
    shape::ErasedShape,
    state::{NamedState, Value},
};

/// BLAKE3 of one row with its axes.
pub type Digest = [u8; 32];

/// The rows of a port type that is known at run time only.
#[derive(Clone, Copy)]
pub struct SampleRows {
    /// One digest a row; `None` where the value does not tell how many rows it has, as an empty list.
    pub digests: fn(&Value) -> Result<Option<Vec<Digest>>, OpError>,
    /// How rows are kept, for kinds that can be.
    pub keep: Option<Keep>,
}

/// Rows as named tensors, and back, bit by bit.
#[derive(Clone, Copy)]
pub struct Keep {
    /// One state a row.
    pub split: fn(&Value) -> Result<Vec<NamedState>, OpError>,
    /// The value of these rows.
    pub join: fn(&[NamedState]) -> Result<Value, OpError>,
    /// Rows of a value of this shape, where it tells, and the axes of each.
    pub measure: fn(&ErasedShape) -> Option<(usize, String)>,
}

/// The digest of a row of these axes and bytes; the kind keeps rows of different ports apart.
pub fn digest<B: AsRef<[u8]>>(kind: &str, axes: &[usize], bytes: impl IntoIterator<Item = B>) -> Digest {
    let mut hash = blake3::Hasher::new_derive_key("prefgraph 2026 a row of a port");
    hash.update(&(kind.len() as u64).to_le_bytes());
    hash.update(kind.as_bytes());
    hash.update(&(axes.len() as u64).to_le_bytes());
    for axis in axes {
        hash.update(&(*axis as u64).to_le_bytes());
    }
    for part in bytes {
        hash.update(part.as_ref());
    }
    *hash.finalize().as_bytes()
}
