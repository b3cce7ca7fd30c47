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
    for_each_cell((n, c, h, w), stride, offset, |cell, at| tokens[at] = latents[cell]);
}

/// The latents `[N, C, H, W]` of `tokens [N, H/2 * W/2, 4 C]`.
pub(super) fn unpack(tokens: &[f32], (n, c, h, w): (usize, usize, usize, usize)) -> Vec<f32> {
    let mut latents = vec![0.0; n * c * h * w];
    let stride = (h / PATCH) * (w / PATCH);
    for_each_cell((n, c, h, w), stride, 0, |cell, at| latents[cell] = tokens[at]);
    latents
}

fn for_each_cell(
    (n, c, h, w): (usize, usize, usize, usize),
    stride: usize,
    offset: usize,
    mut visit: impl FnMut(usize, usize),
) {
    let width = c * PATCH * PATCH;
    let columns = w / PATCH;
    for sample in 0..n {
        for channel in 0..c {
            for y in 0..h {
                let row = ((sample * c + channel) * h + y) * w;
                let token = sample * stride + offset + y / PATCH * columns;
                let place = channel * PATCH * PATCH + y % PATCH * PATCH;
                for x in 0..w {
                    visit(row + x, (token + x / PATCH) * width + place + x % PATCH);
                }
            }
        }
    }
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
