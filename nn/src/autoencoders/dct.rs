//! A fixed, training-free autoencoder: the low frequencies of 8x8 blocks in an orthonormal opponent colour space.
//!
//! Shape letters: `B` batch, `H` `W` latent grid; a picture has `8H` rows and `8W` columns.
//!
//! Everything is linear. Colours turn into luma and two opponent axes by an orthonormal matrix, each 8x8 block of
//! each axis into its orthonormal DCT-II, and the 16 coefficients that carry the most energy in photographs are
//! kept, each divided by a constant. So `decode` is the transpose with the constants multiplied back,
//! `encode(decode(z)) == z`, and `decode(encode(x))` is the orthogonal projection of `x`.

use std::f64::consts::PI;

use super::{Autoencoder, Batch, Half, Posterior, refuse_sample};
use crate::{
    cost::PassCost,
    cpu::Cpu,
    device::Device,
    error::{Error, Result},
    tensor::Tensor,
};

/// Rows and columns of pixels that become one latent cell.
pub const BLOCK: usize = 8;
/// Channels of a latent cell.
pub const CHANNELS: usize = 16;
/// Name in messages.
const KIND: &str = "dct";
const PIXELS: usize = BLOCK * BLOCK;

/// Red, green, blue to luma and the opponent axes red-blue and magenta-green, before each row has unit length.
const OPPONENT: [[f64; 3]; 3] = [[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]];

/// A latent channel: one DCT coefficient of one opponent axis.
struct Coefficient {
    axis: usize,
    /// Vertical and horizontal half-periods in a block.
    frequency: (usize, usize),
    /// Root mean square over photographs, which becomes the unit of the channel.
    unit: f32,
}

const fn coefficient(axis: usize, v: usize, u: usize, unit: f32) -> Coefficient {
    Coefficient { axis, frequency: (v, u), unit }
}

/// The kept coefficients in the order of the channels. The units are root mean squares over the blocks of 128
/// photographs of objects, values in [-1, 1], rounded and made equal for (v, u) and (u, v): pictures may be turned.
const KEPT: [Coefficient; CHANNELS] = [
    coefficient(0, 0, 0, 6.70),
    coefficient(0, 0, 1, 1.03),
    coefficient(0, 1, 0, 1.03),
    coefficient(0, 0, 2, 0.54),
    coefficient(0, 1, 1, 0.52),
    coefficient(0, 2, 0, 0.54),
    coefficient(0, 0, 3, 0.36),
    coefficient(0, 1, 2, 0.365),
    coefficient(0, 2, 1, 0.365),
    coefficient(0, 3, 0, 0.36),
    coefficient(1, 0, 0, 2.80),
    coefficient(1, 0, 1, 0.35),
    coefficient(1, 1, 0, 0.35),
    coefficient(2, 0, 0, 1.30),
    coefficient(2, 0, 1, 0.18),
    coefficient(2, 1, 0, 0.18),
];

/// The fixed autoencoder. It holds nothing but its own constants.
#[derive(Clone, Debug)]
pub struct Dct {
    /// Orthonormal colour rows.
    colours: [[f32; 3]; 3],
    /// For each channel, the 64 weights of a block's pixels: orthonormal among channels of one axis.
    patterns: [[f32; PIXELS]; CHANNELS],
}

impl Default for Dct {
    fn default() -> Self {
        Self::new()
    }
}

impl Dct {
    /// The autoencoder; the constants are the same bits on every platform.
    pub fn new() -> Self {
        let colours = OPPONENT.map(|row| {
            let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            row.map(|x| (x / length) as f32)
        });
        let patterns = std::array::from_fn(|channel| {
            let (v, u) = KEPT[channel].frequency;
            std::array::from_fn(|pixel| (wave(v, pixel / BLOCK) * wave(u, pixel % BLOCK)) as f32)
        });
        Self { colours, patterns }
    }

    /// Pictures `[B, 3, 8H, 8W]` with values in [-1, 1] to latents `[B, 16, H, W]` of roughly unit variance.
    ///
    /// # Errors
    /// If there are not three channels, or a side is not a positive multiple of 8.
    pub fn encode(&self, device: &Cpu, pictures: &Batch) -> Result<Batch> {
        let (batch, channels, rows, columns) = pictures.shape();
        if channels != 3 || !is_whole(rows) || !is_whole(columns) {
            return Err(Error::shape(
                "pictures for the DCT autoencoder",
                "[B, 3, a multiple of 8, a multiple of 8]",
                pictures.dims(),
            ));
        }
        let (height, width) = (rows / BLOCK, columns / BLOCK);
        let mut latents = vec![0.0; batch * CHANNELS * height * width];
        for (sample, picture) in pictures.values().chunks_exact(3 * rows * columns).enumerate() {
            for cell in 0..height * width {
                let corner = (cell / width * columns + cell % width) * BLOCK;
                let block = self.block_of(picture, corner, columns);
                for (channel, kept) in KEPT.iter().enumerate() {
                    let pattern = &self.patterns[channel];
                    let sum: f32 = pattern.iter().zip(&block).map(|(weight, x)| weight * x[kept.axis]).sum();
                    latents[(sample * CHANNELS + channel) * height * width + cell] = sum / kept.unit;
                }
            }
        }
        Tensor::new(device, (batch, CHANNELS, height, width), latents)
    }

    /// Latents `[B, 16, H, W]` to pictures `[B, 3, 8H, 8W]`; the frequencies that `encode` drops are zero, and
    /// values may leave [-1, 1].
    ///
    /// # Errors
    /// If there are not 16 channels.
    pub fn decode(&self, device: &Cpu, latents: &Batch) -> Result<Batch> {
        let (batch, channels, height, width) = latents.shape();
        if channels != CHANNELS {
            return Err(Error::shape("latents for the DCT autoencoder", "[B, 16, H, W]", latents.dims()));
        }
        let (rows, columns) = (height * BLOCK, width * BLOCK);
        let mut pictures = vec![0.0; batch * 3 * rows * columns];
        let cells = height * width;
        for sample in 0..batch {
            let picture = &mut pictures[sample * 3 * rows * columns..][..3 * rows * columns];
            for cell in 0..cells {
                let mut block = [[0.0; 3]; PIXELS];
                for (channel, kept) in KEPT.iter().enumerate() {
                    let value = latents.values()[(sample * CHANNELS + channel) * cells + cell] * kept.unit;
                    for (x, weight) in block.iter_mut().zip(&self.patterns[channel]) {
                        x[kept.axis] += weight * value;
                    }
                }
                let corner = (cell / width * columns + cell % width) * BLOCK;
                for (pixel, x) in block.iter().enumerate() {
                    let place = corner + pixel / BLOCK * columns + pixel % BLOCK;
                    for colour in 0..3 {
                        picture[colour * rows * columns + place] =
                            self.colours.iter().zip(x).map(|(row, x)| row[colour] * x).sum();
                    }
                }
            }
        }
        Tensor::new(device, (batch, 3, rows, columns), pictures)
    }

    /// The pixels of the block whose first is `corner`, each in opponent axes.
    fn block_of(&self, picture: &[f32], corner: usize, columns: usize) -> [[f32; 3]; PIXELS] {
        let plane = picture.len() / 3;
        std::array::from_fn(|pixel| {
            let place = corner + pixel / BLOCK * columns + pixel % BLOCK;
            self.colours.map(|row| (0..3).map(|colour| row[colour] * picture[colour * plane + place]).sum())
        })
    }
}

/// Nothing is trained, and little is computed: it runs on the host, whatever the device.
impl<D: Device> Autoencoder<D> for Dct {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn channels(&self) -> usize {
        CHANNELS
    }

    fn cell(&self) -> usize {
        BLOCK
    }

    fn has_posterior(&self) -> bool {
        false
    }

    fn parameters(&self) -> usize {
        0
    }

    fn weight_bytes(&self) -> usize {
        0
    }

    fn resident_bytes(&self, _: Half) -> usize {
        0
    }

    fn encode(&self, _: &D, host: &Cpu, pictures: &Batch, posterior: Posterior<'_>) -> Result<Batch> {
        refuse_sample(posterior, KIND)?;
        Dct::encode(self, host, pictures)
    }

    fn decode(&self, _: &D, host: &Cpu, latents: &Batch) -> Result<Batch> {
        Dct::decode(self, host, latents)
    }

    fn encode_cost(&self, height: usize, width: usize) -> PassCost {
        // Every kept coefficient weighs every pixel of its block; colours before that.
        let pixels = height * width;
        PassCost { forward_flops: pixels as f64 * (2.0 * CHANNELS as f64 + 18.0), ..PassCost::default() }
    }

    fn decode_cost(&self, height: usize, width: usize) -> PassCost {
        Autoencoder::<D>::encode_cost(self, height, width)
    }
}

/// Value of the orthonormal DCT-II wave with `frequency` half-periods at a pixel of the block.
fn wave(frequency: usize, pixel: usize) -> f64 {
    let scale = if frequency == 0 { 1.0 / BLOCK as f64 } else { 2.0 / BLOCK as f64 };
    let phase = (2 * pixel + 1) as f64 * frequency as f64 * PI / (2 * BLOCK) as f64;
    scale.sqrt() * libm::cos(phase)
}

fn is_whole(side: usize) -> bool {
    side > 0 && side.is_multiple_of(BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cpu() -> Cpu {
        Cpu::new(1).unwrap()
    }

    fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    fn energy(values: impl IntoIterator<Item = f32>) -> f64 {
        values.into_iter().map(|x| f64::from(x).powi(2)).sum()
    }

    /// Latents in the units of the pictures.
    fn without_units(latents: &Batch) -> Vec<f32> {
        let (_, _, height, width) = latents.shape();
        let channel = |i: usize| i / (height * width) % CHANNELS;
        latents.values().iter().enumerate().map(|(i, z)| z * KEPT[channel(i)].unit).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn encoding_what_was_decoded_gives_the_latents_back(
            values in proptest::collection::vec(-3.0f32..3.0, 2 * CHANNELS * 2 * 3)
        ) {
            let (dct, cpu) = (Dct::new(), cpu());
            let latents = Tensor::new(&cpu, (2, CHANNELS, 2, 3), values).unwrap();
            let back = dct.encode(&cpu, &dct.decode(&cpu, &latents).unwrap()).unwrap();
            prop_assert_eq!(back.shape(), latents.shape());
            prop_assert!(largest_difference(back.values(), latents.values()) < 1e-4);
        }

        #[test]
        fn decoding_what_was_encoded_is_an_orthogonal_projection(
            values in proptest::collection::vec(-1.0f32..1.0, 2 * 3 * 16 * 24)
        ) {
            let (dct, cpu) = (Dct::new(), cpu());
            let pictures = Tensor::new(&cpu, (2, 3, 16, 24), values).unwrap();
            let latents = dct.encode(&cpu, &pictures).unwrap();
            let kept = dct.decode(&cpu, &latents).unwrap();
            let again = dct.decode(&cpu, &dct.encode(&cpu, &kept).unwrap()).unwrap();
            prop_assert!(largest_difference(again.values(), kept.values()) < 1e-5);
            let dropped = pictures.values().iter().zip(kept.values()).map(|(x, k)| x - k);
            let whole = energy(pictures.values().iter().copied());
            let parts = energy(kept.values().iter().copied()) + energy(dropped);
            prop_assert!((whole - parts).abs() < 1e-4 * whole, "{whole} is not {parts}");
            let in_latents = energy(without_units(&latents));
            let in_pixels = energy(kept.values().iter().copied());
            prop_assert!((in_latents - in_pixels).abs() < 1e-4 * in_pixels.max(1.0));
        }
    }

    #[test]
    fn a_uniform_picture_has_only_its_mean() {
        let (dct, cpu) = (Dct::new(), cpu());
        let picture: Vec<f32> = [0.5, -0.25, 0.125].iter().flat_map(|&c| [c; 64]).collect();
        let latents = dct.encode(&cpu, &Tensor::new(&cpu, (1, 3, 8, 8), picture).unwrap()).unwrap();
        let found = without_units(&latents);
        let mut expected = [0.0f32; CHANNELS];
        expected[0] = 8.0 * 0.375 / 3f32.sqrt();
        expected[10] = 8.0 * 0.375 / 2f32.sqrt();
        expected[13] = 8.0 * 1.125 / 6f32.sqrt();
        assert!(largest_difference(&found, &expected) < 1e-5, "{found:?}");
    }

    #[test]
    fn a_wave_along_the_columns_lands_in_its_own_channel() {
        let (dct, cpu) = (Dct::new(), cpu());
        let grey: Vec<f32> = (0..3 * 64).map(|i| wave(3, i % 8) as f32).collect();
        let latents = dct.encode(&cpu, &Tensor::new(&cpu, (1, 3, 8, 8), grey).unwrap()).unwrap();
        let found = without_units(&latents);
        let mut expected = [0.0f32; CHANNELS];
        expected[6] = (3.0f32 * 8.0).sqrt();
        assert!(largest_difference(&found, &expected) < 1e-5, "{found:?}");
    }

    #[test]
    fn a_side_that_is_not_a_multiple_of_eight_is_refused_with_what_would_fit() {
        let (dct, cpu) = (Dct::new(), cpu());
        let message = dct.encode(&cpu, &Tensor::zeros(&cpu, (1, 3, 8, 12))).unwrap_err().to_string();
        assert!(message.contains("multiple of 8") && message.contains("12"), "{message}");
        let message = dct.decode(&cpu, &Tensor::zeros(&cpu, (1, 4, 2, 2))).unwrap_err().to_string();
        assert!(message.contains("[B, 16, H, W]") && message.contains('4'), "{message}");
    }
}
