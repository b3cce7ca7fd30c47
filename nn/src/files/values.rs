//! Values in memory or in a file, in any dtype that weights have.

use half::{bf16, f16};

use super::Dtype;

/// Values in memory or as a file has them, which are read as f32.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// In memory.
    F32(&'a [f32]),
    /// Little-endian f32 of a file.
    F32Bytes(&'a [u8]),
    /// Little-endian f16 of a file.
    F16Bytes(&'a [u8]),
    /// Little-endian bf16 of a file.
    Bf16Bytes(&'a [u8]),
}

impl<'a> Values<'a> {
    /// The bytes of a file; nothing if its dtype is none of f32, f16 and bf16.
    #[must_use]
    pub fn of_file(dtype: Dtype, bytes: &'a [u8]) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32Bytes(bytes)),
            Dtype::F16 => Some(Self::F16Bytes(bytes)),
            Dtype::BF16 => Some(Self::Bf16Bytes(bytes)),
            _ => None,
        }
    }

    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F32Bytes(bytes) => bytes.len() / 4,
            Self::F16Bytes(bytes) | Self::Bf16Bytes(bytes) => bytes.len() / 2,
        }
    }

    /// Are there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values from `start` on, widened.
    #[inline(always)]
    pub(crate) fn read(&self, start: usize, to: &mut [f32]) {
        let end = start + to.len();
        match self {
            Self::F32(values) => to.copy_from_slice(&values[start..end]),
            Self::F32Bytes(bytes) => {
                for (to, from) in to.iter_mut().zip(bytes[4 * start..4 * end].as_chunks::<4>().0) {
                    *to = f32::from_le_bytes(*from);
                }
            }
            Self::F16Bytes(bytes) => {
                for (to, from) in to.iter_mut().zip(bytes[2 * start..2 * end].as_chunks::<2>().0) {
                    *to = f16::from_le_bytes(*from).to_f32();
                }
            }
            Self::Bf16Bytes(bytes) => {
                for (to, from) in to.iter_mut().zip(bytes[2 * start..2 * end].as_chunks::<2>().0) {
                    *to = bf16::from_le_bytes(*from).to_f32();
                }
            }
        }
    }

    /// All of them, widened.
    #[must_use]
    pub fn to_vec(&self) -> Vec<f32> {
        let mut all = vec![0.0; self.len()];
        self.read(0, &mut all);
        all
    }
}
