//! Norms, heads, activations, gates, scores and the optimizer against their formulas in f64.

#![allow(clippy::disallowed_methods, reason = "expected values: their last bits do not matter")]

use prefgraph_nn::cpu::{
    AdamW, Cpu, GateGrad, HeadLayout, ModulationGrad, NormRotary, SubMatrix, TokenRows, Update, adamw,
    add_scaled, cosine_scores, gated_add, gated_add_backward, gelu, gelu_backward, masked_mean,
    norm_modulate, norm_modulate_backward, scale, silu, silu_backward, split_heads, split_heads_backward,
    sum_of_squares,
};

use crate::{
    Numbers, assert_close,
    cases::{SMALL, Scored},
    differences, same_on_all_devices, wide,
};

fn normed(x: &[f64]) -> Vec<f64> {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / x.len() as f64;
    x.iter().map(|x| (x - mean) / (variance + 1e-6).sqrt()).collect()
}

struct Norm {
    rows: TokenRows,
    x: Vec<f32>,
    /// Shift and scale in one row of each sample.
    modulation: Vec<f32>,
    dy: Vec<f32>,
    dx: Vec<f32>,
}

impl Norm {
    fn new(rows: TokenRows) -> Self {
        let mut numbers = Numbers::new(rows.len() as u64);
        let mut x = numbers.many(rows.len());
        x.iter_mut().for_each(|x| *x = 2.0 * *x + 3.0);
        Self {
            rows,
            x,
            modulation: numbers.many(rows.batch * 2 * rows.width),
            dy: numbers.many(rows.len()),
            dx: numbers.many(rows.len()),
        }
    }

    fn forward(&self, cpu: &Cpu) -> [Vec<f32>; 3] {
        let count = self.rows.batch * self.rows.tokens;
        let [mut y, mut mean, mut rstd] = [vec![0.0; self.rows.len()], vec![0.0; count], vec![0.0; count]];
        let (shift, scale) = (&self.modulation[..], &self.modulation[self.rows.width..]);
        let stride = 2 * self.rows.width;
        norm_modulate(cpu, self.rows, &self.x, shift, scale, stride, &mut y, &mut mean, &mut rstd);
        [y, mean, rstd]
    }

    /// One row in f64.
    fn expected(&self, row: usize, x: &[f64]) -> Vec<f64> {
        let d = self.rows.width;
        let modulation = wide(&self.modulation[row / self.rows.tokens * 2 * d..][..2 * d]);
        normed(x).iter().enumerate().map(|(i, n)| n * (1.0 + modulation[d + i]) + modulation[i]).collect()
    }

    fn row(&self, row: usize) -> std::ops::Range<usize> {
        row * self.rows.width..(row + 1) * self.rows.width
    }
}

#[test]
fn norm_and_modulation_equal_their_formula() {
    for &rows in SMALL.rows {
        let case = Norm::new(rows);
        let found = same_on_all_devices(|cpu| case.forward(cpu).concat());
        let expected: Vec<f64> = (0..rows.batch * rows.tokens)
            .flat_map(|row| case.expected(row, &wide(&case.x[case.row(row)])))
            .collect();
        assert_close(&found[..rows.len()], &expected, 3e-6, &format!("{rows:?}"));
    }
}

#[test]
fn norm_and_modulation_backward_equal_differences() {
    for &rows in SMALL.rows.iter().filter(|rows| rows.tokens < 100) {
        let case = Norm::new(rows);
        let d = rows.width;
        for accumulate in [false, true] {
            let found = same_on_all_devices(|cpu| {
                let [_, mean, rstd] = case.forward(cpu);
                let mut dx = case.dx.clone();
                let (mut d_shift, mut d_scale) = (vec![9.0; rows.batch * d], vec![9.0; rows.batch * d]);
                let grad = ModulationGrad { d_shift: &mut d_shift, d_scale: &mut d_scale, stride: d };
                let scale = &case.modulation[d..];
                norm_modulate_backward(
                    cpu,
                    rows,
                    &case.x,
                    &mean,
                    &rstd,
                    scale,
                    2 * d,
                    &case.dy,
                    &mut dx,
                    accumulate,
                    Some(grad),
                );
                [dx, d_shift, d_scale].concat()
            });
            let mut expected = Vec::new();
            let (mut d_shift, mut d_scale) = (vec![0.0; rows.batch * d], vec![0.0; rows.batch * d]);
            for row in 0..rows.batch * rows.tokens {
                let (x, dy) = (wide(&case.x[case.row(row)]), wide(&case.dy[case.row(row)]));
                let old = wide(&case.dx[case.row(row)]);
                let dx = differences(&x, &dy, |x| case.expected(row, x));
                expected.extend(dx.iter().zip(old).map(|(dx, old)| if accumulate { dx + old } else { *dx }));
                for (i, n) in normed(&x).into_iter().enumerate() {
                    d_shift[row / rows.tokens * d + i] += dy[i];
                    d_scale[row / rows.tokens * d + i] += dy[i] * n;
                }
            }
            expected.extend(d_shift.into_iter().chain(d_scale));
            assert_close(&found, &expected, 1e-5, &format!("{rows:?}"));
        }
    }
}

struct Heads {
    layout: HeadLayout,
    stride: usize,
    x: Vec<f32>,
    weight: Vec<f32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
    d_out: Vec<f32>,
}

/// With the stride of the token-major rows.
fn layouts() -> impl Iterator<Item = (HeadLayout, usize)> {
    SMALL.heads.iter().map(|layout| (*layout, layout.heads * layout.dim + layout.offset))
}

impl Heads {
    fn new((layout, stride): (HeadLayout, usize)) -> Self {
        let mut numbers = Numbers::new(stride as u64);
        let angles = numbers.many(layout.tokens * layout.dim / 2);
        Self {
            layout,
            stride,
            x: numbers.many(layout.batch * layout.stream_tokens * stride),
            weight: numbers.many(layout.dim),
            cos: angles.iter().map(|a| (3.0 * a).cos()).collect(),
            sin: angles.iter().map(|a| (3.0 * a).sin()).collect(),
            d_out: numbers.many(layout.batch * layout.heads * layout.tokens * layout.dim),
        }
    }

    fn norm_rotary(&self) -> NormRotary<'_> {
        NormRotary { weight: &self.weight, cos: &self.cos, sin: &self.sin }
    }

    /// One head of one token in f64.
    fn expected(&self, place: usize, x: &[f64]) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let n: Vec<f64> =
            x.iter().zip(&self.weight).map(|(x, w)| x / (mean + 1e-6).sqrt() * f64::from(*w)).collect();
        (0..x.len())
            .map(|i| {
                let at = place * x.len() / 2 + i / 2;
                let (cos, sin) = (f64::from(self.cos[at]), f64::from(self.sin[at]));
                if i % 2 == 0 { n[i] * cos - n[i + 1] * sin } else { n[i - 1] * sin + n[i] * cos }
            })
            .collect()
    }

    /// Calls with the place of a head in token-major values, in head-major values, and in the attention.
    fn each(&self, mut f: impl FnMut(usize, usize, usize)) {
        let l = self.layout;
        for b in 0..l.batch {
            for s in 0..l.stream_tokens {
                for h in 0..l.heads {
                    let place = l.offset + s;
                    let head_major = ((b * l.heads + h) * l.tokens + place) * l.dim;
                    f((b * l.stream_tokens + s) * self.stride + h * l.dim, head_major, place);
                }
            }
        }
    }
}

#[test]
fn heads_are_split_normed_and_turned_and_other_streams_left_alone() {
    for (layout, stride) in layouts() {
        let case = Heads::new((layout, stride));
        for norm in [false, true] {
            let found = same_on_all_devices(|cpu| {
                let mut out = vec![9.0; case.d_out.len()];
                split_heads(cpu, layout, (&case.x, stride), norm.then(|| case.norm_rotary()), &mut out);
                out
            });
            let mut expected = vec![9.0; case.d_out.len()];
            case.each(|from, to, place| {
                let x = wide(&case.x[from..from + layout.dim]);
                let y = if norm { case.expected(place, &x) } else { x };
                expected[to..to + layout.dim].copy_from_slice(&y);
            });
            assert_close(&found, &expected, 1e-6, &format!("{layout:?}"));
        }
    }
}

#[test]
fn heads_backward_equals_differences() {
    for (layout, x_stride) in layouts().filter(|(layout, _)| layout.tokens < 100) {
        let case = Heads::new((layout, x_stride));
        let stride = x_stride + 1;
        for norm in [false, true] {
            let found = same_on_all_devices(|cpu| {
                let mut dx = vec![9.0; layout.batch * layout.stream_tokens * stride];
                let norm_rotary = norm.then(|| case.norm_rotary());
                let x = (&case.x[..], x_stride);
                split_heads_backward(cpu, layout, &case.d_out, x, norm_rotary, (&mut dx, stride));
                dx
            });
            let mut expected = vec![9.0; found.len()];
            case.each(|from, to, place| {
                let cotangent = wide(&case.d_out[to..to + layout.dim]);
                let x = wide(&case.x[from..from + layout.dim]);
                let dx =
                    if norm { differences(&x, &cotangent, |x| case.expected(place, x)) } else { cotangent };
                let at = from / x_stride * stride + from % x_stride;
                expected[at..at + layout.dim].copy_from_slice(&dx);
            });
            assert_close(&found, &expected, 2e-6, &format!("{layout:?}"));
        }
    }
}

fn gelu64(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
}

fn silu64(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// Values on both sides of where the functions bend and saturate, and beyond.
fn spread(len: usize) -> Vec<f32> {
    let mut numbers = Numbers::new(len as u64);
    (0..len).map(|i| numbers.one() * [0.1, 2.0, 8.0, 60.0][i % 4]).collect()
}

/// Asserts relative errors, with an absolute floor.
#[track_caller]
fn assert_accurate(found: &[f32], expected: impl Fn(usize) -> f64, relative: f64, floor: f64) {
    for (i, found) in found.iter().enumerate() {
        let expected = expected(i);
        let error = (f64::from(*found) - expected).abs();
        assert!(error <= relative * expected.abs() + floor, "value {i}: {found}, expected {expected}");
    }
}

#[test]
fn gelu_and_its_backward_are_accurate_inside_wider_rows() {
    for (rows, width, x_stride, y_stride) in [(1, 1, 1, 1), (3, 21, 30, 25), (70, 500, 500, 700)] {
        let window = SubMatrix { rows, width };
        let (x, dy) = (spread(rows * x_stride), Numbers::new(5).many(rows * y_stride));
        let at = |i: usize| i / y_stride * x_stride + i % y_stride;
        let y = same_on_all_devices(|cpu| {
            let mut y = vec![9.0; rows * y_stride];
            gelu(cpu, window, &x, x_stride, &mut y, y_stride);
            y
        });
        let outside = |i: usize| i % y_stride >= width;
        assert_accurate(&y, |i| if outside(i) { 9.0 } else { gelu64(f64::from(x[at(i)])) }, 1e-6, 3e-8);
        let dx = same_on_all_devices(|cpu| {
            let mut dx = x.clone();
            gelu_backward(cpu, window, (&dy, y_stride), (&mut dx, x_stride));
            dx
        });
        let derivative = |x: f64| (gelu64(x + 1e-6) - gelu64(x - 1e-6)) / 2e-6;
        let expected = |i: usize| {
            let (row, column, x) = (i / x_stride, i % x_stride, f64::from(x[i]));
            if column < width { f64::from(dy[row * y_stride + column]) * derivative(x) } else { x }
        };
        assert_accurate(&dx, expected, 2e-6, 1e-7);
    }
}

#[test]
fn silu_and_its_backward_are_accurate() {
    for len in [1, 100, 40_000] {
        let (x, dy) = (spread(len), Numbers::new(6).many(len));
        let run = |f: &dyn Fn(&Cpu, &mut [f32])| {
            same_on_all_devices(|cpu| {
                let mut out = vec![0.0; len];
                f(cpu, &mut out);
                out
            })
        };
        let y = run(&|cpu, y| silu(cpu, &x, y));
        assert_accurate(&y, |i| silu64(f64::from(x[i])), 1e-6, 1e-30);
        let dx = run(&|cpu, dx| silu_backward(cpu, &x, &dy, dx));
        let derivative = |x: f64| (silu64(x + 1e-6) - silu64(x - 1e-6)) / 2e-6;
        assert_accurate(&dx, |i| f64::from(dy[i]) * derivative(f64::from(x[i])), 2e-6, 1e-7);
    }
}

#[test]
fn gated_sums_and_their_backward_equal_their_formula() {
    for &rows in SMALL.rows {
        let mut numbers = Numbers::new(7 + rows.len() as u64);
        let (d, stride) = (rows.width, rows.width + 3);
        let [x, y] = [(); 2].map(|()| numbers.many(rows.len()));
        let gate = numbers.many(rows.batch * stride);
        let found = same_on_all_devices(|cpu| {
            let (mut sum, mut dy, mut d_gate) =
                (y.clone(), vec![9.0; rows.len()], vec![9.0; rows.batch * stride]);
            gated_add(cpu, rows, &x, &gate, stride, &mut sum);
            let gate_grad = Some(GateGrad { y: &y, d_gate: &mut d_gate, stride });
            gated_add_backward(cpu, rows, &x, &gate, stride, &mut dy, gate_grad);
            [sum, dy, d_gate].concat()
        });
        let gate_of = |i: usize| f64::from(gate[i / (d * rows.tokens) * stride + i % d]);
        let (x, y) = (wide(&x), wide(&y));
        let mut d_gate = vec![9.0; rows.batch * stride];
        for b in 0..rows.batch {
            for c in 0..d {
                d_gate[b * stride + c] =
                    (0..rows.tokens).map(|t| (b * rows.tokens + t) * d + c).map(|i| x[i] * y[i]).sum();
            }
        }
        let expected = [
            (0..rows.len()).map(|i| x[i] + gate_of(i) * y[i]).collect(),
            (0..rows.len()).map(|i| gate_of(i) * x[i]).collect(),
            d_gate,
        ];
        assert_close(&found, &expected.concat(), 1e-6, &format!("{rows:?}"));
    }
}

#[test]
fn sums_and_multiples_of_any_length_are_exact_in_one_rounding() {
    for len in [0, 1, 17, 5000, 70_001] {
        let mut numbers = Numbers::new(len as u64);
        let (x, y) = (numbers.many(len), numbers.many(len));
        let found = same_on_all_devices(|cpu| {
            let mut y = y.clone();
            add_scaled(cpu, 0.3, &x, &mut y);
            scale(cpu, 0.7, &mut y);
            y
        });
        for i in 0..len {
            assert_eq!(found[i], 0.3f32.mul_add(x[i], y[i]) * 0.7);
        }
    }
}

#[test]
fn cosines_and_masked_means_equal_f64_and_are_zero_without_anything_to_compare() {
    for &Scored { width: d, tokens, .. } in SMALL.scores {
        let mut numbers = Numbers::new(d as u64);
        let (mut rows, vector) = (numbers.many(tokens * d), numbers.many(d));
        let mask: Vec<f32> = (0..tokens).map(|t| (t % 3) as f32 / 2.0).collect();
        if tokens > 1 {
            rows[d..2 * d].fill(0.0);
        }
        let dot = |a: &[f32], b: &[f32]| wide(a).iter().zip(wide(b)).map(|(a, b)| a * b).sum::<f64>();
        let found = same_on_all_devices(|cpu| {
            let (mut cosines, mut mean) = (vec![9.0; tokens], vec![9.0; d]);
            cosine_scores(cpu, &rows, &vector, &mut cosines);
            let weight = masked_mean(cpu, &rows, &mask, &mut mean);
            assert_eq!(weight, mask.iter().map(|m| f64::from(*m)).sum::<f64>());
            [cosines, mean].concat()
        });
        let weight: f64 = wide(&mask).iter().sum();
        let cosine = |t: usize| {
            let row = &rows[t * d..][..d];
            let norms = (dot(row, row) * dot(&vector, &vector)).sqrt();
            if norms > 0.0 { dot(row, &vector) / norms } else { 0.0 }
        };
        let mean = |c: usize| {
            let sum: f64 = (0..tokens).map(|t| f64::from(mask[t]) * f64::from(rows[t * d + c])).sum();
            if weight > 0.0 { sum / weight } else { 0.0 }
        };
        let expected: Vec<f64> = (0..tokens).map(cosine).chain((0..d).map(mean)).collect();
        assert_close(&found, &expected, 1e-7, &format!("{tokens} rows of {d}"));
    }
}

#[test]
fn adamw_follows_its_formula_over_several_steps() {
    for len in [1, 100, 40_000] {
        let mut numbers = Numbers::new(len as u64);
        let start = numbers.many(len);
        let gradients: Vec<Vec<f32>> = (0..3).map(|_| numbers.many(len)).collect();
        let settings = AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };
        let found = same_on_all_devices(|cpu| {
            let (mut p, mut first, mut second) = (start.clone(), vec![0.0; len], vec![0.0; len]);
            for (i, g) in gradients.iter().enumerate() {
                let update = Update { settings, number: i as u64 + 1, factor: 0.5 };
                adamw(cpu, &update, &mut p, g, &mut first, &mut second);
            }
            [p, first, second].concat()
        });
        let (mut p, mut first, mut second) = (wide(&start), vec![0.0; len], vec![0.0; len]);
        for (step, g) in (1..).zip(&gradients) {
            for i in 0..len {
                let g = 0.5 * f64::from(g[i]);
                first[i] = 0.9 * first[i] + 0.1 * g;
                second[i] = 0.999 * second[i] + 0.001 * g * g;
                let (m, v): (f64, f64) =
                    (first[i] / (1.0 - 0.9f64.powi(step)), second[i] / (1.0 - 0.999f64.powi(step)));
                p[i] = p[i] * (1.0 - 1e-2 * 0.1) - 1e-2 * m / (v.sqrt() + 1e-8);
            }
        }
        assert_close(&found, &[p, first, second].concat(), 1e-6, &format!("{len} parameters"));
    }
}

#[test]
fn a_sum_of_squares_is_summed_in_f64() {
    for len in [0, 1, 33, 100_003] {
        let x = Numbers::new(len as u64).many(len);
        let exact: f64 = wide(&x).iter().map(|x| x * x).sum();
        let found = same_on_all_devices(|cpu| {
            let sum = sum_of_squares(cpu, &x);
            assert!((sum - exact).abs() <= 1e-12 * exact);
            let bits = sum.to_bits();
            vec![f32::from_bits(bits as u32), f32::from_bits((bits >> 32) as u32)]
        });
        assert_eq!(found.len(), 2);
    }
}
