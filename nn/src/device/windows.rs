//! The windows of a convolution over a picture, channels last.
//!
//! ```text
//! B  pictures    H, W  rows and columns of pixels    H', W'  those of the output    C  channels    S  side of a window
//! ```

use std::ops::Range;

use super::{Device, View, ViewMut};

/// Which input pixels an output pixel sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConvWindow {
    /// The pixel itself.
    One,
    /// The pixel and its eight neighbours; zeros outside the picture.
    Three,
    /// The same after every pixel has become 2x2 of its kind.
    ThreeOfDoubled,
    /// 3x3 at every second pixel, from that pixel on: zeros stand right and below only.
    ThreeHalving,
    /// 3x3 around every second pixel.
    ThreeHalvingCentred,
}

impl ConvWindow {
    /// S, pixels along each side of what is seen.
    pub const fn side(self) -> usize {
        if matches!(self, Self::One) { 1 } else { 3 }
    }

    /// Pixels from one window to the next.
    pub const fn stride(self) -> usize {
        if matches!(self, Self::ThreeHalving | Self::ThreeHalvingCentred) { 2 } else { 1 }
    }

    /// Zeros before the first pixel of a row or column.
    pub const fn before(self) -> usize {
        if matches!(self, Self::One | Self::ThreeHalving) { 0 } else { 1 }
    }

    /// How often every pixel stands in the picture that is seen, along each axis.
    pub const fn repeats(self) -> usize {
        if matches!(self, Self::ThreeOfDoubled) { 2 } else { 1 }
    }

    /// Is the backward of its convolution a convolution with the same window? The kernel's taps stand in the reverse order then.
    pub const fn is_its_own_adjoint(self) -> bool {
        matches!(self, Self::One | Self::Three)
    }

    /// Extent of the output for an extent of the input.
    pub const fn output(self, side: usize) -> usize {
        match self {
            Self::One | Self::Three => side,
            Self::ThreeOfDoubled => 2 * side,
            // With one row of zeros below, the last window begins two rows above the end.
            Self::ThreeHalving => side / 2,
            Self::ThreeHalvingCentred => side.div_ceil(2),
        }
    }

    /// The input pixel at place `tap` of the window of output pixel `at`, along one axis of `side` pixels; nothing where a
    /// zero stands.
    #[inline]
    pub fn source(self, at: usize, tap: usize, side: usize) -> Option<usize> {
        let seen = (self.stride() * at + tap).checked_sub(self.before())?;
        Some(seen / self.repeats()).filter(|p| *p < side)
    }

    /// The output pixels whose windows have the input pixel at place `tap`, along one axis of `side` pixels: the inverse of
    /// [`source`](Self::source).
    #[inline]
    pub fn seen_by(self, pixel: usize, tap: usize, side: usize) -> impl Iterator<Item = usize> {
        let (repeats, stride, outputs) = (self.repeats(), self.stride(), self.output(side));
        (pixel * repeats..(pixel + 1) * repeats).filter_map(move |seen| {
            let from = (seen + self.before()).checked_sub(tap)?;
            (from.is_multiple_of(stride) && from / stride < outputs).then_some(from / stride)
        })
    }
}

/// The windows of all output pixels of some pictures, `[B H' W', S S C]`: a row for each output pixel, taps in the order of rows and
/// columns, each with all its channels; zeros outside the picture.
#[derive(Debug)]
pub struct WindowRows<'a, D: Device> {
    /// What an output pixel sees.
    pub window: ConvWindow,
    /// H and W of a picture.
    pub size: (usize, usize),
    /// C.
    pub channels: usize,
    /// `[B, H, W, C]`, without gaps between pixels.
    pub x: View<'a, D>,
}

impl<D: Device> Clone for WindowRows<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for WindowRows<'_, D> {}

/// Copies the windows of some output pixels into rows, taps in the order of rows and columns, each with all its channels:
/// `out[p - first, (tap_row S + tap_column) C + c] = x[source(p, tap), c]`, zero outside the picture.
#[derive(Debug)]
pub struct Windows<'a, D: Device> {
    /// What an output pixel sees.
    pub window: ConvWindow,
    /// H and W of the input.
    pub size: (usize, usize),
    /// C.
    pub channels: usize,
    /// Which output pixels, counted row by row.
    pub pixels: Range<usize>,
    /// `[H, W, C]`, without gaps between pixels.
    pub x: View<'a, D>,
    /// `[pixels, S S C]`, without gaps between rows.
    pub out: ViewMut<'a, D>,
}

/// Backward of [`Windows`]: `dx[p, c]` is the sum, over the taps in their order, of the cotangents of those windows of the range
/// that have the pixel there.
#[derive(Debug)]
pub struct WindowsBackward<'a, D: Device> {
    /// What an output pixel sees.
    pub window: ConvWindow,
    /// H and W of the input.
    pub size: (usize, usize),
    /// C.
    pub channels: usize,
    /// Which output pixels, counted row by row.
    pub pixels: Range<usize>,
    /// The cotangents of their windows, `[pixels, S S C]`, without gaps between rows.
    pub dy: View<'a, D>,
    /// `[H, W, C]`, without gaps between pixels; overwritten, or added to with `accumulate`.
    pub dx: ViewMut<'a, D>,
    /// Whether to add to what `dx` holds.
    pub accumulate: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_output_pixel_sees_input_and_every_input_pixel_is_seen() {
        use ConvWindow::{One, Three, ThreeHalving, ThreeHalvingCentred, ThreeOfDoubled};
        for window in [One, Three, ThreeOfDoubled, ThreeHalving, ThreeHalvingCentred] {
            for side in 2..9 {
                let sources = |at| (0..window.side()).filter_map(move |tap| window.source(at, tap, side));
                let outputs = window.output(side);
                assert!((0..outputs).all(|at| sources(at).count() > 0), "{window:?} {side}");
                // Without a window that begins at it, the last pixel of an odd side is seen by the one before.
                let seen = |p| (0..outputs).any(|at| sources(at).any(|s| s == p));
                assert!((0..side).all(seen), "{window:?} {side}");
            }
        }
    }

    #[test]
    fn an_output_pixel_sees_just_the_input_pixels_that_are_seen_by_it() {
        use ConvWindow::{One, Three, ThreeHalving, ThreeHalvingCentred, ThreeOfDoubled};
        for window in [One, Three, ThreeOfDoubled, ThreeHalving, ThreeHalvingCentred] {
            for (side, tap) in (2..9).flat_map(|side| (0..window.side()).map(move |tap| (side, tap))) {
                let outputs = 0..window.output(side);
                let mut forth: Vec<_> =
                    outputs.filter_map(|at| Some((window.source(at, tap, side)?, at))).collect();
                forth.sort_unstable();
                let back = (0..side).flat_map(|p| window.seen_by(p, tap, side).map(move |at| (p, at)));
                assert_eq!(back.collect::<Vec<_>>(), forth, "{window:?} {side} {tap}");
            }
        }
    }
}
