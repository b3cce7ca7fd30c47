//! A matrix operand packed in the order in which the micro-kernel reads it.

use super::{
    Cpu, Isa, Matrix, Memory, Precision,
    parallel::{self, Shared},
    precision::{interleave, pack_row},
};

/// A matrix `[K, N]`, packed for the instruction set of the device it was made with.
///
/// The columns stand in panels as wide as a micro-tile, each panel `[K, width]` in words of its precision; the last one is
/// filled up with zeros.
#[derive(Debug)]
pub struct Packed {
    k: usize,
    n: usize,
    /// Columns of a panel.
    width: usize,
    isa: Isa,
    precision: Precision,
    panels: Memory,
    /// Where the memory goes when the matrix has served.
    keeper: Option<Cpu>,
}

impl Drop for Packed {
    fn drop(&mut self) {
        if let Some(cpu) = self.keeper.take() {
            cpu.keep(std::mem::take(&mut self.panels));
        }
    }
}

/// Values of a row that are read together.
const PART: usize = 64;

impl Packed {
    /// From a linear layer's weight `[N, K]`, for `y = x W^T`.
    pub fn from_weight(cpu: &Cpu, precision: Precision, weight: &Matrix<'_>) -> Self {
        let (n, k) = (weight.rows(), weight.columns());
        let width = cpu.tile().1;
        Self::build(cpu, precision, k, n, |first, panels| {
            let each = (width * precision.words(k)).max(1);
            for (panel, first) in panels.chunks_exact_mut(each).zip((first..n).step_by(width)) {
                pack_columns(weight, precision, first, width.min(n - first), width, panel);
            }
        })
    }

    /// From a matrix `[K, N]`; with a linear layer's weight `[N, K]` as that matrix, for `dx = dy W`.
    pub fn from_matrix(cpu: &Cpu, precision: Precision, matrix: &Matrix<'_>) -> Self {
        let (k, n) = (matrix.rows(), matrix.columns());
        let width = cpu.tile().1;
        Self::build(cpu, precision, k, n, |first, panels| {
            pack_rows(matrix, precision, first, width, panels);
        })
    }

    /// Memory of the device's own, filled in groups of panels, each with its first column.
    fn build(
        cpu: &Cpu,
        precision: Precision,
        k: usize,
        n: usize,
        fill: impl Fn(usize, &mut [f32]) + Send + Sync,
    ) -> Self {
        let width = cpu.tile().1;
        let (words, panels) = (precision.words(k), n.div_ceil(width));
        let mut memory = cpu.memory(panels * width * words);
        let shared = Shared::new(&mut memory[..panels * width * words]);
        let group = panels.div_ceil(4 * cpu.threads()).clamp(1, GROUP);
        parallel::for_each(cpu, 8 * n * k, panels.div_ceil(group), |task| {
            let first = task * group;
            let count = group.min(panels - first);
            #[allow(unsafe_code, reason = "tasks write disjoint panels")]
            // SAFETY: a panel belongs to one task.
            let to = unsafe { shared.part(first * width * words, count * width * words) };
            fill(first * width, to);
        });
        Self { k, n, width, isa: cpu.isa(), precision, panels: memory, keeper: None }
    }

    /// The same for one product or a few: its memory is kept for the next matrix.
    #[must_use]
    pub fn passing(mut self, cpu: &Cpu) -> Self {
        self.keeper = Some(cpu.clone());
        self
    }

    /// The summed axis K.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The columns N of the result.
    pub fn n(&self) -> usize {
        self.n
    }

    /// What its values were rounded to.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        std::mem::size_of_val(&self.panels[..])
    }

    /// The instruction set it is packed for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Words of the summed axis.
    pub(super) fn words(&self) -> usize {
        self.precision.words(self.k)
    }

    /// From word `k` of panel `panel` to the end of the panel.
    pub(super) fn panel(&self, panel: usize, k: usize) -> &[f32] {
        let words = self.words();
        &self.panels[(panel * words + k) * self.width..(panel + 1) * words * self.width]
    }
}

/// Packs rows `first..first + used` of a matrix as the columns of a panel `[columns of the matrix, width]`.
fn pack_columns(
    matrix: &Matrix<'_>,
    precision: Precision,
    first: usize,
    used: usize,
    width: usize,
    panel: &mut [f32],
) {
    if used < width {
        panel.fill(0.0);
    }
    let k = matrix.columns();
    for start in (0..k).step_by(PART) {
        let terms = PART.min(k - start);
        let words = precision.words(terms);
        let to = &mut panel[precision.words(start) * width..][..words * width];
        for column in 0..used {
            let (mut values, mut packed) = ([0.0; PART], [0.0; PART]);
            matrix.read(first + column, start, &mut values[..terms]);
            match precision {
                Precision::F32 => packed = values,
                Precision::Bf16 => pack_row(&values[..terms], &mut packed),
            }
            for (to, word) in to[column..].iter_mut().step_by(width).zip(&packed[..words]) {
                *to = *word;
            }
        }
    }
}

/// Packs columns of a matrix, from `first` on, as panels `[rows of the matrix, width]`. A row's share of all of them is read
/// together, since every row of a large matrix stands on a page of its own.
fn pack_rows(matrix: &Matrix<'_>, precision: Precision, first: usize, width: usize, panels: &mut [f32]) {
    let words = precision.words(matrix.rows());
    let (mut one, mut two) = ([0.0; PART], [0.0; PART]);
    for word in 0..words {
        for panel in 0..panels.len() / (words * width) {
            let first = first + panel * width;
            let used = width.min(matrix.columns() - first);
            let to = &mut panels[(panel * words + word) * width..][..width];
            to[used..].fill(0.0);
            match precision {
                Precision::F32 => matrix.read(word, first, &mut to[..used]),
                Precision::Bf16 => {
                    matrix.read(2 * word, first, &mut one[..used]);
                    if 2 * word + 1 < matrix.rows() {
                        matrix.read(2 * word + 1, first, &mut two[..used]);
                    } else {
                        two = [0.0; PART];
                    }
                    interleave(&one[..used], &two[..used], to);
                }
            }
        }
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

/// The same in pairs of rows: panels `[k / 2, width]` of words.
#[inline(always)]
pub(super) fn pack_pairs(
    matrix: &[f32],
    stride: usize,
    k: usize,
    n: usize,
    width: usize,
    panels: &mut [f32],
) {
    let words = k.div_ceil(2);
    for word in 0..words {
        let one = &matrix[2 * word * stride..][..n];
        let two = if 2 * word + 1 < k { &matrix[(2 * word + 1) * stride..][..n] } else { &[] };
        for (panel, first) in (0..n).step_by(width).enumerate() {
            let used = width.min(n - first);
            let to = &mut panels[(panel * words + word) * width..][..width];
            to[used..].fill(0.0);
            if two.is_empty() {
                let zeros = [0.0; PART];
                interleave(&one[first..][..used], &zeros[..used], to);
            } else {
                interleave(&one[first..][..used], &two[first..][..used], to);
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
