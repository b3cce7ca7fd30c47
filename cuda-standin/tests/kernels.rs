//! Kernels that are right give right results, in every order of threads and with checks.
#![allow(unsafe_code, reason = "kernels are launched")]

mod common;

use common::{
    CudaSlice, Gpu, LaunchConfig, PushKernelArg,
    attention::{self, CASES},
    bf16, difference, noise, shape, wide,
};
use cudarc::driver::{DeviceRepr, ValidAsZeroBits};

/// Every test of this file that needs a device, for the orders in which the stand-in can run it.
const PROGRAMS: &[(&str, fn())] = &[
    ("gated_sum", gated_sum),
    ("row_sums", row_sums),
    ("warp_sums", warp_sums),
    ("positions", positions),
    ("lanes", lanes),
    ("functions", functions),
    ("histogram", histogram),
    ("lane_maps", lane_maps),
    ("one_mma", one_mma),
    ("attention", attention),
];

#[test]
#[ignore = "other tests start it"]
fn program_of_another_test() {
    common::child(PROGRAMS);
}

/// On a device once; on the stand-in also in three orders of threads, and with checks.
#[track_caller]
fn right(program: &str) {
    if !common::driver() {
        return;
    }
    PROGRAMS.iter().find(|(name, _)| *name == program).expect("a program").1();
    if !common::standin() {
        return;
    }
    let mut bits: Option<Vec<String>> = None;
    for settings in [
        &[("STANDIN_SEED", "1"), ("STANDIN_ORDER", "latest")][..],
        &[("STANDIN_SEED", "2"), ("STANDIN_THREADS", "1")],
        &[("STANDIN_CHECK", "1")],
        &[("STANDIN_CHECK", "1"), ("STANDIN_SEED", "1")],
    ] {
        let ended = common::run(program, settings);
        assert!(
            ended.success && !ended.text.contains("standin:"),
            "{program}, {settings:?}:\n{}",
            ended.text
        );
        // The same bits in every order, with checks and without.
        let now: Vec<String> =
            ended.text.lines().filter(|line| line.starts_with("bits")).map(str::to_owned).collect();
        assert_eq!(*bits.get_or_insert(now.clone()), now, "{program}, {settings:?}");
    }
}

#[test]
fn an_elementwise_kernel_is_right() {
    right("gated_sum");
}
#[test]
fn a_reduction_of_blocks_is_right() {
    right("row_sums");
}
#[test]
fn barriers_of_a_warp_are_enough_for_the_warp() {
    right("warp_sums");
}
#[test]
fn threads_know_where_they_are() {
    right("positions");
}
#[test]
fn shuffles_and_votes_are_right() {
    right("lanes");
}
#[test]
fn mathematics_is_right() {
    right("functions");
}
#[test]
fn atomics_on_whole_numbers_are_right() {
    right("histogram");
}
#[test]
fn the_lane_maps_of_ldmatrix_are_the_manuals() {
    right("lane_maps");
}
#[test]
fn one_mma_is_a_product_of_matrices() {
    right("one_mma");
}
#[test]
fn attention_by_mma_is_right() {
    right("attention");
}

/// Runs a kernel of `correct.cu` that has one list to read and one to write, and then perhaps a number.
fn map<I: DeviceRepr, O: DeviceRepr + ValidAsZeroBits + Clone>(
    name: &str,
    input: &[I],
    outputs: usize,
    number: Option<i32>,
    shape: LaunchConfig,
) -> Vec<O> {
    let gpu = Gpu::device();
    let stream = gpu.stream();
    let x = stream.clone_htod(input).expect("memory");
    let mut out: CudaSlice<O> = stream.alloc_zeros(outputs).expect("memory");
    let kernel = gpu.kernel("correct.cu", name);
    let mut builder = stream.launch_builder(&kernel);
    builder.arg(&x).arg(&mut out);
    if let Some(number) = &number {
        builder.arg(number);
    }
    // SAFETY: the parameters are the kernel's.
    unsafe { builder.launch(shape) }.expect("a launch");
    let values = stream.clone_dtoh(&out).expect("a copy");
    stream.synchronize().expect("no failure");
    values
}

fn gated_sum() {
    let gpu = Gpu::device();
    let stream = gpu.stream();
    let pairs = 3000;
    let [x, gate, y] = [1, 2, 3].map(|seed| noise(2 * pairs, seed));
    let [dx, dgate, dy] = [&x, &gate, &y].map(|values| stream.clone_htod(values).expect("memory"));
    let mut out = stream.alloc_zeros::<bf16>(2 * pairs).expect("memory");
    let kernel = gpu.kernel("correct.cu", "gated_sum");
    let mut builder = stream.launch_builder(&kernel);
    let count = pairs as i32;
    builder.arg(&dx).arg(&dgate).arg(&dy).arg(&mut out).arg(&count);
    // SAFETY: the parameters are the kernel's.
    unsafe { builder.launch(shape(count.unsigned_abs().div_ceil(256), 256, 0)) }.expect("a launch");
    let got = stream.clone_dtoh(&out).expect("a copy");
    let (x, gate, y) = (wide(&x), wide(&gate), wide(&y));
    let wanted: Vec<f64> = (0..2 * pairs).map(|i| x[i] + gate[i] * y[i]).collect();
    assert!(difference(wide(&got), &wanted) < 4e-3);
}

fn row_sums() {
    let (rows, width) = (13, 777);
    let x: Vec<f32> = noise(rows * width, 4).iter().map(|value| value.to_f32()).collect();
    let got: Vec<f32> = map("row_sums", &x, 2 * rows, Some(width as i32), shape(rows as u32, 256, 256));
    let sums = |row: &[f32], of: fn(f64) -> f64| row.iter().map(|value| of(f64::from(*value))).sum::<f64>();
    let wanted: Vec<f64> = x
        .chunks(width)
        .flat_map(|row| [sums(row, |value| value), sums(row, |value| value * value)])
        .collect();
    assert!(difference(got.into_iter().map(f64::from), &wanted) < 1e-6);
}

fn warp_sums() {
    let x: Vec<i32> = (0..128).map(|index: i32| index * index % 97).collect();
    let got: Vec<i32> = map("warp_sums", &x, 128, None, shape(1, 128, 512));
    let wanted: Vec<i32> = x.chunks(32).flat_map(|warp| [warp.iter().sum::<i32>(); 32]).collect();
    assert_eq!(got, wanted);
}

fn positions() {
    let gpu = Gpu::device();
    let stream = gpu.stream();
    let (grid, block) = ((3, 2, 4), (4, 2, 3));
    let (blocks, threads) = (grid.0 * grid.1 * grid.2, block.0 * block.1 * block.2);
    let mut out = stream.alloc_zeros::<u32>((blocks * threads * 4) as usize).expect("memory");
    let kernel = gpu.kernel("correct.cu", "positions");
    let shape = LaunchConfig { grid_dim: grid, block_dim: block, shared_mem_bytes: 0 };
    // SAFETY: the parameter is the kernel's.
    unsafe { stream.launch_builder(&kernel).arg(&mut out).launch(shape) }.expect("a launch");
    let got = stream.clone_dtoh(&out).expect("a copy");
    for (place, value) in got.chunks(4).enumerate() {
        let (b, t) = (place as u32 / threads, place as u32 % threads);
        let wanted = [
            (b % grid.0) | ((t % block.0) << 16),
            (b / grid.0 % grid.1) | ((t / block.0 % block.1) << 16),
            (b / grid.0 / grid.1) | ((t / block.0 / block.1) << 16),
            b,
        ];
        assert_eq!(value, wanted);
    }
}

fn lanes() {
    let gpu = Gpu::device();
    let stream = gpu.stream();
    let mut out = stream.alloc_zeros::<f64>(32 * 12).expect("memory");
    let kernel = gpu.kernel("correct.cu", "lanes");
    // SAFETY: the parameter is the kernel's.
    unsafe { stream.launch_builder(&kernel).arg(&mut out).launch(shape(1, 32, 0)) }.expect("a launch");
    let got = stream.clone_dtoh(&out).expect("a copy");
    for (lane, values) in got.chunks(12).enumerate() {
        let lane = lane as u32;
        let thirds = (0..32).filter(|other| other % 3 == 0).fold(0u32, |bits, other| bits | 1 << other);
        let wanted = [
            f64::from(lane ^ 5) + 0.5,
            f64::from(if lane + 3 < 32 { lane + 3 } else { lane }) - 40.0,
            f64::from(if lane >= 2 { lane - 2 } else { lane }),
            7e10,
            f64::from(lane / 8 * 8 + 1),
            f64::from(thirds),
            1.0,
            0.0,
            if lane < 8 { f64::from(lane ^ 1) } else { 0.0 },
            496.0,
            f64::from(if lane % 8 + 4 < 8 { lane + 4 } else { lane }),
            32.0,
        ];
        assert_eq!(values, wanted, "lane {lane}");
    }
}

#[allow(clippy::disallowed_methods, reason = "a reference with a tolerance, not bits")]
fn functions() {
    let x: Vec<f32> = noise(200, 5).iter().map(|value| 3.0 * value.to_f32()).collect();
    let got: Vec<f32> =
        map("functions", &x, 16 * x.len(), Some(x.len() as i32), shape((x.len() as u32).div_ceil(64), 64, 0));
    for (value, got) in x.iter().zip(got.chunks(16)) {
        let v = f64::from(*value);
        let positive = v.abs() + 0.125;
        let wanted = [
            v.exp(),
            positive.ln(),
            v.tanh(),
            libm::erf(v),
            positive.sqrt(),
            1.0 / positive.sqrt(),
            v.exp2(),
            positive.log2(),
            v.sin(),
            v.cos(),
            v.exp(),
            v * v + 1.0,
            v.min(0.5) + v.max(-0.5),
            1.0 / positive,
            v.exp2(),
            (v * 8.0).trunc().min(3.0) + 2.0,
        ];
        for (function, (got, wanted)) in got.iter().zip(wanted).enumerate() {
            let apart = (f64::from(*got) - wanted).abs() / wanted.abs().max(1.0);
            assert!(apart < 2e-6, "function {function} of {v}: {got}, not {wanted}");
        }
    }
}

fn histogram() {
    let gpu = Gpu::device();
    let stream = gpu.stream();
    let values: Vec<i32> = (0..5000).map(|index: i32| index * 7919 % 1013).collect();
    let x = stream.clone_htod(&values).expect("memory");
    let mut bins = stream.alloc_zeros::<i32>(10).expect("memory");
    let mut largest = stream.alloc_zeros::<u32>(1).expect("memory");
    let kernel = gpu.kernel("correct.cu", "histogram");
    let count = values.len() as i32;
    let mut builder = stream.launch_builder(&kernel);
    builder.arg(&x).arg(&mut bins).arg(&mut largest).arg(&count);
    // SAFETY: the parameters are the kernel's.
    unsafe { builder.launch(shape(count.unsigned_abs().div_ceil(128), 128, 0)) }.expect("a launch");
    let got = stream.clone_dtoh(&bins).expect("a copy");
    let wanted: Vec<i32> =
        (0..10).map(|bin| values.iter().filter(|value| *value % 10 == bin).count() as i32).collect();
    assert_eq!(got, wanted);
    assert_eq!(
        stream.clone_dtoh(&largest).expect("a copy")[0].cast_signed(),
        *values.iter().max().expect("values")
    );
}

fn lane_maps() {
    let x: Vec<u16> = (0..256).collect();
    let got: Vec<u32> = map("lane_maps", &x, 32 * 8, None, shape(1, 32, 512));
    for (lane, values) in got.chunks(8).enumerate() {
        // Matrix m of the four begins at row m % 2 * 8 and column m / 2 * 8. A lane has two values of a row; transposed, of a column.
        let (row, col) = (lane / 4, lane % 4 * 2);
        for matrix in 0..4 {
            let at = |row: usize, col: usize| x[(matrix % 2 * 8 + row) * 16 + matrix / 2 * 8 + col];
            let two = |lo: u16, hi: u16| u32::from(lo) | u32::from(hi) << 16;
            assert_eq!(values[matrix], two(at(row, col), at(row, col + 1)), "lane {lane}, matrix {matrix}");
            assert_eq!(
                values[4 + matrix],
                two(at(col, row), at(col + 1, row)),
                "lane {lane}, matrix {matrix}"
            );
        }
    }
}

fn one_mma() {
    let gpu = Gpu::device();
    let stream = gpu.stream();
    let (a, b) = (noise(16 * 16, 6), noise(16 * 8, 7));
    let (da, db) = (stream.clone_htod(&a).expect("memory"), stream.clone_htod(&b).expect("memory"));
    let mut c = stream.alloc_zeros::<f32>(16 * 8).expect("memory");
    let kernel = gpu.kernel("correct.cu", "one_mma");
    let mut builder = stream.launch_builder(&kernel);
    builder.arg(&da).arg(&db).arg(&mut c);
    // SAFETY: the parameters are the kernel's.
    unsafe { builder.launch(shape(1, 32, 0)) }.expect("a launch");
    let got = stream.clone_dtoh(&c).expect("a copy");
    let (a, b) = (wide(&a), wide(&b));
    let wanted: Vec<f64> =
        (0..128).map(|i| (0..16).map(|k| a[i / 8 * 16 + k] * b[k * 8 + i % 8]).sum()).collect();
    assert!(difference(got.into_iter().map(f64::from), &wanted) < 1e-6);
}

fn attention() {
    let gpu = Gpu::device();
    for case in CASES {
        let apart = attention::apart(&gpu, case, &gpu.kernel("attention.cu", case.name)).expect("no failure");
        assert!(attention::right(apart), "{case:?}: {apart:?}");
        eprintln!("bits of {case:?}: {:x}", apart.bits);
    }
}

#[test]
fn a_product_and_a_sum_are_two_roundings_and_fmaf_is_one() {
    if !common::driver() {
        return;
    }
    // 1 - (1 - 2^-26): exact with one rounding, 0 where the product was rounded before.
    let small = 1.0 / f32::powi(2.0, 13);
    let x = [1.0 + small, 1.0 - small, -1.0];
    let got: Vec<f32> = map("roundings", &x, 2, None, shape(1, 1, 0));
    assert_eq!(got, [0.0, -small * small]);
}
