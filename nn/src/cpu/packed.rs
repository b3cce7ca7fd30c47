//! A matrix operand laid out once in the order in which the micro-kernel reads it.

use super::{Cpu, Isa, scratch::Aligned};

/// A matrix `[K, N]`, packed for the instruction set of the device it was made with.
///
/// The columns stand in panels as wide as a micro-tile, each panel `[K, width]`; the last one is filled up with zeros.
#[derive(Clone, Debug)]
pub struct Packed {
    k: usize,
    n: usize,
    /// Columns of a panel.
    width: usize,
    isa: Isa,
    panels: Aligned,
}

impl Packed {
    /// From a linear layer's weight `[N, K]`, for `y = x W^T`.
    ///
    /// # Panics
    /// If `weight` does not have N * K values.
    pub fn from_weight(cpu: &Cpu, weight: &[f32], n: usize, k: usize) -> Self {
        assert_eq!(weight.len(), n * k, "values of a weight [{n}, {k}]");
        let mut packed = Self::zeros(cpu, k, n);
        pack_transposed(weight, k, n, k, packed.width, packed.panels.values_mut());
        packed
    }

    /// From a matrix `[K, N]`; with a linear layer's weight `[N, K]` as that matrix, for `dx = dy W`.
    ///
    /// # Panics
    /// If `matrix` does not have K * N values.
    pub fn from_matrix(cpu: &Cpu, matrix: &[f32], k: usize, n: usize) -> Self {
        assert_eq!(matrix.len(), n * k, "values of a matrix [{k}, {n}]");
        let mut packed = Self::zeros(cpu, k, n);
        pack(matrix, n, k, n, packed.width, packed.panels.values_mut());
        packed
    }

    fn zeros(cpu: &Cpu, k: usize, n: usize) -> Self {
        let (_, width) = cpu.tile();
        let panels = Aligned::zeros(n.div_ceil(width) * width * k);
        Self { k, n, width, isa: cpu.isa(), panels }
    }

    /// The summed axis K.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The columns N of the result.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        std::mem::size_of_val(self.panels.values())
    }

    /// The instruction set it is packed for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// From row `k` of panel `panel` to the end of the panel.
    pub(super) fn panel(&self, panel: usize, k: usize) -> &[f32] {
        &self.panels.values()[(panel * self.k + k) * self.width..(panel + 1) * self.k * self.width]
    }
}

/// Panels that are packed together: a row's share is contiguous, and the rows written to fit the first cache's sets.
const GROUP: usize = 8;

/// Packs rows of a row-major `[k, n]` matrix with a stride into panels `[k, width]`, zeros beyond `n`.
#[inline(always)]
pub(super) fn pack(matrix: &[f32], stride: usize, k: usize, n: usize, width: usize, panels: &mut [f32]) {
    for group in (0..n).step_by(GROUP * width) {
        let end = n.min(group + GROUP * width);
        for row in 0..k {
            let from = &matrix[row * stride + group..][..end - group];
            for (panel, from) in from.chunks(width).enumerate() {
                let to = &mut panels[group * k + (panel * k + row) * width..][..width];
                let (to, rest) = to.as_chunks_mut::<16>();
                let (from, from_rest) = from.as_chunks::<16>();
                debug_assert!(rest.is_empty(), "panels are whole cache lines");
                for (to, from) in to.iter_mut().zip(from) {
                    *to = *from;
                }
                for to in &mut to[from.len()..] {
                    *to = [0.0; 16];
                }
                if !from_rest.is_empty() {
                    to[from.len()][..from_rest.len()].copy_from_slice(from_rest);
                }
            }
        }
    }
}

/// Packs the transpose of a row-major `[n, k]` matrix with a stride into panels `[k, width]`, zeros beyond `n`.
pub(super) fn pack_transposed(
    matrix: &[f32],
    stride: usize,
    n: usize,
    k: usize,
    width: usize,
    panels: &mut [f32],
) {
    if k == 0 || n == 0 {
        return;
    }
    for (panel, first) in panels.chunks_exact_mut(k * width).zip((0..n).step_by(width)) {
        let used = width.min(n - first);
        if used < width {
            panel.fill(0.0);
        }
        // Eight terms at a time: a source line is read once, and the panel's rows stay in the first cache.
        for p0 in (0..k).step_by(8) {
            let terms = 8.min(k - p0);
            for column in 0..used {
                let from = &matrix[(first + column) * stride + p0..][..terms];
                for (to, value) in panel[p0 * width + column..].iter_mut().step_by(width).zip(from) {
                    *to = *value;
                }
            }
        }
    }
}
