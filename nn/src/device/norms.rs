//! Norms with weights of their own.
//!
//! ```text
//! M  rows (tokens or pixels)    D  width    G  groups of channels
//! ```
//!
//! Means and variances are those of a whole row or group, in a precision in which the difference of a large mean is not lost.

use super::{Device, View, ViewMut};

/// What a [`Norm`] takes off a row and divides it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `(x - mean) / sqrt(variance + eps)`.
    Layer,
    /// `x / sqrt(mean of squares + eps)`.
    Rms,
}

/// `y = norm(x) weight + bias`, row by row. Rows have no gaps between them.
#[derive(Debug)]
pub struct Norm<'a, D: Device> {
    /// M.
    pub rows: usize,
    /// D.
    pub width: usize,
    /// What is done to a row.
    pub kind: NormKind,
    /// Added to the variance or to the mean of squares.
    pub eps: f64,
    /// `[M, D]`.
    pub x: View<'a, D>,
    /// `[D]`.
    pub weight: &'a D::Buffer,
    /// `[D]`.
    pub bias: Option<&'a D::Buffer>,
    /// `[M, D]`.
    pub y: ViewMut<'a, D>,
}

/// `y = (x - mean) / sqrt(variance + eps) weight + bias` of one picture, channels last, with one mean and one variance for
/// each group of D / G neighbouring channels over all rows; then SiLU, if it is wanted. Rows have no gaps between them.
#[derive(Debug)]
pub struct GroupNorm<'a, D: Device> {
    /// M.
    pub rows: usize,
    /// D.
    pub width: usize,
    /// G, which divides D.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
    /// Whether SiLU follows.
    pub silu: bool,
    /// `[M, D]`.
    pub x: View<'a, D>,
    /// `[D]`.
    pub weight: &'a D::Buffer,
    /// `[D]`.
    pub bias: &'a D::Buffer,
    /// `[M, D]`.
    pub y: ViewMut<'a, D>,
}

/// Backward of a [`Norm`]: the cotangent of `x`. Means and deviations are found again.
#[derive(Debug)]
pub struct NormBackward<'a, D: Device> {
    /// M.
    pub rows: usize,
    /// D.
    pub width: usize,
    /// What the norm does to a row.
    pub kind: NormKind,
    /// Added to the variance or to the mean of squares.
    pub eps: f64,
    /// `[M, D]`.
    pub x: View<'a, D>,
    /// `[D]`.
    pub weight: &'a D::Buffer,
    /// `[M, D]`.
    pub dy: View<'a, D>,
    /// `[M, D]`, added to.
    pub dx: ViewMut<'a, D>,
}

/// Backward of a [`GroupNorm`] of one picture: the cotangent of `x`. Means and deviations are found again.
#[derive(Debug)]
pub struct GroupNormBackward<'a, D: Device> {
    /// M.
    pub rows: usize,
    /// D.
    pub width: usize,
    /// G, which divides D.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
    /// Whether SiLU follows the norm.
    pub silu: bool,
    /// `[M, D]`.
    pub x: View<'a, D>,
    /// `[D]`.
    pub weight: &'a D::Buffer,
    /// `[D]`.
    pub bias: &'a D::Buffer,
    /// `[M, D]`.
    pub dy: View<'a, D>,
    /// `[M, D]`, overwritten.
    pub dx: ViewMut<'a, D>,
}
