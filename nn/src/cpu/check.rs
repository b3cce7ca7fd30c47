//! Are slices long enough for the matrices in them? Where they are not, a layer that calls has a defect.

/// A matrix of rows that begin `stride` values apart.
///
/// # Panics
/// If the slice is too short for it.
pub(super) fn check_matrix(name: &str, len: usize, rows: usize, columns: usize, stride: usize) {
    assert!(stride >= columns, "{name}: stride {stride} of rows of {columns} values");
    assert!(
        rows == 0 || len >= (rows - 1) * stride + columns,
        "{name}: {len} values for {rows} rows of {columns} with stride {stride}"
    );
}
