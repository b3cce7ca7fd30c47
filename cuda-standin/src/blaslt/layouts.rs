//! Matrices in memory: where each value is, and values as f32.

use super::{
    INVALID_VALUE, NOT_SUPPORTED, Status, Type,
    objects::{self, Kind},
    refuse,
};

// cublasLtMatrixLayoutAttribute_t
const ORDER: i32 = 1;
const BATCH_COUNT: i32 = 5;
const BATCH_STRIDE: i32 = 6;

/// `cublasLtOrder_t`: by columns.
const BY_COLUMNS: i64 = 0;

/// A matrix by columns, or as many of one shape as `batch` says.
#[derive(Clone, Copy)]
pub struct Layout {
    pub kind: Type,
    pub rows: usize,
    pub cols: usize,
    pub leading: usize,
    pub batch: usize,
    stride: usize,
}

impl Layout {
    pub fn of(handle: usize) -> Result<Layout, Status> {
        let object = objects::object(handle)?;
        let Kind::Layout { kind, rows, cols, leading } = object.kind else { return Err(INVALID_VALUE) };
        let Some(kind) = Type::from_number(kind) else {
            return refuse(NOT_SUPPORTED, &format!("values of type {kind}: only f32 and bf16"));
        };
        if object.attributes.number(ORDER).unwrap_or(BY_COLUMNS) != BY_COLUMNS {
            return refuse(NOT_SUPPORTED, "an order other than by columns");
        }
        if rows == 0 || cols == 0 || leading < rows {
            return refuse(
                INVALID_VALUE,
                &format!("{rows} rows and {cols} columns, one each {leading} values"),
            );
        }
        let batch = object.attributes.count(BATCH_COUNT).max(1);
        Ok(Layout { kind, rows, cols, leading, batch, stride: object.attributes.count(BATCH_STRIDE) })
    }

    /// Bytes from the first value to the last.
    pub fn bytes(&self) -> usize {
        (self.place(self.batch - 1, self.rows - 1, self.cols - 1) + 1) * self.kind.bytes()
    }
    /// Which value one is, from the first of the batch.
    pub fn place(&self, batch: usize, row: usize, col: usize) -> usize {
        batch * self.stride + col * self.leading + row
    }
    /// One matrix of the batch, by columns, without gaps.
    pub fn read(&self, at: usize, batch: usize) -> Vec<f32> {
        let mut values = Vec::with_capacity(self.rows * self.cols);
        for col in 0..self.cols {
            for row in 0..self.rows {
                values.push(get(self.kind, at, self.place(batch, row, col)));
            }
        }
        values
    }
}

pub fn get(kind: Type, at: usize, index: usize) -> f32 {
    // SAFETY: the call checked that the whole matrix is in one allocation.
    unsafe {
        match kind {
            Type::F32 => *(at as *const f32).add(index),
            Type::Bf16 => f32::from_bits(u32::from(*(at as *const u16).add(index)) << 16),
        }
    }
}

pub fn put(kind: Type, at: usize, index: usize, value: f32) {
    // SAFETY: as above; nobody else uses the result while this operation runs.
    unsafe {
        match kind {
            Type::F32 => *(at as *mut f32).add(index) = value,
            Type::Bf16 => *(at as *mut u16).add(index) = bf16_bits(value),
        }
    }
}

/// To nearest, to even.
fn bf16_bits(value: f32) -> u16 {
    const NAN: u16 = 0x7fff;
    let bits = value.to_bits();
    if value.is_nan() { NAN } else { ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16 }
}
