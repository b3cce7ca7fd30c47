//! Buffers and matrices.

use std::{borrow::Cow, sync::Arc};

use half::bf16;

use super::memory::Memory;
use crate::device::{Kind, Precision};

/// How a value is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Element {
    F32,
    Bf16,
}

impl Element {
    /// How values of a kind are stored where products have this precision.
    pub fn of(kind: Kind, precision: Precision) -> Self {
        match (kind, precision) {
            (Kind::Activation, Precision::Bf16) => Self::Bf16,
            _ => Self::F32,
        }
    }

    /// Bytes of a value.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// Values as they are stored.
    pub fn bytes(self, values: &[f32]) -> Cow<'_, [u8]> {
        match self {
            Self::F32 => bytemuck::cast_slice(values).into(),
            Self::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_bits().to_ne_bytes()).collect(),
        }
    }

    /// Values from how they are stored.
    pub fn values(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_ne_bytes(*b)).collect(),
            Self::Bf16 => bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|b| bf16::from_bits(u16::from_ne_bytes(*b)).to_f32())
                .collect(),
        }
    }
}

/// A run of values on a GPU.
#[derive(Debug)]
pub struct CudaBuffer {
    /// Nothing where the allocation failed: the queue has the error, and does nothing more. Shared by those who only read.
    pub(super) memory: Option<Arc<Memory>>,
    pub(super) len: usize,
    pub(super) element: Element,
}

impl CudaBuffer {
    /// The same values, for somebody who only reads them.
    pub(super) fn share(&self) -> Self {
        Self { memory: self.memory.clone(), ..*self }
    }

    /// Does somebody else read the same values?
    pub(super) fn is_shared(&self) -> bool {
        self.memory.as_ref().is_some_and(|memory| Arc::strong_count(memory) > 1)
    }
}

/// A matrix on a GPU, row-major without gaps: products of both directions read it.
#[derive(Debug)]
pub struct CudaMatrix {
    pub(super) memory: Option<Arc<Memory>>,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) element: Element,
}
