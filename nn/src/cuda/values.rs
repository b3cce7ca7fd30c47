//! Buffers and matrices.

use std::{borrow::Cow, sync::Arc};

use cudarc::driver::sys::CUdeviceptr;
use half::bf16;

use super::memory::Memory;
use crate::device::{Kind, Precision, Values};

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

    /// The bytes of a file that already are what would be stored: most published weights are bf16, and 24 GB are not worth
    /// widening to be rounded again.
    pub fn stored<'a>(self, values: &Values<'a>) -> Option<&'a [u8]> {
        match (self, *values) {
            (Self::F32, Values::F32(values)) => Some(bytemuck::cast_slice(values)),
            // Files are little-endian.
            _ if cfg!(target_endian = "big") => None,
            (Self::Bf16, Values::Bf16Bytes(bytes)) | (Self::F32, Values::F32Bytes(bytes)) => Some(bytes),
            _ => None,
        }
    }

    /// Values from `start` on as they are stored, as many as `to` has room for.
    pub fn write(self, values: &Values<'_>, start: usize, to: &mut [u8]) {
        const AT_ONCE: usize = 1024;
        if let Some(stored) = self.stored(values) {
            let start = start * self.size();
            return to.copy_from_slice(&stored[start..start + to.len()]);
        }
        let mut widened = [0.0; AT_ONCE];
        for (i, to) in to.chunks_mut(AT_ONCE * self.size()).enumerate() {
            let widened = &mut widened[..to.len() / self.size()];
            values.read(start + i * AT_ONCE, widened);
            to.copy_from_slice(&self.bytes(widened));
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

/// Where a matrix lies.
#[derive(Debug)]
pub(super) enum MatrixMemory {
    /// In memory of its own.
    Own(Arc<Memory>),
    /// In memory with others, from this byte on.
    Part(Arc<Memory>, u64),
    /// In a group of streamed weights, which stays until its queue brings another one: only the product that is asked for next reads
    /// it.
    Streamed(CUdeviceptr),
    /// Nowhere: the allocation failed. The queue has the error, and does nothing more.
    Nowhere,
}

impl MatrixMemory {
    pub fn pointer(&self) -> CUdeviceptr {
        match self {
            Self::Own(memory) => memory.pointer(),
            Self::Part(memory, start) => memory.pointer() + start,
            Self::Streamed(pointer) => *pointer,
            Self::Nowhere => 0,
        }
    }
}

impl From<Option<Arc<Memory>>> for MatrixMemory {
    fn from(memory: Option<Arc<Memory>>) -> Self {
        memory.map_or(Self::Nowhere, Self::Own)
    }
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
    pub(super) memory: MatrixMemory,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) element: Element,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_a_file_that_are_taken_as_they_are_would_have_been_stored_so() {
        let values = [0.0, -1.5, 3.0e-39, 256.0];
        let exact = Element::F32.bytes(&values).into_owned();
        let rounded = Element::Bf16.bytes(&values).into_owned();
        for (element, from) in [
            (Element::F32, Values::F32(&values)),
            (Element::F32, Values::F32Bytes(&exact)),
            (Element::Bf16, Values::Bf16Bytes(&rounded)),
        ] {
            let stored = element.stored(&from).expect("nothing is to be converted");
            assert_eq!(stored, &*element.bytes(&from.to_vec()));
        }
        assert!(Element::Bf16.stored(&Values::F32(&values)).is_none());
        assert!(Element::F32.stored(&Values::Bf16Bytes(&rounded)).is_none());
    }
}
