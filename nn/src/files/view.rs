//! A view of a tensor in a mapped file, under another name or with its rows in another order, without a copy.
//!
//! A *row* is everything at one index of the first axis: a row of a matrix, a value of a vector. Layouts of one
//! model differ in which rows stand in which tensor; a view is the list of row ranges, in order, that make a tensor.

use std::{ops::Range, sync::Arc};

use super::{Dtype, TensorFiles, Values};
use crate::error::{Error, Result};

/// Rows of one tensor of a mapped file, in an order of their own. It holds no values; cloning is cheap.
#[derive(Clone, Debug)]
pub struct TensorView {
    files: Arc<TensorFiles>,
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    shard: usize,
    /// Where each run of rows lies in the shard, in the order in which the view has them.
    pieces: Vec<Range<usize>>,
}

/// Consecutive rows as the file has them: little-endian values, at any alignment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Piece<'a> {
    /// How the bytes are to be read: f32, f16 or bf16.
    pub dtype: Dtype,
    /// Whole rows.
    pub bytes: &'a [u8],
}

impl<'a> Piece<'a> {
    /// The same to be read as f32.
    pub fn values(&self) -> Values<'a> {
        // Nothing else is ever made into a view.
        Values::of_file(self.dtype, self.bytes).unwrap_or(Values::F32Bytes(self.bytes))
    }
}

impl TensorView {
    /// A whole tensor.
    ///
    /// # Errors
    /// If there is no tensor of this name, or its dtype is none of f32, f16 and bf16.
    pub fn whole(files: &Arc<TensorFiles>, name: &str) -> Result<Self> {
        let (info, shard, bytes) = files.place(name)?;
        if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            let message = format!("`{name}` is {}: expected f32, f16 or bf16", info.dtype);
            return Err(Error::file(files.path(), message));
        }
        Ok(Self {
            files: Arc::clone(files),
            name: name.into(),
            dtype: info.dtype,
            shape: info.shape.clone(),
            shard,
            pieces: vec![bytes],
        })
    }

    /// Some consecutive rows.
    ///
    /// # Errors
    /// If they do not lie within the view.
    pub fn rows(&self, range: Range<usize>) -> Result<Self> {
        self.arranged(&[range])
    }

    /// These ranges of rows, one below the other, in this order.
    ///
    /// # Errors
    /// If a range does not lie within the view.
    pub fn arranged(&self, ranges: &[Range<usize>]) -> Result<Self> {
        let rows = self.shape.first().copied().unwrap_or(1);
        let mut pieces: Vec<Range<usize>> = Vec::new();
        for range in ranges {
            if range.start > range.end || range.end > rows {
                return Err(Error::shape(
                    format!("rows of `{}` of {}", self.name, self.files.path().display()),
                    format!("a range within 0..{rows}"),
                    range,
                ));
            }
            let width = self.row_bytes();
            let mut skip = range.start * width;
            let mut wanted = range.len() * width;
            for piece in &self.pieces {
                let skipped = skip.min(piece.len());
                skip -= skipped;
                let taken = wanted.min(piece.len() - skipped);
                wanted -= taken;
                let found = piece.start + skipped..piece.start + skipped + taken;
                match pieces.last_mut() {
                    _ if found.is_empty() => {}
                    Some(last) if last.end == found.start => last.end = found.end,
                    _ => pieces.push(found),
                }
            }
        }
        let mut shape = self.shape.clone();
        if let Some(first) = shape.first_mut() {
            *first = ranges.iter().map(ExactSizeIterator::len).sum();
        }
        Ok(Self { shape, pieces, ..self.clone() })
    }

    /// The lower half of the rows above the upper one.
    ///
    /// # Errors
    /// If the number of rows is odd.
    pub fn swapped_halves(&self) -> Result<Self> {
        let rows = self.shape.first().copied().unwrap_or(1);
        if !rows.is_multiple_of(2) {
            let what = format!("rows of `{}` of {}", self.name, self.files.path().display());
            return Err(Error::shape(what, "an even number", rows));
        }
        self.arranged(&[rows / 2..rows, 0..rows / 2])
    }

    /// The same values as a matrix, if all axes behind the second are 1, as those of a convolution with one tap are.
    pub fn as_matrix(&self) -> Option<Self> {
        let [rows, columns, others @ ..] = &self.shape[..] else { return None };
        others.iter().all(|n| *n == 1).then(|| Self { shape: vec![*rows, *columns], ..self.clone() })
    }

    /// The same values as a matrix of so many rows and columns.
    ///
    /// # Panics
    /// If it has another number of rows or of values.
    pub(crate) fn with_rows_of(&self, rows: usize, columns: usize) -> Self {
        assert_eq!(
            (self.shape.first(), self.len()),
            (Some(&rows), rows * columns),
            "axes of `{}`",
            self.name
        );
        Self { shape: vec![rows, columns], ..self.clone() }
    }

    /// Can it be read as a matrix of so many rows and columns? Its first axis is the rows, all others together are the
    /// columns.
    ///
    /// # Errors
    /// If it has other axes.
    pub fn expect_matrix(&self, rows: usize, columns: usize) -> Result<()> {
        let found = (self.shape.first().copied().unwrap_or(0), self.shape.iter().skip(1).product());
        if found == (rows, columns) {
            return Ok(());
        }
        let what = format!("outputs and inputs of `{}` of {}", self.name, self.files.path().display());
        Err(Error::shape(what, (rows, columns), found))
    }

    /// The name of the tensor in its file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The files that it lies in.
    pub fn files(&self) -> &Arc<TensorFiles> {
        &self.files
    }

    /// How values are stored: f32, f16 or bf16.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Axes of the view.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Has it no values?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of a row.
    fn row_bytes(&self) -> usize {
        self.shape.iter().skip(1).product::<usize>() * self.dtype.bitsize() / 8
    }

    /// The rows as the file has them: as few runs of consecutive rows as there can be, from first to last.
    pub fn pieces(&self) -> impl ExactSizeIterator<Item = Piece<'_>> {
        self.pieces
            .iter()
            .map(|range| Piece { dtype: self.dtype, bytes: self.files.slice(self.shard, range.clone()) })
    }

    /// Ask the system to read the rows from the disk now, since they are needed soon.
    pub fn will_need(&self) {
        for piece in &self.pieces {
            self.files.will_need(self.shard, piece.clone());
        }
    }

    /// The values as f32, which holds each of them exactly.
    pub fn read(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.len()];
        let mut rest = &mut values[..];
        for piece in self.pieces() {
            let (to, after) = rest.split_at_mut(piece.values().len());
            piece.values().read(0, to);
            rest = after;
        }
        values
    }

    /// Are all values finite? Reads the file, and keeps nothing.
    ///
    /// # Errors
    /// If a value is not finite.
    pub fn check_finite(&self) -> Result<()> {
        // A value is not finite where all bits of its exponent are set. Parts are searched to their end, since a loop that may
        // leave early is not made of vectors.
        const PART: usize = 1 << 16;
        fn faults<const N: usize>(part: &[u8], fault: impl Fn(&[u8; N]) -> bool) -> bool {
            part.as_chunks().0.iter().fold(false, |found, value| found | fault(value))
        }
        let fault = |dtype, part: &[u8]| match dtype {
            Dtype::F16 => faults(part, |b| u16::from_le_bytes(*b) & 0x7c00 == 0x7c00),
            Dtype::BF16 => faults(part, |b| u16::from_le_bytes(*b) & 0x7f80 == 0x7f80),
            _ => faults(part, |b| u32::from_le_bytes(*b) & 0x7f80_0000 == 0x7f80_0000),
        };
        if self.pieces().any(|piece| piece.bytes.chunks(PART).any(|part| fault(piece.dtype, part))) {
            self.read_finite().map(drop)
        } else {
            Ok(())
        }
    }

    /// The values as f32, all of them finite.
    ///
    /// # Errors
    /// If a value is not finite.
    pub fn read_finite(&self) -> Result<Vec<f32>> {
        let values = self.read();
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(values),
            Some(at) => Err(Error::NotFinite(format!(
                "{}: `{}` holds {} at element {at}: the file is damaged, or was written by a run that diverged",
                self.files.path().display(),
                self.name,
                values[at]
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::files::{NamedTensor, write_safetensors};

    /// A matrix with the rows 0 1, 2 3, 4 5, 6 7, and a vector.
    fn files(dtype: Dtype) -> (tempfile::TempDir, Arc<TensorFiles>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.safetensors");
        let tensor = |name: &str, shape: Vec<usize>| {
            let values = (0..shape.iter().product::<usize>()).map(|v| v as f32);
            let bytes: Vec<u8> = match dtype {
                Dtype::F16 => values.flat_map(|v| f16::from_f32(v).to_le_bytes()).collect(),
                Dtype::BF16 => values.flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect(),
                _ => values.flat_map(f32::to_le_bytes).collect(),
            };
            NamedTensor { name: name.into(), dtype, shape, bytes: bytes.into() }
        };
        write_safetensors(&path, &[tensor("m", vec![4, 2]), tensor("v", vec![4])], &[]).unwrap();
        let files = Arc::new(TensorFiles::open(&path).unwrap());
        (dir, files)
    }

    #[test]
    fn rows_are_taken_in_the_order_of_the_list_whatever_the_dtype() {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            let (_dir, files) = files(dtype);
            let whole = TensorView::whole(&files, "m").unwrap();
            assert_eq!(whole.read(), [0., 1., 2., 3., 4., 5., 6., 7.]);
            let view = whole.arranged(&[3..4, 0..2]).unwrap();
            assert_eq!((view.shape(), view.dtype()), (&[3, 2][..], dtype));
            assert_eq!(view.read(), [6., 7., 0., 1., 2., 3.]);
            let again = view.arranged(&[1..3, 0..1]).unwrap();
            assert_eq!(again.read(), [0., 1., 2., 3., 6., 7.]);
            assert_eq!(whole.swapped_halves().unwrap().read(), [4., 5., 6., 7., 0., 1., 2., 3.]);
            let vector = TensorView::whole(&files, "v").unwrap();
            assert_eq!(vector.swapped_halves().unwrap().read(), [2., 3., 0., 1.]);
        }
    }

    #[test]
    fn pieces_are_the_bytes_of_the_file_and_neighbours_are_one_piece() {
        let (_dir, files) = files(Dtype::BF16);
        let whole = TensorView::whole(&files, "m").unwrap();
        let joined = whole.arranged(&[0..1, 1..3, 3..4]).unwrap();
        assert_eq!(joined.pieces().len(), 1);
        let bytes = files.bytes("m").unwrap();
        assert_eq!(joined.pieces().next().unwrap(), Piece { dtype: Dtype::BF16, bytes });
        assert_eq!(joined.pieces().next().unwrap().bytes.as_ptr(), bytes.as_ptr());
        let swapped = joined.swapped_halves().unwrap();
        let swapped: Vec<&[u8]> = swapped.pieces().map(|p| p.bytes).collect();
        assert_eq!(swapped, [&bytes[8..], &bytes[..8]]);
    }

    #[test]
    fn rows_that_are_not_there_odd_halves_and_whole_numbers_are_refused() {
        let (_dir, files) = files(Dtype::F32);
        let whole = TensorView::whole(&files, "m").unwrap();
        let error = whole.rows(2..5).unwrap_err().to_string();
        assert!(error.contains("rows of `m`") && error.contains("0..4"), "{error}");
        assert!(whole.rows(0..3).unwrap().swapped_halves().is_err());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("i.safetensors");
        let tensor =
            NamedTensor { name: "i".into(), dtype: Dtype::I32, shape: vec![1], bytes: vec![0; 4].into() };
        write_safetensors(&path, &[tensor], &[]).unwrap();
        let files = Arc::new(TensorFiles::open(&path).unwrap());
        let error = TensorView::whole(&files, "i").unwrap_err().to_string();
        assert!(error.contains("`i` is I32: expected f32"), "{error}");
    }

    #[test]
    fn further_axes_of_one_make_no_difference_to_a_matrix() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.safetensors");
        let values = [0., 1., 2., 3., 4., 5.];
        let shapes: [&[usize]; 4] = [&[2, 3, 1, 1], &[2, 3], &[2, 1, 3], &[6]];
        let names = ["convolution", "matrix", "taps", "vector"];
        let tensors: Vec<_> =
            names.iter().zip(shapes).map(|(n, s)| NamedTensor::f32(*n, s.to_vec(), &values)).collect();
        write_safetensors(&path, &tensors, &[]).unwrap();
        let files = Arc::new(TensorFiles::open(&path).unwrap());
        let matrix = |name: &str| TensorView::whole(&files, name).unwrap().as_matrix();
        for name in ["convolution", "matrix"] {
            let found = matrix(name).unwrap();
            assert_eq!((found.shape(), found.rows(1..2).unwrap().read()), (&[2, 3][..], vec![3., 4., 5.]));
        }
        assert!(matrix("taps").is_none() && matrix("vector").is_none());
    }

    #[test]
    fn a_value_that_is_not_finite_is_named_with_its_tensor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n.safetensors");
        write_safetensors(&path, &[NamedTensor::f32("n", vec![2], &[0.0, f32::NAN])], &[]).unwrap();
        let files = Arc::new(TensorFiles::open(&path).unwrap());
        let view = TensorView::whole(&files, "n").unwrap();
        assert_eq!(view.rows(0..1).unwrap().read_finite().unwrap(), [0.0]);
        assert!(view.read_finite().unwrap_err().to_string().contains("`n` holds NaN"));
    }
}
