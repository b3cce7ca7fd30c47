//! A row-major matrix in memory or in a mapped file.

use half::{bf16, f16};

/// Whole rows that stand together.
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

impl Values<'_> {
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
    fn read(&self, start: usize, to: &mut [f32]) {
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
}

/// A row-major matrix in one or several runs of whole rows, without gaps between rows.
#[derive(Clone, Debug)]
pub struct Matrix<'a> {
    parts: Vec<Values<'a>>,
    rows: usize,
    columns: usize,
}

impl<'a> Matrix<'a> {
    /// `rows` rows of `columns` values, run after run.
    ///
    /// # Panics
    /// If the runs hold another number of values, or one does not end with a row.
    pub fn new(parts: Vec<Values<'a>>, rows: usize, columns: usize) -> Self {
        let values: usize = parts.iter().map(Values::len).sum();
        assert_eq!(values, rows * columns, "values of a matrix [{rows}, {columns}]");
        assert!(parts.iter().all(|p| p.len().is_multiple_of(columns.max(1))), "runs of whole rows");
        Self { parts, rows, columns }
    }

    /// A matrix in memory.
    ///
    /// # Panics
    /// If it holds another number of values.
    pub fn of(values: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::new(vec![Values::F32(values)], rows, columns)
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Some values of a row, widened.
    #[inline(always)]
    pub(crate) fn read(&self, row: usize, first: usize, to: &mut [f32]) {
        let mut at = row * self.columns + first;
        for part in &self.parts {
            if at < part.len() {
                return part.read(at, to);
            }
            at -= part.len();
        }
    }
}
