//! A matrix operand laid out once in the order in which the product reads it.

use super::Cpu;

/// A matrix `[K, N]`, packed for the device it was made with.
#[derive(Clone, Debug)]
pub struct Packed {
    k: usize,
    n: usize,
    values: Vec<f32>,
}

impl Packed {
    /// From a linear layer's weight `[N, K]`, for `y = x W^T`.
    ///
    /// # Panics
    /// If `weight` does not have N * K values.
    pub fn from_weight(_cpu: &Cpu, weight: &[f32], n: usize, k: usize) -> Self {
        assert_eq!(weight.len(), n * k, "values of a weight [{n}, {k}]");
        let mut values = vec![0.0; n * k];
        for i in 0..n {
            for j in 0..k {
                values[j * n + i] = weight[i * k + j];
            }
        }
        Self { k, n, values }
    }

    /// From a matrix `[K, N]`; with a linear layer's weight `[N, K]` as that matrix, for `dx = dy W`.
    ///
    /// # Panics
    /// If `matrix` does not have K * N values.
    pub fn from_matrix(_cpu: &Cpu, matrix: &[f32], k: usize, n: usize) -> Self {
        assert_eq!(matrix.len(), n * k, "values of a matrix [{k}, {n}]");
        Self { k, n, values: matrix.to_vec() }
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
        self.values.len() * 4
    }

    pub(super) fn row(&self, k: usize) -> &[f32] {
        &self.values[k * self.n..][..self.n]
    }
}
