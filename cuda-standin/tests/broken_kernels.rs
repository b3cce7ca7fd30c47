//! Kernels that are broken on purpose: the checks notice each, and say what it is.
#![allow(unsafe_code, reason = "kernels are launched")]

mod common;

use common::{CudaStream, Gpu, LaunchConfig, PushKernelArg, shape};
use std::sync::Arc;

const VALUES: usize = 1000;

/// Launches a kernel that takes `x`, where it wants one, and `out`; then waits.
fn launch(name: &str, input: Option<bool>, shape: LaunchConfig) {
    let gpu = Gpu::device();
    let stream = gpu.stream();
    let kernel = gpu.kernel("broken.cu", name);
    let mut out = stream.clone_htod(&vec![0.0f32; VALUES]).expect("memory");
    let x = input.map(|written| memory(&stream, written));
    let mut builder = stream.launch_builder(&kernel);
    if let Some(x) = &x {
        builder.arg(x);
    }
    builder.arg(&mut out);
    // SAFETY: the kernel is wrong, but not in its parameters; the stand-in stops it.
    let launched = unsafe { builder.launch(shape) };
    tell(launched.map(|_| ()).and_then(|()| stream.synchronize()));
}

fn memory(stream: &Arc<CudaStream>, written: bool) -> common::CudaSlice<f32> {
    if written {
        stream.clone_htod(&vec![1.0f32; VALUES]).expect("memory")
    } else {
        // SAFETY: that nobody writes it is what the test is about.
        unsafe { stream.alloc::<f32>(VALUES) }.expect("memory")
    }
}

fn tell(end: Result<(), common::DriverError>) {
    match end {
        Ok(()) => eprintln!("ended well"),
        Err(error) => eprintln!("ended with {error:?}"),
    }
}

/// A kernel that takes `x` (or `out`) and a number.
fn launch_with_number(name: &str, input: bool, number: i32, shape: LaunchConfig) {
    let gpu = Gpu::device();
    let stream = gpu.stream();
    let kernel = gpu.kernel("broken.cu", name);
    let x = memory(&stream, true);
    let mut out = memory(&stream, true);
    let mut builder = stream.launch_builder(&kernel);
    if input {
        builder.arg(&x);
    }
    builder.arg(&mut out).arg(&number);
    // SAFETY: as above.
    let launched = unsafe { builder.launch(shape) };
    tell(launched.map(|_| ()).and_then(|()| stream.synchronize()));
}

#[test]
#[ignore = "other tests start it"]
fn program_of_another_test() {
    common::child(&[
        ("missing_barrier", || launch("missing_barrier", Some(true), shape(1, 256, 1024))),
        ("missing_warp_barrier", || launch("missing_warp_barrier", Some(true), shape(1, 32, 128))),
        ("out_of_bounds", || launch_with_number("out_of_bounds", false, VALUES as i32, shape(4, 256, 0))),
        ("shared_out_of_bounds", || launch("shared_out_of_bounds", None, shape(1, 32, 128))),
        ("blocks_collide", || launch("blocks_collide", None, shape(8, 32, 0))),
        ("half_atomic", || launch("half_atomic", None, shape(8, 32, 0))),
        ("unwritten", || launch("unwritten", Some(false), shape(1, 32, 0))),
        ("lost_threads", || launch("lost_threads", None, shape(1, 64, 0))),
        ("stuck_threads", || launch("stuck_threads", None, shape(1, 64, 0))),
        ("divergent_shuffle", || launch("divergent_shuffle", None, shape(1, 32, 0))),
        ("missing_wait", || launch("missing_wait", Some(true), shape(1, 32, 512))),
        ("missing_barrier_after_wait", || {
            launch("missing_barrier_after_wait", Some(true), shape(1, 32, 512))
        }),
        ("misaligned_row", || launch("misaligned_row", None, shape(1, 32, 1024))),
        ("misaligned_vector", || launch("misaligned_vector", None, shape(1, 32, 0))),
        ("wild_pointer", || launch("wild_pointer", None, shape(1, 32, 0))),
        ("stack_overflow", || launch_with_number("stack_overflow", true, 40, shape(1, 64, 0))),
    ]);
}

/// With checks a kernel is noticed in each order of its threads, and the finding says what it is.
#[track_caller]
fn noticed(program: &str, finding: &str) {
    if !common::standin() {
        return;
    }
    for seed in ["0", "1", "2"] {
        let ended = common::run(program, &[("STANDIN_CHECK", "1"), ("STANDIN_SEED", seed)]);
        assert!(ended.text.contains(finding), "{program}, seed {seed}: no `{finding}` in\n{}", ended.text);
        assert!(
            ended.text.contains("ended with"),
            "{program}, seed {seed}: the host was not told\n{}",
            ended.text
        );
    }
}

/// Without checks too.
#[track_caller]
fn noticed_without_checks(program: &str, finding: &str) {
    if common::standin() {
        let ended = common::run(program, &[]);
        assert!(
            ended.text.contains(finding) && ended.text.contains("ended with"),
            "{program}:\n{}",
            ended.text
        );
    }
}

#[test]
fn a_missing_barrier_is_noticed() {
    noticed("missing_barrier", "race in a block");
}
#[test]
fn a_finding_names_the_line_of_the_kernel() {
    if common::standin() {
        let line = 1 + include_str!("kernels/broken.cu")
            .lines()
            .position(|line| line.contains("threadIdx.x ^ 128"))
            .expect("the line");
        noticed("missing_barrier", &format!("missing_barrier at broken.cu:{line}"));
    }
}
#[test]
fn a_missing_barrier_of_a_warp_is_noticed() {
    noticed("missing_warp_barrier", "race in a block");
}
#[test]
fn a_write_out_of_bounds_is_noticed() {
    noticed("out_of_bounds", "write out of bounds in out_of_bounds");
}
#[test]
fn a_write_past_the_shared_memory_is_noticed() {
    noticed("shared_out_of_bounds", "write out of bounds in shared_out_of_bounds");
}
#[test]
fn blocks_that_collide_are_noticed() {
    noticed("blocks_collide", "race between blocks");
}
#[test]
fn a_plain_access_among_atomic_ones_is_noticed() {
    noticed("half_atomic", "race between blocks");
}
#[test]
fn a_read_of_unwritten_memory_is_noticed() {
    noticed("unwritten", "read of memory never written in unwritten");
}
#[test]
fn threads_that_end_before_a_barrier_are_noticed() {
    noticed("lost_threads", "__syncthreads that threads which have ended did not reach");
}
#[test]
fn threads_that_wait_for_each_other_are_noticed() {
    noticed("stuck_threads", "threads wait for each other");
    noticed_without_checks("stuck_threads", "threads wait for each other");
}
#[test]
fn lanes_at_different_shuffles_are_noticed() {
    noticed("divergent_shuffle", "lanes of a warp meet at different warp-wide operations");
    noticed_without_checks("divergent_shuffle", "lanes of a warp meet at different warp-wide operations");
}
#[test]
fn a_read_before_an_asynchronous_copy_was_waited_for_is_noticed() {
    noticed("missing_wait", "an asynchronous copy that was not waited for");
}
#[test]
fn a_missing_barrier_after_an_asynchronous_copy_is_noticed() {
    noticed("missing_barrier_after_wait", "race in a block");
}
#[test]
fn a_misaligned_row_of_a_matrix_is_noticed() {
    noticed("misaligned_row", "not aligned to 16 bytes");
    noticed_without_checks("misaligned_row", "not aligned to 16 bytes");
}
#[test]
fn a_misaligned_vector_is_noticed() {
    noticed("misaligned_vector", "an address that is not aligned as its type needs");
}
#[test]
fn a_wild_pointer_is_noticed_and_without_checks_ends_the_process_with_a_sentence() {
    noticed("wild_pointer", "write out of bounds in wild_pointer");
    if common::standin() {
        let ended = common::run("wild_pointer", &[]);
        let sentence = "the process ends in the kernel wild_pointer";
        assert!(!ended.success && ended.text.contains(sentence), "{}", ended.text);
    }
}
#[test]
fn a_stack_that_overflows_is_noticed() {
    noticed("stack_overflow", "the stack of a thread is full");
    noticed_without_checks("stack_overflow", "the stack of a thread is full");
}
