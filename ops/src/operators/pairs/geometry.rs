//! Scaling pictures and masks to the training size: scaled to cover it, then cropped at the centre.
//!
//! Shape letters: `h` `w` focus grid.

use image::{RgbImage, imageops};

use super::picture::{Foreground, Rgb, size_text};

/// Pixels along each side of a cell of the focus grid, where nothing else is said: one token of a FLUX transformer.
pub const CELL: usize = 16;

/// The part of a picture that is kept, in its own pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Crop {
    top: f64,
    left: f64,
    height: f64,
    width: f64,
}

/// The largest part in the middle, of the shape of the target.
fn window((height, width): (usize, usize), target: (usize, usize)) -> Crop {
    let (height, width) = (height as f64, width as f64);
    // Pixels of the picture for one of the target's.
    let step = (height / target.0 as f64).min(width / target.1 as f64);
    let (kept_height, kept_width) = (step * target.0 as f64, step * target.1 as f64);
    Crop {
        top: (height - kept_height) / 2.0,
        left: (width - kept_width) / 2.0,
        height: kept_height,
        width: kept_width,
    }
}

/// The height and width of a picture, and the rows and columns of the scaled picture that are cut off above and left of it.
pub(super) fn crop(size: (usize, usize), target: (usize, usize)) -> [f32; 4] {
    let window = window(size, target);
    let step = window.height / target.0 as f64;
    let cut = [window.top, window.left].map(|pixels| (pixels / step).round() as f32);
    [size.0 as f32, size.1 as f32, cut[0], cut[1]]
}

/// The share of a picture that is kept. By aspects alone, since rounding in a window of pixels would part 4 : 3 from three quarters.
pub(super) fn kept((height, width): (usize, usize), (to_height, to_width): (usize, usize)) -> f64 {
    let aspect = |height: usize, width: usize| width as f64 / height as f64;
    let ratio = aspect(height, width) / aspect(to_height, to_width);
    ratio.min(1.0 / ratio)
}

/// The picture at the size of training.
pub(super) fn fitted(picture: Rgb, target: (usize, usize)) -> Vec<u8> {
    if (picture.height, picture.width) == target {
        return picture.rgb;
    }
    let window = window((picture.height, picture.width), target);
    let (height, width) = (picture.height as u32, picture.width as u32);
    let Some(image) = RgbImage::from_raw(width, height, picture.rgb) else {
        unreachable!("a picture has three bytes a pixel");
    };
    // Whole pixels of the picture: at most half a pixel off what the masks see.
    let round = |x: f64| x.round() as u32;
    let (top, left) = (round(window.top), round(window.left));
    let (kept_height, kept_width) =
        (round(window.height).clamp(1, height - top), round(window.width).clamp(1, width - left));
    let cut = imageops::crop_imm(&image, left, top, kept_width, kept_height).to_image();
    imageops::resize(&cut, target.1 as u32, target.0 as u32, imageops::FilterType::Lanczos3).into_raw()
}

/// The share of foreground in every cell of the focus grid of a picture of `target` pixels.
fn shares(mask: &Foreground, target: (usize, usize), cell: usize) -> Vec<f64> {
    let window = window((mask.height, mask.width), target);
    let (rows, columns) = (target.0 / cell, target.1 / cell);
    let spans = |start: f64, length: f64, cells: usize, limit: usize| -> Vec<Vec<(usize, f64)>> {
        let step = length / cells as f64;
        let span = |cell: usize| {
            let (from, to) = (start + cell as f64 * step, start + (cell + 1) as f64 * step);
            let pixels = from.floor() as usize..(to.ceil() as usize).min(limit);
            let part = |p: usize| (to.min((p + 1) as f64) - from.max(p as f64)).max(0.0) / step;
            pixels.map(|p| (p, part(p))).collect()
        };
        (0..cells).map(span).collect()
    };
    let down = spans(window.top, window.height, rows, mask.height);
    let across = spans(window.left, window.width, columns, mask.width);
    let mut out = Vec::with_capacity(rows * columns);
    for rows in &down {
        for columns in &across {
            let row = |y: usize| -> f64 {
                columns.iter().filter(|(x, _)| mask.inside[y * mask.width + x]).map(|(_, part)| part).sum()
            };
            out.push(rows.iter().map(|(y, part)| part * row(*y)).sum());
        }
    }
    out
}

/// The mask on the focus grid, whose cells have `cell` pixels along a side: cells that are foreground by at least half, or the best cell of
/// a thin subject.
///
/// # Errors
/// If no foreground is left.
pub(super) fn on_grid(mask: &Foreground, target: (usize, usize), cell: usize) -> Result<Vec<f32>, String> {
    let shares = shares(mask, target, cell);
    // Shares are sums of parts of pixels: an exact half may come out a rounding below.
    let mut cells: Vec<f32> = shares.iter().map(|s| f32::from(u8::from(*s >= 0.5 - 1e-9))).collect();
    if cells.iter().all(|c| *c == 0.0) {
        let mut best = 0;
        for (i, share) in shares.iter().enumerate() {
            if *share > shares[best] {
                best = i;
            }
        }
        if shares[best] <= 0.0 {
            return Err(outside(mask, target));
        }
        cells[best] = 1.0;
    }
    Ok(cells)
}

/// Why no foreground of a mask is left.
fn outside(mask: &Foreground, target: (usize, usize)) -> String {
    let window = window((mask.height, mask.width), target);
    let span = |start: f64, length: f64| format!("{:.0} to {:.0}", start, start + length);
    format!(
        "has its foreground outside the part that is kept, the middle in the shape of {} (width x height): x {}, y {} of its \
         {} pixels",
        size_text(target.0, target.1),
        span(window.left, window.width),
        span(window.top, window.height),
        size_text(mask.height, mask.width)
    )
}

/// Refuse a mask that is not of its picture's shape.
///
/// # Errors
/// With both sizes.
pub(super) fn check_shape(mask: &Foreground, picture: &Rgb) -> Result<(), String> {
    let (found, expected) = ((mask.height, mask.width), (picture.height, picture.width));
    if same_shape(found, expected) {
        return Ok(());
    }
    let lying = same_shape((found.1, found.0), expected);
    Err(format!(
        "is {}, its picture {} (width x height): a mask may have another resolution than its picture, but not another shape{}",
        size_text(found.0, found.1),
        size_text(expected.0, expected.1),
        match lying {
            true if picture.turned && !mask.turned =>
                "; EXIF turns the picture, and the mask was made from the picture as it is stored",
            true => "; it lies on its side",
            false => "",
        }
    ))
}

/// Is a mask of the same shape as its picture, up to the rounding of one of the two to whole pixels?
fn same_shape(mask: (usize, usize), picture: (usize, usize)) -> bool {
    let (a, b) = (mask.0 * picture.1, mask.1 * picture.0);
    // One pixel more or less on the smaller of the two sides.
    a.abs_diff(b) <= picture.0.max(picture.1).max(mask.0).max(mask.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(height: usize, width: usize, inside: impl Fn(usize, usize) -> bool) -> Foreground {
        let cells = (0..height * width).map(|i| inside(i / width, i % width));
        Foreground { height, width, inside: cells.collect(), turned: false }
    }

    #[test]
    fn the_window_is_the_largest_in_the_middle() {
        let w = window((100, 400), (32, 64));
        assert_eq!((w.top, w.left, w.height, w.width), (0.0, 100.0, 100.0, 200.0));
        let w = window((300, 100), (64, 64));
        assert_eq!((w.top, w.left, w.height, w.width), (100.0, 0.0, 100.0, 100.0));
    }

    #[test]
    fn what_is_cut_off_is_counted_in_pixels_of_the_scaled_picture() {
        assert_eq!(crop((100, 400), (32, 64)), [100.0, 400.0, 0.0, 32.0]);
        assert_eq!(crop((300, 100), (64, 64)), [300.0, 100.0, 64.0, 0.0]);
        assert_eq!(crop((64, 64), (64, 64)), [64.0, 64.0, 0.0, 0.0]);
    }

    #[test]
    fn a_cell_counts_from_a_half_and_a_thin_subject_keeps_its_best_cell() {
        let half = mask(16, 32, |_, x| !(8..25).contains(&x));
        assert_eq!(on_grid(&half, (16, 32), CELL).unwrap(), [1.0, 0.0]);
        let thin = mask(32, 32, |y, x| x == 20 && y < 20);
        assert_eq!(on_grid(&thin, (32, 32), CELL).unwrap(), [0.0, 1.0, 0.0, 0.0]);
        assert_eq!(on_grid(&half, (16, 32), 8).unwrap(), [1.0, 0.0, 0.0, 1.0].repeat(2), "cells of latents");
        assert!(on_grid(&mask(32, 32, |_, _| false), (32, 32), CELL).is_err());
    }

    #[test]
    fn shares_do_not_depend_on_the_resolution_of_the_mask() {
        for scale in [1, 2, 3, 7] {
            let m = mask(8 * scale, 12 * scale, |y, x| y / scale < 4 && x / scale < 6);
            let found = shares(&m, (32, 48), CELL);
            assert!((found.iter().sum::<f64>() - 1.5).abs() < 1e-9, "{found:?}");
            assert_eq!(on_grid(&m, (32, 48), CELL).unwrap(), [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
        }
        // Not a whole number of pixels a cell.
        let m = mask(50, 50, |_, x| x < 25);
        assert_eq!(shares(&m, (48, 48), CELL).iter().map(|s| (s * 1000.0).round()).sum::<f64>(), 4500.0);
    }

    #[test]
    fn a_picture_and_its_mask_keep_the_same_part() {
        let (height, width) = (60, 200);
        let inside = |_: usize, x: usize| (90..110).contains(&x);
        let rgb = (0..height * width).flat_map(|i| [if inside(0, i % width) { 255 } else { 0 }; 3]).collect();
        let picture = fitted(Rgb { height, width, rgb, turned: false }, (48, 48));
        let cells = shares(&mask(height, width, inside), (48, 48), CELL);
        for (cell, share) in cells.iter().enumerate() {
            let (top, left) = (cell / 3 * CELL, cell % 3 * CELL);
            let bright: f64 = (0..CELL * CELL)
                .map(|i| f64::from(picture[((top + i / CELL) * 48 + left + i % CELL) * 3]) / 255.0)
                .sum();
            assert!((bright / 256.0 - share).abs() < 0.03, "{cell}: {} {share}", bright / 256.0);
        }
    }

    #[test]
    fn masks_may_be_of_another_resolution_but_not_of_another_shape() {
        assert!(same_shape((256, 256), (512, 512)));
        assert!(same_shape((100, 133), (300, 400)));
        assert!(!same_shape((256, 256), (512, 256)));
    }
}
