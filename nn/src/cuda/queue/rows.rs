//! Rows in the memory of a GPU, as kernels take them.

use cudarc::driver::sys::CUdeviceptr;

use crate::{
    cuda::{
        Cuda,
        launch::{Argument, pointer},
        values::{CudaBuffer, Element},
    },
    device::{View, ViewMut},
};

/// Where rows lie, and how their values are stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    pub pointer: CUdeviceptr,
    pub stride: usize,
    pub element: Element,
}

impl Rows {
    /// `rows` rows of `width` values.
    ///
    /// # Panics
    /// If the view is too short: a defect of the layer that calls.
    pub fn of(view: View<'_, Cuda>, rows: usize, width: usize) -> Self {
        let CudaBuffer { memory, len, element } = view.buffer;
        let end = view.start + rows.saturating_sub(1) * view.stride + width;
        assert!(rows == 0 || end <= *len, "{rows} rows of {width} end at {end} in a buffer of {len}");
        let base = memory.as_ref().map_or(0, |m| m.pointer());
        Self { pointer: base + (view.start * element.size()) as u64, stride: view.stride, element: *element }
    }

    /// The same for rows that are written.
    pub fn of_mut(view: &ViewMut<'_, Cuda>, rows: usize, width: usize) -> Self {
        Self::of(view.read(), rows, width)
    }

    /// `rows` rows of `width` values without gaps between them.
    ///
    /// # Panics
    /// If there are gaps: the kernels that take such rows are given none.
    pub fn dense(view: View<'_, Cuda>, rows: usize, width: usize) -> Self {
        let stride = view.stride;
        assert!(stride == width || rows <= 1, "rows of {width} that stand {stride} apart");
        Self { stride: width, ..Self::of(view, rows, width) }
    }

    /// `len` values without gaps.
    pub fn flat(buffer: &CudaBuffer, len: usize) -> Self {
        Self::of(View::new(buffer, len), 1, len)
    }

    pub fn argument(self) -> Argument {
        pointer(self.pointer)
    }

    /// Can the first row be read sixteen bytes at a time?
    pub fn is_aligned(self) -> bool {
        self.pointer.is_multiple_of(16)
    }

    /// Can every row be read sixteen bytes at a time?
    pub fn is_wide(self) -> bool {
        self.is_aligned() && (self.stride * self.element.size()).is_multiple_of(16)
    }
}

/// The number of values that a thread reads at once.
pub(super) fn wide(element: Element) -> usize {
    16 / element.size()
}
