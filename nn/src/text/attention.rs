//! Attention of text encoders: short sequences, and a bias on every score.
//!
//! Shape letters: `H` heads, `L` tokens, `D` width of a head.

use crate::{
    cpu::{Cpu, softmax},
    layers::{product_plain, product_transposed},
};

/// The sizes of one attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub heads: usize,
    pub tokens: usize,
    pub dim: usize,
}

/// `softmax(scale * q k^T + bias) v` of one sample. Queries, keys, values and the result are `[L, H * D]`; `bias` adds
/// to the scores `[L, L]` of a head, and minus infinity hides a key.
///
/// Scores of one head exist at a time.
pub(super) fn attention(
    device: &Cpu,
    sizes: Sizes,
    scale: f32,
    [q, k, v]: [&[f32]; 3],
    bias: impl Fn(usize, &mut [f32]),
    out: &mut [f32],
) {
    let Sizes { heads, tokens, dim } = sizes;
    let width = heads * dim;
    let mut parts = [(); 3].map(|()| vec![0.0; tokens * dim]);
    let (mut scores, mut result) = (vec![0.0; tokens * tokens], vec![0.0; tokens * dim]);
    for head in 0..heads {
        let columns = head * dim..(head + 1) * dim;
        for (part, from) in parts.iter_mut().zip([q, k, v]) {
            for (to, from) in part.chunks_exact_mut(dim).zip(from.chunks_exact(width)) {
                to.copy_from_slice(&from[columns.clone()]);
            }
        }
        let [q, k, v] = &parts;
        product_transposed(device, (tokens, tokens, dim), q, k, &mut scores);
        scores.iter_mut().for_each(|s| *s *= scale);
        bias(head, &mut scores);
        softmax(device, tokens, &mut scores);
        product_plain(device, (tokens, dim, tokens), &scores, v, &mut result);
        for (to, from) in out.chunks_exact_mut(width).zip(result.chunks_exact(dim)) {
            to[columns.clone()].copy_from_slice(from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hidden_key_has_no_weight_and_a_bias_shifts_its_score() {
        let sizes = Sizes { heads: 2, tokens: 3, dim: 2 };
        let v: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let zeros = [0.0; 12];
        let mut out = [0.0; 12];
        // Scores are the bias alone: head 0 sees earlier tokens only, head 1 sees token 2 twice as much as the others.
        let bias = |head: usize, scores: &mut [f32]| {
            for (row, scores) in scores.chunks_exact_mut(3).enumerate() {
                match head {
                    0 => scores[row + 1..].fill(f32::NEG_INFINITY),
                    _ => scores[2] += std::f32::consts::LN_2,
                }
            }
        };
        attention(&Cpu::new(1).unwrap(), sizes, 1.0, [&zeros, &zeros, &v], bias, &mut out);
        let close = |found: &[f32], expected: [f32; 4]| {
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?}")
        };
        close(&out[..4], [0.0, 1.0, (2.0 + 6.0 + 2.0 * 10.0) / 4.0, (3.0 + 7.0 + 2.0 * 11.0) / 4.0]);
        close(&out[4..8], [2.0, 3.0, 7.0, 8.0]);
    }
}
