//! Kernels that are right, changed in one place: with checks, each change is noticed, as a finding or as a wrong result.
#![allow(unsafe_code, reason = "kernels are launched")]

mod common;

use common::{
    CudaFunction, Gpu, PushKernelArg,
    attention::{self, CASES},
    changed_source, compile, shape,
};

/// A file, the occurrence of a text in it, and what takes its place.
struct Mutant {
    name: &'static str,
    file: &'static str,
    occurrence: usize,
    from: &'static str,
    to: &'static str,
}

const fn mutant(
    name: &'static str,
    file: &'static str,
    occurrence: usize,
    from: &'static str,
    to: &'static str,
) -> Mutant {
    Mutant { name, file, occurrence, from, to }
}

const ATTENTION: [Mutant; 12] = [
    mutant("no barrier after the keys", "attention.cu", 0, "__syncthreads();", ""),
    mutant("no barrier after the values", "attention.cu", 1, "__syncthreads();", ""),
    mutant("keys not waited for", "attention.cu", 0, "copy_async_wait<1>()", "copy_async_wait<2>()"),
    mutant("values not waited for", "attention.cu", 1, "copy_async_wait<1>()", "copy_async_wait<2>()"),
    mutant("a commit missing", "attention.cu", 2, "copy_async_commit();", ""),
    mutant("operands swapped", "attention.cu", 0, "qf[d], b[0], b[1])", "qf[d], b[1], b[0])"),
    mutant("a wrong map of lanes", "attention.cu", 0, "n + lane / 16))", "n + lane / 8 % 2))"),
    mutant("one key too many", "attention.cu", 0, "i % 2 < left", "i % 2 <= left"),
    mutant(
        "rows past the end read",
        "attention.cu",
        0,
        "const bool there = first + r < tokens;",
        "const bool there = true;",
    ),
    mutant("rows past the end written", "attention.cu", 0, "if (row >= tokens) continue;", ""),
    mutant("a sum that is not scaled", "attention.cu", 0, "sum[h] *= shrink;", ""),
    mutant(
        "a maximum over two lanes",
        "attention.cu",
        0,
        "__shfl_xor_sync(0xffffffffu, high[h], 2)",
        "high[h]",
    ),
];

const REDUCTION: [Mutant; 4] = [
    mutant("scratch read too early", "device.cuh", 0, "  __syncthreads();\n", ""),
    mutant("scratch free too early", "device.cuh", 1, "  __syncthreads();\n", ""),
    mutant("a step of the sum missing", "device.cuh", 0, "offset > 0", "offset > 1"),
    mutant("a row too far", "correct.cu", 1, "i < width; i += blockDim.x", "i <= width; i += blockDim.x"),
];

impl Mutant {
    fn kernel(&self, gpu: &Gpu, file: &str, name: &str) -> CudaFunction {
        let text = changed_source(file, &|changed, text| {
            if changed != self.file {
                return text;
            }
            let (at, _) = text.match_indices(self.from).nth(self.occurrence).expect("the text to change");
            format!("{}{}{}", &text[..at], self.to, &text[at + self.from.len()..])
        });
        let ptx = compile(file, &text, "compute_80").expect("it compiles");
        gpu.context.load_module(ptx).expect("a module").load_function(name).expect("a kernel")
    }
}

/// The mutant that this process is about.
const WHICH: &str = "MUTANT";

fn which(mutants: &'static [Mutant]) -> &'static Mutant {
    let number: usize = std::env::var(WHICH).expect("a number").parse().expect("a number");
    &mutants[number]
}

fn changed_attention() {
    let gpu = Gpu::device();
    let mutant = which(&ATTENTION);
    let kernels = CASES.map(|case| (case, mutant.kernel(&gpu, "attention.cu", case.name)));
    let right = kernels
        .iter()
        .all(|(case, kernel)| attention::apart(&gpu, *case, kernel).is_ok_and(attention::right));
    eprintln!("{}", if right { "not noticed" } else { "noticed" });
}

/// Two sums with one scratch: each row is summed twice, so that the scratch is used again.
fn changed_reduction() {
    let gpu = Gpu::device();
    let (rows, width) = (3usize, 300);
    let kernel = which(&REDUCTION).kernel(&gpu, "correct.cu", "row_sums_twice");
    let stream = gpu.stream();
    let x = stream.clone_htod(&vec![1.0f32; rows * width]).expect("memory");
    let mut out = stream.alloc_zeros::<f32>(2 * rows).expect("memory");
    let count = width as i32;
    let mut builder = stream.launch_builder(&kernel);
    builder.arg(&x).arg(&mut out).arg(&count);
    // SAFETY: the parameters are the kernel's; the stand-in stops what goes too far.
    let launched = unsafe { builder.launch(shape(rows as u32, 256, 256)) }.is_ok();
    let got = stream.clone_dtoh(&out);
    let wanted = 2.0 * width as f32;
    let right = launched && got.is_ok_and(|got| got.iter().all(|value| *value == wanted));
    eprintln!("{}", if right { "not noticed" } else { "noticed" });
}

#[test]
#[ignore = "other tests start it"]
fn program_of_another_test() {
    common::child(&[("attention", changed_attention), ("reduction", changed_reduction)]);
}

#[track_caller]
fn noticed(program: &str, mutants: &[Mutant]) {
    if !common::standin() {
        return;
    }
    for (number, mutant) in mutants.iter().enumerate() {
        let ended = common::run(program, &[("STANDIN_CHECK", "1"), (WHICH, &number.to_string())]);
        let noticed = ended.success && ended.text.lines().any(|line| line == "noticed");
        assert!(noticed, "{}:\n{}", mutant.name, ended.text);
    }
}

#[test]
fn each_change_of_attention_is_noticed() {
    noticed("attention", &ATTENTION);
}
#[test]
fn each_change_of_a_reduction_is_noticed() {
    noticed("reduction", &REDUCTION);
}
