//! Bicubic resampling of 8-bit pictures, to the last grey level what Pillow gives: encoders were trained and measured on its
//! pictures.
//!
//! A smaller picture is made with a kernel that is wider by as much, so that no pixel is passed over (antialiasing). Rows are
//! resampled first and rounded to bytes, then columns, both in fixed point. So does Pillow 10, which published scores come from;
//! Pillow 13 takes the columns of pictures that are more than twice as tall as wide first, which changes a few grey levels.

/// The cubic's slope at the neighbours (Keys 1981).
const A: f64 = -0.5;
/// How far the kernel reaches, in pixels of the coarser picture.
const REACH: f64 = 2.0;
/// Bits behind the point: eight of a value and two of a sum that overshoots are left of 32.
const BITS: u32 = 32 - 8 - 2;

/// Where a new pixel begins to read, and the weights of the pixels from there on.
type Taps = (usize, Vec<i32>);

/// A picture `[height, width, 3]` in another size, which is not empty.
pub(super) fn resize(
    rgb: &[u8],
    (height, width): (usize, usize),
    (new_height, new_width): (usize, usize),
) -> Vec<u8> {
    let across = if new_width == width {
        rgb.to_vec()
    } else {
        let taps = taps(width, new_width);
        let pixel = |row: usize, (first, weights): &Taps| {
            sums(weights, |tap, channel| rgb[(row * width + first + tap) * 3 + channel])
        };
        (0..height).flat_map(|row| taps.iter().flat_map(move |taps| pixel(row, taps))).collect()
    };
    if new_height == height {
        return across;
    }
    let row = |(first, weights): Taps| {
        let across = &across;
        (0..new_width).flat_map(move |column| {
            sums(&weights, |tap, channel| across[((first + tap) * new_width + column) * 3 + channel])
        })
    };
    taps(height, new_height).into_iter().flat_map(row).collect()
}

/// The weighted sum of each channel, rounded to a byte.
fn sums(weights: &[i32], value: impl Fn(usize, usize) -> u8) -> [u8; 3] {
    std::array::from_fn(|channel| {
        let half = 1i32 << (BITS - 1);
        let terms = weights.iter().enumerate().map(|(tap, weight)| weight * i32::from(value(tap, channel)));
        ((half + terms.sum::<i32>()) >> BITS).clamp(0, 255) as u8
    })
}

/// The taps of every new pixel along an axis.
fn taps(pixels: usize, new: usize) -> Vec<Taps> {
    let step = pixels as f64 / new as f64;
    let wider = step.max(1.0);
    let reach = REACH * wider;
    let of_pixel = |pixel: usize| {
        let centre = (pixel as f64 + 0.5) * step;
        let first = (centre - reach + 0.5).max(0.0) as usize;
        let end = ((centre + reach + 0.5) as usize).min(pixels);
        let weights: Vec<f64> =
            (first..end).map(|p| cubic((p as f64 - centre + 0.5) * (1.0 / wider))).collect();
        let sum: f64 = weights.iter().sum();
        (first, weights.iter().map(|weight| fixed(weight / sum)).collect())
    };
    (0..new).map(of_pixel).collect()
}

/// In fixed point, halves away from zero.
fn fixed(weight: f64) -> i32 {
    (weight * f64::from(1u32 << BITS)).round() as i32
}

/// The weight of a pixel at this distance.
fn cubic(distance: f64) -> f64 {
    let d = distance.abs();
    if d < 1.0 {
        ((A + 2.0) * d - (A + 3.0)) * d * d + 1.0
    } else if d < 2.0 {
        (((d - 5.0) * d + 8.0) * d - 4.0) * A
    } else {
        0.0
    }
}
