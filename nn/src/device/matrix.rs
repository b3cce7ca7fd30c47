//! Row-major matrices in memory or in a mapped file.

pub use crate::files::Values;

/// A frozen matrix that no device keeps: it passes through for a few products at a time.
#[derive(Clone, Debug)]
pub struct Passing<'a> {
    /// No other matrix of the process has this number.
    pub id: u64,
    /// Its values, which outlive the call.
    pub values: Matrix<'a>,
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

    /// Its runs of whole rows, from first to last.
    pub(crate) fn parts(&self) -> &[Values<'a>] {
        &self.parts
    }

    /// All values, row by row, widened.
    pub(crate) fn read_all(&self, to: &mut [f32]) {
        for (row, to) in to.chunks_exact_mut(self.columns.max(1)).enumerate() {
            self.read(row, 0, to);
        }
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
