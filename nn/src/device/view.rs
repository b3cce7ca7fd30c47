//! Parts of buffers.

use super::Device;

/// A part of a buffer: from `start` on, rows that stand `stride` values apart. How many rows of which width it is depends on
/// the operation that reads it.
#[derive(Debug)]
pub struct View<'a, D: Device> {
    /// The buffer.
    pub buffer: &'a D::Buffer,
    /// Where the first row begins.
    pub start: usize,
    /// Distance between the starts of two rows, in values.
    pub stride: usize,
}

impl<D: Device> Clone for View<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for View<'_, D> {}

impl<'a, D: Device> View<'a, D> {
    /// Rows from the start of a buffer on.
    pub fn new(buffer: &'a D::Buffer, stride: usize) -> Self {
        Self { buffer, start: 0, stride }
    }

    /// The same, beginning this many values later.
    #[must_use]
    pub fn skip(self, values: usize) -> Self {
        Self { start: self.start + values, ..self }
    }
}

/// A part of a buffer that an operation writes; see [`View`].
#[derive(Debug)]
pub struct ViewMut<'a, D: Device> {
    /// The buffer.
    pub buffer: &'a mut D::Buffer,
    /// Where the first row begins.
    pub start: usize,
    /// Distance between the starts of two rows, in values.
    pub stride: usize,
}

impl<'a, D: Device> ViewMut<'a, D> {
    /// Rows from the start of a buffer on.
    pub fn new(buffer: &'a mut D::Buffer, stride: usize) -> Self {
        Self { buffer, start: 0, stride }
    }

    /// The same, beginning this many values later.
    #[must_use]
    pub fn skip(self, values: usize) -> Self {
        Self { start: self.start + values, ..self }
    }

    /// The same for a shorter time.
    pub fn again(&mut self) -> ViewMut<'_, D> {
        ViewMut { buffer: self.buffer, start: self.start, stride: self.stride }
    }

    /// The same, to read from.
    pub fn read(&self) -> View<'_, D> {
        View { buffer: self.buffer, start: self.start, stride: self.stride }
    }
}
