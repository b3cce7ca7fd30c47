//! From latents to tokens and back: a token is a 2x2 patch, with its channels before its rows and columns.
//!
//! `N` batch, `C` latent channels, `H` `W` latent grid; a token holds `4 C` values, value `c * 4 + dy * 2 + dx`.

use super::config::PATCH;

/// Write the tokens of `latents [N, C, H, W]` into `tokens`: those of sample n start at token `n * stride + offset`.
pub(super) fn pack(
    latents: &[f32],
    (n, c, h, w): (usize, usize, usize, usize),
    tokens: &mut [f32],
    stride: usize,
    offset: usize,
) {
    for (row, places) in rows((n, c, h, w), stride, offset) {
        for (pair, at) in latents[row..row + w].as_chunks::<PATCH>().0.iter().zip(places) {
            tokens[at..at + PATCH].copy_from_slice(pair);
        }
    }
}

/// The latents `[N, C, H, W]` of `tokens [N, H/2 * W/2, 4 C]`.
pub(super) fn unpack(tokens: &[f32], (n, c, h, w): (usize, usize, usize, usize)) -> Vec<f32> {
    let mut latents = vec![0.0; n * c * h * w];
    for (row, places) in rows((n, c, h, w), (h / PATCH) * (w / PATCH), 0) {
        for (pair, at) in latents[row..row + w].as_chunks_mut::<PATCH>().0.iter_mut().zip(places) {
            pair.copy_from_slice(&tokens[at..at + PATCH]);
        }
    }
    latents
}

/// Of every row of latents: where it begins, and where each pair of its cells stands in the tokens.
fn rows(
    (n, c, h, w): (usize, usize, usize, usize),
    stride: usize,
    offset: usize,
) -> impl Iterator<Item = (usize, impl Iterator<Item = usize>)> {
    let width = c * PATCH * PATCH;
    let columns = w / PATCH;
    (0..n * c * h).map(move |row| {
        let (sample, channel, y) = (row / (c * h), row / h % c, row % h);
        let token = sample * stride + offset + y / PATCH * columns;
        let first = token * width + channel * PATCH * PATCH + y % PATCH * PATCH;
        (row * w, (first..).step_by(width).take(columns))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_patch_with_channels_first() {
        let shape = (1, 2, 2, 4);
        let latents: Vec<f32> = (0..16).map(|v| v as f32).collect();
        let mut tokens = vec![0.0; 16];
        pack(&latents, shape, &mut tokens, 2, 0);
        assert_eq!(tokens, [0., 1., 4., 5., 8., 9., 12., 13., 2., 3., 6., 7., 10., 11., 14., 15.]);
        assert_eq!(unpack(&tokens, shape), latents);
    }

    #[test]
    fn samples_can_stand_apart() {
        let latents: Vec<f32> = (0..8).map(|v| v as f32).collect();
        let mut tokens = vec![-1.0; 4 * 4];
        pack(&latents, (2, 1, 2, 2), &mut tokens, 2, 1);
        assert_eq!(tokens[4..8], [0., 1., 2., 3.]);
        assert_eq!(tokens[12..], [4., 5., 6., 7.]);
        assert_eq!(tokens[..4], [-1.0; 4]);
    }
}
