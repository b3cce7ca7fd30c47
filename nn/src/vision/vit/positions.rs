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
