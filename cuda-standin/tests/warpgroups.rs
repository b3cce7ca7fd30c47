//! Products of a warpgroup (`wgmma`) are products of matrices, and what is done wrong with them is noticed.
#![allow(unsafe_code, reason = "kernels are launched")]

mod common;

use common::{Gpu, LaunchConfig, PushKernelArg, bf16, changed_source, compile, difference, noise, sys, wide};

const FILE: &str = "wgmma.cu";
const WIDTH: usize = 128;
const ROWS: usize = 64;
const COLUMNS: usize = 96;

/// A file, a text in it, what takes its place, and what is said without checks; nothing where the numbers are wrong.
struct Mutant(&'static str, &'static str, &'static str, &'static str);

const MUTANTS: [Mutant; 10] = [
    Mutant(FILE, "  wgmma_publish();\n", "", "without fence.proxy.async"),
    Mutant(FILE, "  wgmma_begin();\n", "", "wgmma without wgmma.fence"),
    Mutant(FILE, "  wgmma_wait<0>();  // for the scores\n", "", ""),
    Mutant(FILE, "  wgmma_wait<0>();  // for the sums\n", "", ""),
    Mutant("wgmma.cuh", "(c % 8 ^ (r & 7)) * 16;", "c % 8 * 16;", ""),
    Mutant(
        "wgmma.cuh",
        "static_cast<descriptor>(1) << 62",
        "static_cast<descriptor>(2) << 62",
        "without the 128-byte swizzle",
    ),
    Mutant("wgmma.cuh", "(EIGHT_ROWS >> 4) << 32", "(EIGHT_ROWS >> 3) << 32", ""),
    Mutant("wgmma.cuh", "from + (0u - shared_address(from)) % EIGHT_ROWS", "from", ""),
    Mutant("wgmma.cuh", "describe(b, N * ROW_BYTES)", "describe(b, 16)", ""),
    Mutant("wgmma.cuh", "wgmma<true>(acc", "wgmma<false>(acc", ""),
];

/// Where a GPU has these products and the text is changed as asked, whether the results are right; `Err` with what went wrong.
fn products(change: &dyn Fn(&str, String) -> String) -> Result<bool, String> {
    let gpu = Gpu::device();
    let stream = gpu.stream();
    let ptx = compile(FILE, &changed_source(FILE, change), "sm_90a")?;
    let module = gpu.context.load_module(ptx).map_err(|e| format!("{e:?}"))?;
    let kernel = module.load_function("wgmma_products").map_err(|e| format!("{e:?}"))?;
    let (a, b) = (noise(ROWS * WIDTH, 1), noise(COLUMNS * WIDTH, 2));
    let [da, db] = [&a, &b].map(|values| stream.clone_htod(values).expect("memory"));
    let mut scores = stream.alloc_zeros::<f32>(ROWS * COLUMNS).expect("memory");
    let mut sums = stream.alloc_zeros::<f32>(ROWS * WIDTH).expect("memory");
    let shared = ((ROWS + COLUMNS) * WIDTH * 2 + 1024) as u32;
    let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    kernel.set_attribute(attribute, shared as i32).expect("shared memory");
    let shape = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (128, 1, 1), shared_mem_bytes: shared };
    let mut builder = stream.launch_builder(&kernel);
    builder.arg(&da).arg(&db).arg(&mut scores).arg(&mut sums);
    // SAFETY: the parameters are the kernel's; the stand-in stops what goes too far.
    unsafe { builder.launch(shape) }.map_err(|e| format!("{e:?}"))?;
    let [scores, sums] = [&scores, &sums].map(|values| stream.clone_dtoh(values));
    let (scores, sums) = (scores.map_err(|e| format!("{e:?}"))?, sums.map_err(|e| format!("{e:?}"))?);
    let (a, b) = (wide(&a), wide(&b));
    let product = |i: usize, j: usize| (0..WIDTH).map(|k| a[i * WIDTH + k] * b[j * WIDTH + k]).sum::<f64>();
    let wanted: Vec<f64> = (0..ROWS * COLUMNS).map(|at| product(at / COLUMNS, at % COLUMNS)).collect();
    let weights: Vec<f64> = scores.iter().map(|score| f64::from(bf16::from_f32(*score).to_f32())).collect();
    let sum =
        |i: usize, n: usize| (0..COLUMNS).map(|k| weights[i * COLUMNS + k] * b[k * WIDTH + n]).sum::<f64>();
    let wanted_sums: Vec<f64> = (0..ROWS * WIDTH).map(|at| sum(at / WIDTH, at % WIDTH)).collect();
    Ok(difference(scores.into_iter().map(f64::from), &wanted) < 1e-5
        && difference(sums.into_iter().map(f64::from), &wanted_sums) < 1e-5)
}

/// The mutant that a process is about.
const WHICH: &str = "MUTANT";

fn right() {
    assert_eq!(products(&|_, text| text), Ok(true));
}

fn changed() {
    let number: usize = std::env::var(WHICH).expect("a number").parse().expect("a number");
    let Mutant(file, from, to, _) = MUTANTS[number];
    let change = |name: &str, text: String| {
        assert!(name != file || text.contains(from), "{file}: no {from}");
        if name == file { text.replacen(from, to, 1) } else { text }
    };
    match products(&change) {
        Ok(true) => eprintln!("not noticed"),
        other => eprintln!("noticed: {other:?}"),
    }
}

#[test]
#[ignore = "other tests start it"]
fn program_of_another_test() {
    common::child(&[("right", right), ("changed", changed)]);
}

#[test]
fn products_of_a_warpgroup_are_products_of_matrices() {
    if !common::standin() {
        return;
    }
    for seed in ["0", "1", "2", "3"] {
        for check in ["0", "1"] {
            let ended = common::run("right", &[("STANDIN_SEED", seed), ("STANDIN_CHECK", check)]);
            assert!(
                ended.success && !ended.text.contains("standin:"),
                "seed {seed}, checks {check}:\n{}",
                ended.text
            );
        }
    }
}

#[test]
fn what_is_done_wrong_with_products_of_a_warpgroup_is_noticed() {
    if !common::standin() {
        return;
    }
    for (number, mutant) in MUTANTS.iter().enumerate() {
        let ended = common::run("changed", &[(WHICH, &number.to_string())]);
        let Mutant(file, from, _, said) = mutant;
        let noticed = ended.success && ended.text.contains("\nnoticed") && ended.text.contains(said);
        assert!(noticed, "{file}, {from}:\n{}", ended.text);
    }
}
