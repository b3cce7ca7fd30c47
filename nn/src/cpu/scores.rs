//! Cosine scores of token rows against one vector, and masked means of rows.
//!
//! ```text
//! T  tokens    D  width
//! ```

use super::Cpu;

/// Cosine of each row of `rows [T, D]` with `vector [D]`, into `out [T]`, summed in f64. Zero where either is zero.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn cosine_scores(_cpu: &Cpu, rows: &[f32], vector: &[f32], out: &mut [f32]) {
    let d = vector.len();
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let norm = dot(vector, vector);
    for (t, out) in out.iter_mut().enumerate() {
        let row = &rows[t * d..][..d];
        let scale = (norm * dot(row, row)).sqrt();
        *out = if scale > 0.0 { (dot(row, vector) / scale) as f32 } else { 0.0 };
    }
}

/// Mean of the rows of `rows [T, D]` weighted by `mask [T]`, into `out [D]`; summed in f64 in the order of the rows.
///
/// Returns the sum of the mask; where it is zero, `out` is zero.
///
/// # Panics
/// If a slice is too short for its shape.
pub fn masked_mean(_cpu: &Cpu, rows: &[f32], mask: &[f32], out: &mut [f32]) -> f64 {
    let d = out.len();
    let weight: f64 = mask.iter().map(|m| f64::from(*m)).sum();
    for (i, out) in out.iter_mut().enumerate() {
        let sum: f64 = mask.iter().enumerate().map(|(t, m)| f64::from(*m) * f64::from(rows[t * d + i])).sum();
        *out = if weight > 0.0 { (sum / weight) as f32 } else { 0.0 };
    }
    weight
}
