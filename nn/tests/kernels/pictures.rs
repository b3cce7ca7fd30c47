//! What a U-Net needs besides: norms with weights of their own and their backward, windows backward, gated GELU.

use prefgraph_nn::cpu::{
    GroupNorm, SubMatrix, add_to_tokens, gated_gelu, gated_gelu_backward, group_norm_backward,
    layer_norm_backward, rms_norm_backward, windows, windows_backward,
};
use prefgraph_nn::device::ConvWindow;

use crate::{
    Numbers, assert_close,
    cases::{Groups, Picture, SMALL},
    differences, same_on_all_devices, wide,
};

const EPS: f64 = 1e-3;

/// `(x - mean) / deviation`, or without the mean.
fn normed(x: &[f64], centred: bool) -> Vec<f64> {
    let count = x.len() as f64;
    let mean = if centred { x.iter().sum::<f64>() / count } else { 0.0 };
    let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
    x.iter().map(|v| (v - mean) / (variance + EPS).sqrt()).collect()
}

#[test]
fn the_backward_of_a_norm_of_rows_is_added_and_equals_differences() {
    for &Groups { rows, width, .. } in SMALL.norms.iter().filter(|n| n.rows < 100 && n.width < 100) {
        let mut numbers = Numbers::new(rows as u64 + 1);
        let [x, dy, dx] = [(); 3].map(|()| numbers.many(rows * width));
        let weight = numbers.many(width);
        for centred in [true, false] {
            let run = if centred { layer_norm_backward } else { rms_norm_backward };
            let found = same_on_all_devices(|cpu| {
                let mut dx = dx.clone();
                run(cpu, &x, &weight, EPS, &dy, &mut dx);
                dx
            });
            let mut expected = Vec::new();
            for row in 0..rows {
                let part = row * width..(row + 1) * width;
                let of_row = |x: &[f64]| {
                    normed(x, centred).iter().zip(&weight).map(|(n, w)| n * f64::from(*w)).collect()
                };
                let d = differences(&wide(&x[part.clone()]), &wide(&dy[part.clone()]), of_row);
                expected.extend(d.iter().zip(&dx[part]).map(|(d, old)| d + f64::from(*old)));
            }
            assert_close(&found, &expected, 1e-5, &format!("{rows} rows of {width}, centred: {centred}"));
        }
    }
}

#[test]
fn the_backward_of_a_norm_of_groups_equals_differences() {
    for &Groups { rows, width, groups } in SMALL.norms.iter().filter(|n| n.rows * n.width < 500) {
        let mut numbers = Numbers::new(width as u64 + 7);
        let [x, dy] = [(); 2].map(|()| numbers.many(rows * width));
        let [weight, bias] = [(); 2].map(|()| numbers.many(width));
        for silu in [false, true] {
            let norm = GroupNorm { groups, weight: &weight, bias: &bias, eps: EPS, silu };
            let found = same_on_all_devices(|cpu| {
                let mut dx = vec![9.0; x.len()];
                group_norm_backward(cpu, &x, norm, &dy, &mut dx);
                dx
            });
            let each = width / groups;
            let of_picture = |x: &[f64]| {
                let mut y = vec![0.0; x.len()];
                for group in 0..groups {
                    let at: Vec<usize> = (0..x.len()).filter(|i| i % width / each == group).collect();
                    let values: Vec<f64> = at.iter().map(|i| x[*i]).collect();
                    for (i, n) in at.iter().zip(normed(&values, true)) {
                        let z = n * f64::from(weight[i % width]) + f64::from(bias[i % width]);
                        y[*i] = if silu { z / (1.0 + libm::exp(-z)) } else { z };
                    }
                }
                y
            };
            let expected = differences(&wide(&x), &wide(&dy), of_picture);
            assert_close(&found, &expected, 1e-5, &format!("{rows} rows of {width}, silu: {silu}"));
        }
    }
}

#[test]
fn the_backward_of_windows_is_their_transpose_in_blocks_of_pixels_as_well() {
    use ConvWindow::{One, Three, ThreeHalving, ThreeHalvingCentred, ThreeOfDoubled};
    for &Picture { height, width, channels } in SMALL.pictures {
        let size = (height, width);
        for window in [One, Three, ThreeOfDoubled, ThreeHalving, ThreeHalvingCentred] {
            let (all, terms) =
                (window.output(height) * window.output(width), window.side().pow(2) * channels);
            let mut numbers = Numbers::new(all as u64);
            let (x, dy) = (numbers.many(height * width * channels), numbers.many(all * terms));
            let found = same_on_all_devices(|cpu| {
                let mut dx = vec![9.0; x.len()];
                let cut = all / 3;
                let (first, second) = dy.split_at(cut * terms);
                windows_backward(cpu, window, size, channels, 0..cut, first, &mut dx, false);
                windows_backward(cpu, window, size, channels, cut..all, second, &mut dx, true);
                dx
            });
            // The transpose, column by column: what the windows of one value are.
            let cpu = prefgraph_nn::Cpu::new(1).unwrap();
            let column = |i: usize| -> f64 {
                let mut unit = vec![0.0; x.len()];
                unit[i] = 1.0;
                let mut out = vec![0.0; all * terms];
                windows(&cpu, window, size, channels, 0..all, &unit, &mut out);
                out.iter().zip(&dy).map(|(o, d)| f64::from(*o) * f64::from(*d)).sum()
            };
            let expected: Vec<f64> = (0..x.len()).map(column).collect();
            assert_close(&found, &expected, 1e-6, &format!("{window:?} of {size:?}"));
        }
    }
}

#[test]
fn a_gated_gelu_and_its_backward_equal_their_definition_inside_wider_rows() {
    for (rows, width, stride) in [(1, 1, 2), (3, 21, 50), (70, 300, 600)] {
        let mut numbers = Numbers::new(width as u64);
        let x: Vec<f32> = numbers.many(rows * stride).iter().map(|v| 6.0 * v).collect();
        let dy = numbers.many(rows * width);
        let window = SubMatrix { rows, width };
        let found = same_on_all_devices(|cpu| {
            let (mut y, mut dx) = (vec![9.0; rows * width], vec![9.0; rows * stride]);
            gated_gelu(cpu, window, (&x, stride), (&mut y, width));
            gated_gelu_backward(cpu, window, (&x, stride), (&dy, width), (&mut dx, stride));
            [y, dx].concat()
        });
        let gelu = |b: f64| 0.5 * b * (1.0 + libm::erf(b / 2f64.sqrt()));
        let slope = |b: f64| (gelu(b + 1e-6) - gelu(b - 1e-6)) / 2e-6;
        let (mut y, mut dx) = (Vec::new(), vec![9.0; rows * stride]);
        for row in 0..rows {
            for column in 0..width {
                let at = row * stride + column;
                let (a, b) = (f64::from(x[at]), f64::from(x[at + width]));
                let d = f64::from(dy[row * width + column]);
                y.push(a * gelu(b));
                (dx[at], dx[at + width]) = (d * gelu(b), d * a * slope(b));
            }
        }
        assert_close(&found, &[y, dx].concat(), 1e-6, &format!("{rows} rows of {width}"));
    }
}

#[test]
fn a_vector_of_its_sample_is_added_to_every_token() {
    for &rows in SMALL.rows {
        let mut numbers = Numbers::new(rows.len() as u64);
        let stride = rows.width + 3;
        let (x, v) = (numbers.many(rows.len()), numbers.many(rows.batch * stride));
        let found = same_on_all_devices(|cpu| {
            let mut x = x.clone();
            add_to_tokens(cpu, rows, (&v, stride), &mut x);
            x
        });
        for (i, found) in found.iter().enumerate() {
            assert_eq!(*found, x[i] + v[i / (rows.tokens * rows.width) * stride + i % rows.width]);
        }
    }
}
