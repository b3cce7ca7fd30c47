//! Positions of tokens, and the rotary tables derived from them.
//!
//! Positions have three axes. Text stands at zero. The target's token in row y, column x stands at (0, y, x). A
//! reference starts where the target and the references before it end, in rows and in columns alike, so that no
//! two images share a position (UnoPE: Wu et al. 2025, "Less-to-More Generalization", section 3.3).

use crate::{
    device::{Device, Kind, Precision},
    error::Result,
};

const THETA: f64 = 10_000.0;

/// Cosines and sines of the joint sequence, `[tokens, head width / 2]` each.
#[derive(Debug)]
pub(super) struct RotaryTables<D: Device> {
    pub cos: D::Buffer,
    pub sin: D::Buffer,
}

/// Positions of the joint sequence: text, target, references in order. Grids are in tokens, rows first.
pub(super) fn positions(
    text: usize,
    target: (usize, usize),
    references: &[(usize, usize)],
) -> Vec<[usize; 3]> {
    let mut all = vec![[0; 3]; text];
    let mut offset = (0, 0);
    for &(rows, columns) in std::iter::once(&target).chain(references) {
        for y in 0..rows {
            all.extend((0..columns).map(|x| [0, offset.0 + y, offset.1 + x]));
        }
        offset = (offset.0 + rows, offset.1 + columns);
    }
    all
}

impl<D: Device> RotaryTables<D> {
    /// The tables of these positions, for heads of which `axes[i]` values turn with axis i.
    ///
    /// # Errors
    /// If the device has no room for them.
    pub fn new(device: &D, positions: &[[usize; 3]], axes: &[usize]) -> Result<Self> {
        let (cos, sin) = tables(positions, axes);
        // Always f32, whatever the precision of products.
        let upload = |values: &[f32]| device.upload(values, Kind::Exact, Precision::F32);
        Ok(Self { cos: upload(&cos)?, sin: upload(&sin)? })
    }
}

/// Cosines and sines. Angles, their sines and cosines are computed in f64 and rounded once.
fn tables(positions: &[[usize; 3]], axes: &[usize]) -> (Vec<f32>, Vec<f32>) {
    let frequencies: Vec<Vec<f64>> = axes
        .iter()
        .map(|&width| (0..width / 2).map(|i| 1.0 / libm::pow(THETA, (2 * i) as f64 / width as f64)).collect())
        .collect();
    let half: usize = axes.iter().sum::<usize>() / 2;
    let mut cos = Vec::with_capacity(positions.len() * half);
    let mut sin = Vec::with_capacity(positions.len() * half);
    for position in positions {
        for (&at, frequencies) in position.iter().zip(&frequencies) {
            for f in frequencies {
                let angle = at as f64 * f;
                cos.push(libm::cos(angle) as f32);
                sin.push(libm::sin(angle) as f32);
            }
        }
    }
    (cos, sin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reference_starts_where_the_images_before_it_end() {
        let all = positions(2, (3, 4), &[(2, 2), (1, 5)]);
        assert_eq!(all.len(), 2 + 12 + 4 + 5);
        assert_eq!(all[1], [0, 0, 0]);
        assert_eq!(all[2 + 11], [0, 2, 3]);
        assert_eq!(all[2 + 12], [0, 3, 4]);
        assert_eq!(all[2 + 12 + 3], [0, 4, 5]);
        assert_eq!(all[2 + 12 + 4], [0, 5, 6]);
        assert_eq!(all[2 + 12 + 4 + 4], [0, 5, 10]);
    }

    #[test]
    fn each_axis_turns_its_own_part_of_a_head() {
        let (cos, sin) = tables(&[[0, 0, 0], [0, 1, 2]], &[4, 2, 4]);
        assert_eq!(cos[..5], [1.0; 5]);
        assert_eq!(sin[..5], [0.0; 5]);
        let turned: Vec<f32> =
            [0.0, 0.0, 1.0, 2.0, 2.0 * libm::pow(1e4, -0.5)].map(|a: f64| libm::sin(a) as f32).into();
        for (a, b) in sin[5..].iter().zip(&turned) {
            assert!((a - b).abs() < 1e-7, "{a} {b}");
        }
    }
}
