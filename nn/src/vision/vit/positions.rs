//! Embeddings of positions for pictures of another size than those of training.
//!
//! ```text
//! G  patches along each side in training    E  width
//! ```
//!
//! DINO and DINOv2 interpolate them bicubically (Keys 1981, a = -3/4) between the centres of patches, and say how far apart the
//! new ones stand by a number of patches that is a tenth too large, which kept rounding from giving one too few. Models have been
//! measured with this tenth, and so it belongs to them (`interpolate_pos_encoding` of both repositories).

/// Added to the number of patches along a side.
const OFFSET: f64 = 0.1;
/// The cubic's slope at the neighbours.
const A: f64 = -0.75;

/// The embeddings of the class token and of a grid of `(rows, columns)` patches, from `stored [1 + G G, E]`. The bits of the grid of
/// training are not touched.
pub(super) fn for_grid(stored: &[f32], (side, width): (usize, usize), grid: (usize, usize)) -> Vec<f32> {
    if grid == (side, side) {
        return stored.to_vec();
    }
    let (class, patches) = stored.split_at(width);
    let [down, across] = [grid.0, grid.1].map(|count| taps(side, count));
    let mut out = class.to_vec();
    out.reserve(grid.0 * grid.1 * width);
    for row in &down {
        for column in &across {
            let mut sums = vec![0.0f64; width];
            for (y, wy) in row {
                for (x, wx) in column {
                    let from = &patches[(y * side + x) * width..][..width];
                    sums.iter_mut().zip(from).for_each(|(sum, v)| *sum += wy * wx * f64::from(*v));
                }
            }
            out.extend(sums.iter().map(|sum| *sum as f32));
        }
    }
    out
}

/// For each of `count` new places along a side, the four old ones around it and their weights; the edge stands for what is
/// beyond it.
fn taps(side: usize, count: usize) -> Vec<[(usize, f64); 4]> {
    let step = side as f64 / (count as f64 + OFFSET);
    let of_place = |place: usize| {
        let at = (place as f64 + 0.5) * step - 0.5;
        let (first, fraction) = (at.floor(), at - at.floor());
        let distances = [1.0 + fraction, fraction, 1.0 - fraction, 2.0 - fraction];
        std::array::from_fn(|tap| {
            let source = (first + tap as f64 - 1.0).clamp(0.0, (side - 1) as f64);
            (source as usize, cubic(distances[tap]))
        })
    };
    (0..count).map(of_place).collect()
}

/// The weight of a neighbour at this distance.
fn cubic(distance: f64) -> f64 {
    let d = distance;
    if d <= 1.0 { ((A + 2.0) * d - (A + 3.0)) * d * d + 1.0 } else { ((d - 5.0) * d + 8.0) * d * A - 4.0 * A }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A class token of nines, then one value for each patch of a grid of `side`.
    fn stored(side: usize, value: impl Fn(usize, usize) -> f32) -> Vec<f32> {
        let patches = (0..side * side).map(|i| value(i / side, i % side));
        std::iter::once(9.0).chain(patches).collect()
    }

    #[test]
    fn the_grid_of_training_is_not_touched_and_the_class_token_never() {
        let all = stored(4, |y, x| (y * 7 + x) as f32);
        assert_eq!(for_grid(&all, (4, 1), (4, 4)), all);
        assert_eq!(for_grid(&all, (4, 1), (2, 6))[0], 9.0);
    }

    /// `F.interpolate(stored, scale_factor=((rows + 0.1) / side, (columns + 0.1) / side), mode="bicubic")` of PyTorch 2.15, as DINO
    /// and DINOv2 call it.
    #[test]
    fn positions_are_those_of_pytorch() {
        let values = |side: usize, width: usize| -> Vec<f32> {
            let class = std::iter::repeat_n(9.0, width);
            class.chain((0..side * side * width).map(|i| (i * 37 % 23) as f32 / 8.0 - 1.0)).collect()
        };
        let near = |found: &[f32], expected: &[f32]| {
            assert_eq!(found.len(), expected.len());
            let far = found.iter().zip(expected).find(|(a, b)| (**a - **b).abs() > 2e-6);
            assert!(far.is_none(), "{far:?}");
        };
        let found = for_grid(&values(4, 2), (4, 2), (3, 6));
        #[rustfmt::skip]
        let expected = [
            -0.707608, 0.653587, -0.635422, 1.181595, -0.366673, 1.155685, 0.033902, -0.229805, 0.554539, -0.634907, 0.873757,
            -0.273828, 1.746785, 0.150446, 1.049047, 0.423003, 0.128816, 1.022772, -0.278739, 1.873562, -0.077912, 0.612846,
            0.370617, -1.20245, 0.763339, -0.35125, 1.401145, -0.051588, 1.342653, 0.452243, -0.409814, 0.86624, -0.759435,
            0.973885, -0.131079, 0.849044,
        ];
        near(&found[2..], &expected);
        let found = for_grid(&values(5, 1), (5, 1), (8, 4));
        #[rustfmt::skip]
        let expected = [
            -0.843973, 0.488031, 0.604587, 0.526212, -0.789897, 0.542107, 0.658663, 0.580288, -0.699481, 0.632524, 0.74908,
            0.670705, -0.629179, 0.702825, 0.819381, 0.741006, -0.541947, 0.783503, 0.985528, 0.856928, -0.474998, 0.84712,
            1.092613, 0.938469, -0.381584, 1.030998, 0.096696, 0.635847, -0.323036, 1.177317, -0.901654, 0.31015,
        ];
        near(&found[1..], &expected);
    }

    #[test]
    fn what_is_the_same_everywhere_stays_so() {
        let found = for_grid(&stored(5, |_, _| 0.25), (5, 1), (3, 8));
        assert!(found[1..].iter().all(|v| (v - 0.25).abs() < 1e-6), "{found:?}");
        assert_eq!(found.len(), 1 + 3 * 8);
    }

    #[test]
    fn rows_and_columns_are_told_apart_and_the_tenth_moves_the_far_end() {
        // Halfway between two of four places, by hand: cubic weights of the distances 3/2, 1/2, 1/2, 3/2.
        let found = for_grid(&stored(4, |y, _| y as f32), (4, 1), (2, 4));
        let (step, half) = (4.0 / 2.1, 0.5);
        let at = half * step - half;
        assert!((0.4..0.5).contains(&at));
        let place = |row: usize| found[1 + row * 4];
        assert!(found[1..5].iter().all(|v| (v - place(0)).abs() < 1e-6), "{found:?}");
        let weights = [1.0 + at, at, 1.0 - at, 2.0 - at].map(cubic);
        assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        // The place before the first one is the first one.
        let expected = weights[2] + 2.0 * weights[3];
        assert!((f64::from(place(0)) - expected).abs() < 1e-6, "{found:?} {expected}");
        assert!(place(1) < 3.0 - place(0), "a whole number of patches would be symmetric: {found:?}");
    }
}
