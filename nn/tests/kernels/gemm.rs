//! Matrix products: correctness at awkward sizes, and bits that depend only on their row and column.

use half::bf16;
use prefgraph_nn::{
    cpu::{
        Cpu, Extra, Gemm, GemmTn, Left, Matrix, Packed, Pictures, Precision, Values, gemm, gemm_tn, windows,
    },
    device::ConvWindow,
};

use crate::{
    Numbers, assert_close, assert_same_bits,
    cases::{Picture, SMALL},
    devices, same_on_all_devices,
};

/// M, K, N, R; one without a summed axis.
fn sizes() -> impl Iterator<Item = (usize, usize, usize, usize)> {
    SMALL.products.iter().map(|p| (p.m, p.k, p.n, p.r)).chain([(49, 0, 20, 2)])
}

struct Case {
    m: usize,
    k: usize,
    n: usize,
    r: usize,
    x: Vec<f32>,
    x_stride: usize,
    weight: Vec<f32>,
    h: Vec<f32>,
    up: Vec<f32>,
    bias: Vec<f32>,
    out: Vec<f32>,
    out_stride: usize,
}

impl Case {
    fn new((m, k, n, r): (usize, usize, usize, usize)) -> Self {
        let mut numbers = Numbers::new((m * 1_000_003 + k * 1009 + n) as u64);
        let (x_stride, out_stride) = (k + m % 3, n + m % 4);
        Self {
            m,
            k,
            n,
            r,
            x: numbers.many(m * x_stride),
            x_stride,
            weight: numbers.many(n * k),
            h: numbers.many(m * r),
            up: numbers.many(n * r),
            bias: numbers.many(n),
            out: numbers.many(m * out_stride),
            out_stride,
        }
    }

    fn run(&self, cpu: &Cpu, with_bias: bool, with_extra: bool, accumulate: bool) -> Vec<f32> {
        self.run_in(cpu, Precision::F32, with_bias, with_extra, accumulate)
    }

    fn run_in(
        &self,
        cpu: &Cpu,
        precision: Precision,
        with_bias: bool,
        with_extra: bool,
        accumulate: bool,
    ) -> Vec<f32> {
        let weight = Packed::from_weight(cpu, precision, &Matrix::of(&self.weight, self.n, self.k));
        let up = Packed::from_weight(cpu, precision, &Matrix::of(&self.up, self.n, self.r));
        let extra = with_extra.then_some((Left::Rows(&self.h, self.r), &up));
        self.product(cpu, &weight, extra, with_bias.then_some(&self.bias[..]), accumulate)
    }

    fn product(
        &self,
        cpu: &Cpu,
        weight: &Packed,
        extra: Option<Extra<'_>>,
        bias: Option<&[f32]>,
        accumulate: bool,
    ) -> Vec<f32> {
        let mut out = self.out.clone();
        gemm(
            cpu,
            Gemm {
                m: self.m,
                x: Left::Rows(&self.x, self.x_stride),
                weight,
                extra,
                bias,
                accumulate,
                out: &mut out,
                out_stride: self.out_stride,
            },
        );
        out
    }

    fn expected(&self, with_bias: bool, with_extra: bool, accumulate: bool) -> Vec<f64> {
        let mut out: Vec<f64> = self.out.iter().map(|x| f64::from(*x)).collect();
        for i in 0..self.m {
            for j in 0..self.n {
                let sum = &mut out[i * self.out_stride + j];
                if !accumulate {
                    *sum = if with_bias { f64::from(self.bias[j]) } else { 0.0 };
                }
                for p in 0..self.k {
                    *sum += f64::from(self.x[i * self.x_stride + p]) * f64::from(self.weight[j * self.k + p]);
                }
                for p in 0..self.r * usize::from(with_extra) {
                    *sum += f64::from(self.h[i * self.r + p]) * f64::from(self.up[j * self.r + p]);
                }
            }
        }
        out
    }
}

#[test]
fn a_product_equals_loops_in_f64_with_the_same_bits_on_all_devices() {
    for size in sizes() {
        let case = Case::new(size);
        for (bias, extra, accumulate) in
            [(false, false, false), (true, false, false), (true, true, false), (false, true, true)]
        {
            let found = same_on_all_devices(|cpu| case.run(cpu, bias, extra, accumulate));
            assert_close(&found, &case.expected(bias, extra, accumulate), 2e-6, &format!("{size:?}"));
        }
    }
}

/// The case with all operands of products rounded to bf16.
fn rounded(mut case: Case) -> Case {
    for values in [&mut case.x, &mut case.weight, &mut case.h, &mut case.up] {
        values.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32());
    }
    case
}

#[test]
fn a_product_in_bf16_is_the_product_of_rounded_operands_with_the_same_bits_on_all_devices() {
    for size in sizes() {
        let case = Case::new(size);
        for (bias, extra, accumulate) in [(false, false, false), (true, true, false), (false, true, true)] {
            let found = same_on_all_devices(|cpu| case.run_in(cpu, Precision::Bf16, bias, extra, accumulate));
            let expected = rounded(Case::new(size)).expected(bias, extra, accumulate);
            assert_close(&found, &expected, 2e-6, &format!("{size:?}"));
        }
    }
}

#[test]
fn a_matrix_of_a_file_packs_as_the_values_that_it_holds_in_one_run_or_in_several() {
    let case = rounded(Case::new((10, 37, 45, 0)));
    let wide: Vec<u8> = case.weight.iter().flat_map(|v| v.to_le_bytes()).collect();
    let brain: Vec<u8> = case.weight.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
    let (one, two) = brain.split_at(2 * 37 * 11);
    let sources = [
        vec![Values::F32Bytes(&wide)],
        vec![Values::Bf16Bytes(&brain)],
        vec![Values::Bf16Bytes(one), Values::Bf16Bytes(two)],
    ];
    for cpu in devices() {
        for precision in [Precision::F32, Precision::Bf16] {
            let expected = case.run_in(&cpu, precision, false, false, false);
            for source in &sources {
                let weight =
                    Packed::from_weight(&cpu, precision, &Matrix::new(source.clone(), case.n, case.k));
                let out = case.product(&cpu, &weight, None, None, false);
                assert_same_bits(&expected, &out, "a matrix of a file");
            }
        }
    }
}

#[test]
fn a_matrix_and_its_transpose_pack_to_the_same_product() {
    let case = Case::new((10, 37, 45, 0));
    let transposed: Vec<f32> =
        (0..case.k * case.n).map(|i| case.weight[i % case.n * case.k + i / case.n]).collect();
    for (cpu, precision) in
        devices().into_iter().flat_map(|c| [(c.clone(), Precision::F32), (c, Precision::Bf16)])
    {
        let weight = Packed::from_matrix(&cpu, precision, &Matrix::of(&transposed, case.k, case.n));
        assert!(weight.bytes() >= 2 * case.k * case.n);
        let out = case.product(&cpu, &weight, None, None, false);
        assert_same_bits(&case.run_in(&cpu, precision, false, false, false), &out, "a packed matrix");
    }
}

#[test]
fn an_extra_product_of_zero_leaves_the_bits_of_the_base_product() {
    for size in sizes().filter(|s| s.3 > 0) {
        let mut case = Case::new(size);
        case.up.fill(0.0);
        for cpu in devices() {
            let without = case.run(&cpu, true, false, false);
            assert_same_bits(&without, &case.run(&cpu, true, true, false), &format!("{size:?}"));
        }
    }
}

#[test]
fn a_row_has_the_same_bits_whatever_the_other_rows_and_its_place() {
    for size in [(61, 100, 129, 4), (97, 40, 31, 64), (200, 300, 50, 16)] {
        let case = Case::new(size);
        for cpu in devices() {
            let all = case.run(&cpu, true, true, false);
            for (first, rows) in [(0, 1), (1, 1), (3, 5), (7, 40), (60, 1), (13, 48)] {
                let mut part = Case::new(size);
                part.m = rows;
                part.x.drain(..first * part.x_stride);
                part.h.drain(..first * part.r);
                let found = part.run(&cpu, true, true, false);
                for i in 0..rows {
                    let (row, whole) = (i * case.out_stride, (first + i) * case.out_stride);
                    assert_same_bits(&all[whole..whole + case.n], &found[row..row + case.n], "a row");
                }
            }
        }
    }
}

#[test]
fn a_sum_over_rows_equals_loops_in_f64_with_the_same_bits_on_all_devices() {
    for (m, p, q) in SMALL.factor_gradients.iter().copied().chain([(0, 3, 4)]) {
        let mut numbers = Numbers::new((m * 31 + p * 7 + q) as u64);
        let (a_stride, b_stride) = (p + m % 2, q + m % 3);
        let (a, b) = (numbers.many(m * a_stride), numbers.many(m * b_stride));
        let start = numbers.many(p * q);
        for accumulate in [false, true] {
            let found = same_on_all_devices(|cpu| {
                let mut out = start.clone();
                gemm_tn(cpu, GemmTn { m, p, q, a: &a, a_stride, b: &b, b_stride, accumulate, out: &mut out });
                out
            });
            let expected: Vec<f64> = (0..p * q)
                .map(|e| {
                    let start = if accumulate { f64::from(start[e]) } else { 0.0 };
                    (0..m).fold(start, |s, r| {
                        s + f64::from(a[r * a_stride + e / q]) * f64::from(b[r * b_stride + e % q])
                    })
                })
                .collect();
            assert_close(&found, &expected, 3e-6, &format!("{m} rows, {p} by {q}"));
        }
    }
}

#[test]
fn several_callers_share_one_pool() {
    let cpu = Cpu::new(2).expect("threads");
    let case = Case::new((200, 300, 50, 16));
    let alone = case.run(&cpu, true, true, false);
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                for _ in 0..20 {
                    assert_same_bits(&alone, &case.run(&cpu, true, true, false), "a caller among others");
                }
            });
        }
    });
}

#[test]
fn a_product_that_reads_windows_has_the_bits_of_one_with_their_copies() {
    use ConvWindow::{One, Three, ThreeHalving, ThreeHalvingCentred, ThreeOfDoubled};
    // Two pictures; with 70 channels a block of the sum ends inside a pixel, with odd numbers inside a pair, too.
    let more = [(7, 5, 70), (5, 9, 33)].map(|(height, width, channels)| Picture { height, width, channels });
    for &Picture { height, width, channels } in SMALL.pictures.iter().chain(&more) {
        let (size, n) = ((height, width), 37);
        let mut numbers = Numbers::new(channels as u64);
        let (each, bias) = (height * width * channels, numbers.many(n));
        let x = numbers.many(2 * each);
        for window in [One, Three, ThreeOfDoubled, ThreeHalving, ThreeHalvingCentred] {
            let (rows, k) = (window.output(height) * window.output(width), window.side().pow(2) * channels);
            let weight = numbers.many(n * k);
            for (precision, cpu) in
                devices().iter().flat_map(|cpu| [(Precision::F32, cpu), (Precision::Bf16, cpu)])
            {
                let mut copies = vec![0.0; 2 * rows * k];
                for (x, to) in x.chunks(each).zip(copies.chunks_mut(rows * k)) {
                    windows(cpu, window, size, channels, 0..rows, x, to);
                }
                let weight = Packed::from_weight(cpu, precision, &Matrix::of(&weight, n, k));
                let product = |x: Left<'_>| {
                    let mut out = vec![9.0; 2 * rows * n];
                    // As a second product, too, where a result is continued.
                    let call = Gemm {
                        m: 2 * rows,
                        x,
                        weight: &weight,
                        extra: Some((x, &weight)),
                        bias: Some(&bias),
                        accumulate: false,
                        out: &mut out,
                        out_stride: n,
                    };
                    gemm(cpu, call);
                    out
                };
                let read = product(Left::Windows(Pictures { window, size, channels, values: &x }));
                let what = format!("{window:?} of {size:?}, {channels} channels, {precision:?}");
                assert_same_bits(&product(Left::Rows(&copies, k)), &read, &what);
            }
        }
    }
}
