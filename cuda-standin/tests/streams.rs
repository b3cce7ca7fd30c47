//! Programs of several streams, right and broken. A broken one gives a wrong result with `latest`, every time; the checks find it
//! in any order. A right one passes in every order, with and without checks.
#![allow(unsafe_code, reason = "kernels are launched, and memory is handled by hand")]

mod common;

use common::{CudaFunction, CudaSlice, CudaStream, Gpu, PushKernelArg, shape, sys};
use cudarc::driver::DevicePtr;
use std::sync::Arc;

const VALUES: usize = 4096;
const ORDERS: [&str; 5] = ["eager", "latest", "random:1", "random:2", "random:3"];

/// x = a * x + b. After a finding launches fail; what is told in the end says so.
fn scale_add(kernel: &CudaFunction, stream: &Arc<CudaStream>, x: &mut CudaSlice<f32>, a: f32, b: f32) {
    let shape = shape((VALUES as u32).div_ceil(256), 256, 0);
    // SAFETY: the parameters are the kernel's.
    let _ =
        unsafe { stream.launch_builder(kernel).arg(x).arg(&a).arg(&b).arg(&(VALUES as i32)).launch(shape) };
}

/// Says on stderr whether the values of `y` are all `wanted`.
fn tell(stream: &Arc<CudaStream>, y: &CudaSlice<f32>, wanted: f32) {
    match stream.clone_dtoh(y).and_then(|values| stream.synchronize().map(|()| values)) {
        Err(error) => eprintln!("ended with {error:?}"),
        Ok(values) if values.iter().all(|value| *value == wanted) => eprintln!("ended right"),
        Ok(values) => eprintln!("ended wrong: {} in the place of {wanted}", values[0]),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Missing {
    Nothing,
    ReadWait,
    WriteWait,
    FreeWait,
}

/// Stream a: x = 1, then 3. Stream b: y = x. Stream a: x = 30, or x is freed and its memory used again. Stream b: y = 4.
fn two_streams(missing: Missing) {
    let gpu = Gpu::device();
    let kernel = gpu.kernel("streams.cu", "scale_add");
    let (a, b) = (gpu.stream(), gpu.stream());
    let mut x = a.clone_htod(&vec![1.0f32; VALUES]).expect("memory");
    // SAFETY: the copy below writes it.
    let mut y = unsafe { b.alloc::<f32>(VALUES) }.expect("memory");
    scale_add(&kernel, &a, &mut x, 3.0, 0.0);
    if missing != Missing::ReadWait {
        b.join(&a).expect("an event");
    }
    let _ = b.memcpy_dtod(&x, &mut y);
    if missing != Missing::WriteWait && missing != Missing::FreeWait {
        let _ = a.join(&b);
    }
    if missing == Missing::FreeWait {
        drop(x);
        let zeros = a.alloc_zeros::<f32>(VALUES);
        let _ = a.synchronize();
        drop(zeros);
    } else {
        scale_add(&kernel, &a, &mut x, 10.0, 0.0);
        let _ = a.synchronize();
    }
    scale_add(&kernel, &b, &mut y, 1.0, 1.0);
    tell(&b, &y, 4.0);
}

/// The right program that frees: stream a waits for the copy before it frees.
fn free_after_wait() {
    let gpu = Gpu::device();
    let (a, b) = (gpu.stream(), gpu.stream());
    let x = a.clone_htod(&vec![3.0f32; VALUES]).expect("memory");
    // SAFETY: the copy below writes it.
    let mut y = unsafe { b.alloc::<f32>(VALUES) }.expect("memory");
    b.join(&a).expect("an event");
    b.memcpy_dtod(&x, &mut y).expect("a copy");
    a.join(&b).expect("an event");
    drop(x);
    let zeros = a.alloc_zeros::<f32>(VALUES).expect("memory");
    a.synchronize().expect("no failure");
    drop(zeros);
    tell(&b, &y, 3.0);
}

/// A kernel of another stream reads memory that was freed: nothing of its own stream says so.
fn use_after_free() {
    let gpu = Gpu::device();
    let kernel = gpu.kernel("streams.cu", "scale_add");
    let (a, b) = (gpu.stream(), gpu.stream());
    let x = a.clone_htod(&vec![1.0f32; VALUES]).expect("memory");
    let mut y = b.clone_htod(&vec![0.0f32; VALUES]).expect("memory");
    a.synchronize().expect("no failure");
    let at = x.device_ptr(&a).0;
    drop(x);
    let _ = a.synchronize();
    // SAFETY: the address is of memory that was freed, which the test is about; the stand-in's arena still has it.
    let _ = unsafe {
        b.launch_builder(&kernel)
            .arg(&at)
            .arg(&2.0f32)
            .arg(&0.0f32)
            .arg(&(VALUES as i32))
            .launch(shape(16, 256, 0))
    };
    scale_add(&kernel, &b, &mut y, 0.0, 7.0);
    tell(&b, &y, 7.0);
}

/// The same stream frees, then uses.
fn use_after_free_on_one_stream() {
    let gpu = Gpu::device();
    let kernel = gpu.kernel("streams.cu", "scale_add");
    let a = gpu.stream();
    let x = a.clone_htod(&vec![1.0f32; VALUES]).expect("memory");
    let mut y = a.clone_htod(&vec![0.0f32; VALUES]).expect("memory");
    let at = x.device_ptr(&a).0;
    drop(x);
    // SAFETY: as above.
    let _ = unsafe {
        a.launch_builder(&kernel)
            .arg(&at)
            .arg(&2.0f32)
            .arg(&0.0f32)
            .arg(&(VALUES as i32))
            .launch(shape(16, 256, 0))
    };
    scale_add(&kernel, &a, &mut y, 0.0, 7.0);
    tell(&a, &y, 7.0);
}

/// Memory that one stream allocates and another uses without a wait.
fn use_before_allocation() {
    let gpu = Gpu::device();
    let (a, b) = (gpu.stream(), gpu.stream());
    // SAFETY: the fill below writes it.
    let mut x = unsafe { a.alloc::<f32>(VALUES) }.expect("memory");
    let _ = b.memset_zeros(&mut x);
    tell(&b, &x, 0.0);
}

/// A pinned buffer that the host changes while its upload may still be on its way.
fn pinned_upload(wait: bool) {
    let gpu = Gpu::device();
    let stream = gpu.stream();
    // SAFETY: filled before it is read.
    let mut host = unsafe { gpu.context.alloc_pinned::<f32>(VALUES) }.expect("pinned memory");
    host.as_mut_slice().expect("the host's own").fill(5.0);
    // SAFETY: the copy below writes it.
    let mut x = unsafe { stream.alloc::<f32>(VALUES) }.expect("memory");
    let bytes = VALUES * size_of::<f32>();
    let from = host.as_ptr().expect("the host's own");
    let to = cudarc::driver::DevicePtrMut::device_ptr_mut(&mut x, &stream).0;
    // SAFETY: both sides have as many bytes. That the host may change its own too early is what the test is about.
    unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast(), bytes, stream.cu_stream()) }
        .result()
        .expect("a copy");
    if wait {
        stream.synchronize().expect("no failure");
    }
    // SAFETY: as above.
    unsafe { std::slice::from_raw_parts_mut(from.cast_mut(), VALUES) }.fill(6.0);
    tell(&stream, &x, 5.0);
}

/// A pageable buffer may be changed when the call returns.
fn pageable_upload() {
    let gpu = Gpu::device();
    let stream = gpu.stream();
    let mut host = vec![5.0f32; VALUES];
    let x = stream.clone_htod(&host).expect("memory");
    host.fill(6.0);
    tell(&stream, &x, 5.0);
}

#[test]
fn a_stream_tells_the_priority_that_it_was_given_and_one_outside_the_range_is_refused() {
    if !common::standin() {
        return;
    }
    let gpu = Gpu::device();
    let priority = |stream: &CudaStream| {
        let mut found = i32::MAX;
        // SAFETY: an open stream, and a place for the number.
        unsafe { sys::cuStreamGetPriority(stream.cu_stream(), &raw mut found) }
            .result()
            .expect("an open stream");
        found
    };
    let (least, greatest) = cudarc::driver::result::stream::get_priority_range().expect("a range");
    for wanted in [least, greatest] {
        let stream = gpu.context.new_stream_with_priority(wanted).expect("a stream");
        assert_eq!(priority(&stream), wanted);
    }
    assert_eq!(priority(&gpu.stream()), least);
    for outside in [least + 1, greatest - 1] {
        assert!(gpu.context.new_stream_with_priority(outside).is_err(), "{outside}");
    }
}

/// A closed stream still ends its work, and whoever waits for its event waits for that.
fn closed_stream() {
    let gpu = Gpu::device();
    let kernel = gpu.kernel("streams.cu", "scale_add");
    let (a, b) = (gpu.stream(), gpu.stream());
    let mut x = b.clone_htod(&vec![1.0f32; VALUES]).expect("memory");
    a.join(&b).expect("an event");
    scale_add(&kernel, &a, &mut x, 3.0, 1.0);
    let event = a.record_event(None).expect("an event");
    drop(a);
    b.wait(&event).expect("an event");
    drop(event);
    tell(&b, &x, 4.0);
}

/// Two streams without an event of one's own: cudarc places them.
fn tracked() {
    let gpu = Gpu::device();
    // SAFETY: nothing has been allocated yet.
    unsafe { gpu.context.enable_event_tracking() };
    let kernel = gpu.kernel("streams.cu", "scale_add");
    let (a, b) = (gpu.stream(), gpu.stream());
    let mut x = a.clone_htod(&vec![1.0f32; VALUES]).expect("memory");
    scale_add(&kernel, &a, &mut x, 3.0, 0.0);
    let mut y = b.alloc_zeros::<f32>(VALUES).expect("memory");
    b.memcpy_dtod(&x, &mut y).expect("a copy");
    scale_add(&kernel, &a, &mut x, 10.0, 0.0);
    scale_add(&kernel, &b, &mut y, 1.0, 1.0);
    drop(x);
    tell(&b, &y, 4.0);
}

/// Threads of the host, each with a stream of its own.
fn threads_of_the_host() {
    let gpu = Gpu::device();
    let kernel = gpu.kernel("streams.cu", "scale_add");
    let right = std::thread::scope(|scope| {
        let work = || {
            let stream = gpu.stream();
            let mut x = stream.clone_htod(&vec![0.0f32; VALUES]).expect("memory");
            (0..50).for_each(|_| scale_add(&kernel, &stream, &mut x, 1.0, 1.0));
            let values = stream.clone_dtoh(&x).expect("a copy");
            stream.synchronize().expect("no failure");
            values.iter().all(|value| *value == 50.0)
        };
        let threads = [(); 4].map(|()| scope.spawn(work));
        threads.into_iter().all(|thread| thread.join().expect("no panic"))
    });
    eprintln!("ended {}", if right { "right" } else { "wrong" });
}

#[test]
#[ignore = "other tests start it"]
fn program_of_another_test() {
    common::child(&[
        ("good", || two_streams(Missing::Nothing)),
        ("no_wait_before_the_read", || two_streams(Missing::ReadWait)),
        ("no_wait_before_the_write", || two_streams(Missing::WriteWait)),
        ("no_wait_before_the_free", || two_streams(Missing::FreeWait)),
        ("free_after_wait", free_after_wait),
        ("use_after_free", use_after_free),
        ("use_after_free_on_one_stream", use_after_free_on_one_stream),
        ("use_before_allocation", use_before_allocation),
        ("pinned_upload", || pinned_upload(true)),
        ("pinned_upload_overwritten", || pinned_upload(false)),
        ("pageable_upload", pageable_upload),
        ("closed_stream", closed_stream),
        ("tracked", tracked),
        ("threads_of_the_host", threads_of_the_host),
    ]);
}

#[track_caller]
fn wrong_with_latest(program: &str) {
    if common::standin() {
        let ended = common::run(program, &[("STANDIN_ORDER", "latest")]);
        assert!(ended.text.contains("ended wrong"), "{program}:\n{}", ended.text);
    }
}

#[track_caller]
fn found_in_every_order(program: &str, findings: &[&str]) {
    if !common::standin() {
        return;
    }
    for order in ORDERS {
        let ended = common::run(program, &[("STANDIN_ORDER", order), ("STANDIN_CHECK", "1")]);
        let found = findings.iter().any(|finding| ended.text.contains(finding));
        assert!(
            found && ended.text.contains("ended with"),
            "{program}, {order}: none of {findings:?} in\n{}",
            ended.text
        );
    }
}

#[track_caller]
fn right_in_every_order(program: &str) {
    if !common::standin() {
        return;
    }
    for order in ORDERS {
        for check in ["0", "1"] {
            let ended = common::run(program, &[("STANDIN_ORDER", order), ("STANDIN_CHECK", check)]);
            assert!(
                ended.text.contains("ended right"),
                "{program}, {order}, checks {check}:\n{}",
                ended.text
            );
            assert!(!ended.text.contains("standin:"), "{program}, {order}, checks {check}:\n{}", ended.text);
        }
    }
}

#[test]
fn a_read_that_does_not_wait_is_wrong_with_latest_and_found_by_the_checks() {
    wrong_with_latest("no_wait_before_the_read");
    // A read before the write is one of memory that nobody has written, or allocated, yet.
    found_in_every_order(
        "no_wait_before_the_read",
        &["race between streams", "use before allocation", "read of memory never written"],
    );
}
#[test]
fn a_write_that_does_not_wait_is_wrong_with_latest_and_found_by_the_checks() {
    wrong_with_latest("no_wait_before_the_write");
    found_in_every_order("no_wait_before_the_write", &["race between streams"]);
}
#[test]
fn a_free_that_does_not_wait_is_wrong_with_latest_and_found_by_the_checks() {
    wrong_with_latest("no_wait_before_the_free");
    found_in_every_order("no_wait_before_the_free", &["free before use has ended", "use after free"]);
}
#[test]
fn programs_that_wait_are_right_in_every_order() {
    right_in_every_order("good");
    right_in_every_order("free_after_wait");
}
#[test]
fn a_read_of_freed_memory_on_another_stream_is_found() {
    found_in_every_order("use_after_free", &["use after free"]);
}
#[test]
fn a_use_after_a_free_on_the_same_stream_is_found() {
    found_in_every_order("use_after_free_on_one_stream", &["use after free"]);
}
#[test]
fn memory_of_another_stream_that_was_not_waited_for_is_found() {
    found_in_every_order("use_before_allocation", &["use before allocation"]);
}
#[test]
fn a_pinned_buffer_is_read_when_the_copy_runs() {
    wrong_with_latest("pinned_upload_overwritten");
    right_in_every_order("pinned_upload");
}
#[test]
fn a_pageable_buffer_is_read_when_the_call_is_made() {
    right_in_every_order("pageable_upload");
}
#[test]
fn a_closed_stream_still_ends_its_work() {
    right_in_every_order("closed_stream");
}

#[test]
fn events_that_cudarc_places_are_enough() {
    right_in_every_order("tracked");
}
#[test]
fn threads_of_the_host_may_share_a_device() {
    right_in_every_order("threads_of_the_host");
}

#[test]
fn events_tell_whether_work_is_done_and_how_long_it_took() {
    let Some(gpu) = Gpu::open() else { return };
    let kernel = gpu.kernel("streams.cu", "scale_add");
    let stream = gpu.stream();
    let timed = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    let start = stream.record_event(timed).expect("an event");
    let mut x = stream.clone_htod(&vec![1.0f32; VALUES]).expect("memory");
    scale_add(&kernel, &stream, &mut x, 1.0, 1.0);
    let end = stream.record_event(timed).expect("an event");
    let milliseconds = start.elapsed_ms(&end).expect("both were recorded");
    assert!((0.0..60_000.0).contains(&milliseconds));
    assert!(end.is_complete());
    // A host may ask until the answer is yes, whatever the order.
    let mut answers = std::iter::repeat_with(|| {
        // SAFETY: asks about an open stream.
        unsafe { sys::cuStreamQuery(stream.cu_stream()) }.result().is_ok()
    });
    assert!(answers.any(|done| done));
    let untimed = stream.record_event(None).expect("an event");
    assert!(start.elapsed_ms(&untimed).is_err());
}
