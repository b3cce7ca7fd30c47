//! Devices that fail: too little memory, a device that is lost, an old driver, no device, several, calls that a driver refuses.
#![allow(unsafe_code, reason = "the driver is called as a layer on it would")]

mod common;

use common::{CudaContext, DriverError, Gpu, LaunchConfig, PushKernelArg, compile, shape, source, sys};
use cudarc::driver::{DevicePtr, result};
use std::ffi::CStr;
use sys::CUresult as Code;

fn code<T>(result: Result<T, DriverError>) -> Option<Code> {
    result.err().map(|error| error.0)
}

fn out_of_memory() {
    let gpu = Gpu::device();
    let stream = gpu.stream();
    let whole = 1 << 20;
    assert_eq!(gpu.context.total_mem(), Ok(whole));
    assert_eq!(gpu.context.mem_get_info(), Ok((whole, whole)));
    let first = stream.alloc_zeros::<u8>(whole / 4 * 3).expect("memory");
    assert_eq!(gpu.context.mem_get_info(), Ok((whole / 4, whole)));
    assert_eq!(code(stream.alloc_zeros::<u8>(whole / 2)), Some(Code::CUDA_ERROR_OUT_OF_MEMORY));
    // Not sticky: what was freed can be had again.
    drop(first);
    stream.alloc_zeros::<u8>(whole / 2).expect("memory");
    stream.synchronize().expect("no failure");
    eprintln!("ended right");
}

fn held_by_others() {
    let gpu = Gpu::device();
    let (whole, free) = (1 << 20, 1 << 18);
    assert_eq!(gpu.context.total_mem(), Ok(whole));
    assert_eq!(gpu.context.mem_get_info(), Ok((free, whole)));
    assert_eq!(code(gpu.stream().alloc_zeros::<u8>(free + 1)), Some(Code::CUDA_ERROR_OUT_OF_MEMORY));
    gpu.stream().alloc_zeros::<u8>(free).expect("memory");
    eprintln!("ended right");
}

const SHARED: &str = "STANDIN_SHARED";
const SMALL: [(&str, &str); 1] = [("STANDIN_MEMORY", "1048576")];

/// A process and others beside it: what it holds they have not, and once it or one of them is gone, all is there again.
fn beside_others() {
    let gpu = Gpu::device();
    let whole = 1 << 20;
    let others = std::env::var(SHARED).expect("a file");
    let settings = [SMALL[0], (SHARED, others.as_str())];
    let run = |program: &str| {
        let ended = common::run(program, &settings);
        assert!(ended.success && ended.text.contains("ended right"), "{program}:\n{}", ended.text);
    };
    run("finds_all");
    let held = gpu.stream().alloc_zeros::<u8>(whole / 2).expect("memory");
    run("finds_half");
    // Its memory went with it.
    assert_eq!(gpu.context.mem_get_info(), Ok((whole / 2, whole)));
    run("finds_half");
    drop(held);
    gpu.context.synchronize().expect("no failure");
    run("finds_all");
    eprintln!("ended right");
}

/// Allocates what it finds, keeps it until its end, and gets no more.
fn finds(expected: usize) {
    let gpu = Gpu::device();
    assert_eq!(gpu.context.mem_get_info(), Ok((expected, 1 << 20)));
    let stream = gpu.stream();
    let code_of_more = code(stream.alloc_zeros::<u8>(expected + 1));
    assert_eq!(code_of_more, Some(Code::CUDA_ERROR_OUT_OF_MEMORY));
    std::mem::forget(stream.alloc_zeros::<u8>(expected).expect("memory"));
    assert_eq!(gpu.context.mem_get_info(), Ok((0, 1 << 20)));
    eprintln!("ended right");
}

fn lost_device() {
    let gpu = Gpu::device();
    let stream = gpu.stream();
    let kernel = gpu.kernel("streams.cu", "scale_add");
    let mut x = stream.clone_htod(&[1.0f32; 256]).expect("memory");
    for launch in 0..5 {
        // SAFETY: the parameters are the kernel's.
        let done = unsafe {
            stream
                .launch_builder(&kernel)
                .arg(&mut x)
                .arg(&2.0f32)
                .arg(&0.0f32)
                .arg(&256)
                .launch(shape(1, 256, 0))
        };
        let expected = (launch >= 3).then_some(Code::CUDA_ERROR_DEVICE_UNAVAILABLE);
        assert_eq!(code(done), expected, "launch {launch}");
    }
    assert_eq!(code(stream.synchronize()), Some(Code::CUDA_ERROR_DEVICE_UNAVAILABLE));
    assert_eq!(code(stream.clone_dtoh(&x)), Some(Code::CUDA_ERROR_DEVICE_UNAVAILABLE));
    assert_eq!(code(stream.alloc_zeros::<u8>(1)), Some(Code::CUDA_ERROR_DEVICE_UNAVAILABLE));
    assert!(cudarc::cublaslt::result::create_handle().is_err());
    eprintln!("ended right");
}

fn old_driver() {
    let mut version = 0;
    // SAFETY: a place for a number.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().expect("a version");
    assert_eq!(version, 12_020);
    let context = CudaContext::new(0).expect("a device");
    let ptx = compile("streams.cu", &source("streams.cu"), "compute_80").expect("it compiles");
    assert_eq!(code(context.load_module(ptx)), Some(Code::CUDA_ERROR_UNSUPPORTED_PTX_VERSION));
    eprintln!("ended right");
}

fn no_device() {
    assert_eq!(code(CudaContext::new(0)), Some(Code::CUDA_ERROR_NO_DEVICE));
    assert_eq!(code(CudaContext::device_count()), Some(Code::CUDA_ERROR_NO_DEVICE));
    eprintln!("ended right");
}

fn two_devices() {
    assert_eq!(CudaContext::device_count(), Ok(2));
    assert_eq!(code(CudaContext::new(2)), Some(Code::CUDA_ERROR_INVALID_DEVICE));
    let [first, second] = [0, 1].map(|ordinal| CudaContext::new(ordinal).expect("a device"));
    assert_ne!(first.uuid().expect("an id").bytes, second.uuid().expect("an id").bytes);
    let [on_first, on_second] = [&first, &second].map(|context| context.new_stream().expect("a stream"));
    let x = on_first.clone_htod(&[1.0f32; 64]).expect("memory");
    let y = on_second.alloc_zeros::<f32>(64).expect("memory");
    let (from, to) = (x.device_ptr(&on_first).0, y.device_ptr(&on_second).0);
    second.bind_to_thread().expect("a device");
    // SAFETY: the driver refuses all three.
    unsafe {
        assert!(
            result::memcpy_dtod_async(to, from, 256, on_second.cu_stream()).is_err(),
            "memory of another device"
        );
        assert!(result::stream::synchronize(on_first.cu_stream()).is_err(), "a stream of another device");
        assert!(result::free_async(from, on_second.cu_stream()).is_err(), "memory of another device");
    }
    assert_eq!(first.mem_get_info().expect("memory").0, second.mem_get_info().expect("memory").0);
    assert_eq!(on_first.clone_dtoh(&x), Ok(vec![1.0f32; 64]));
    eprintln!("ended right");
}

fn older_device() {
    let gpu = Gpu::device();
    assert_eq!(gpu.context.compute_capability(), Ok((8, 0)));
    let most = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    assert_eq!(gpu.context.attribute(most), Ok(163 * 1024));
    let text = source("streams.cu");
    for (arch, runs) in
        [("compute_80", true), ("compute_75", true), ("compute_90", false), ("sm_80", true), ("sm_75", false)]
    {
        let ptx = compile("streams.cu", &text, arch).expect("it compiles");
        let expected = (!runs).then_some(Code::CUDA_ERROR_NO_BINARY_FOR_GPU);
        assert_eq!(code(gpu.context.load_module(ptx)), expected, "{arch}");
    }
    let kernel = gpu.kernel("streams.cu", "scale_add");
    let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    kernel.set_attribute(attribute, 163 * 1024).expect("as much as there is");
    assert_eq!(code(kernel.set_attribute(attribute, 164 * 1024)), Some(Code::CUDA_ERROR_INVALID_VALUE));
    eprintln!("ended right");
}

#[test]
#[ignore = "other tests start it"]
fn program_of_another_test() {
    common::child(&[
        ("out_of_memory", out_of_memory),
        ("held_by_others", held_by_others),
        ("beside_others", beside_others),
        ("finds_all", || finds(1 << 20)),
        ("finds_half", || finds(1 << 19)),
        ("lost_device", lost_device),
        ("old_driver", old_driver),
        ("no_device", no_device),
        ("two_devices", two_devices),
        ("older_device", older_device),
        ("nothing", || eprintln!("{:?}", CudaContext::device_count())),
    ]);
}

#[track_caller]
fn right(program: &str, settings: &[(&str, &str)]) {
    if common::standin() {
        let ended = common::run(program, settings);
        assert!(ended.success && ended.text.contains("ended right"), "{program}:\n{}", ended.text);
    }
}

#[test]
fn allocations_beyond_the_memory_fail_and_the_figures_agree() {
    right("out_of_memory", &[("STANDIN_MEMORY", "1048576")]);
    right(
        "out_of_memory",
        &[("STANDIN_MEMORY", "1048576"), ("STANDIN_ORDER", "latest"), ("STANDIN_CHECK", "1")],
    );
}
#[test]
fn memory_that_other_processes_hold_is_not_given() {
    right("held_by_others", &[("STANDIN_MEMORY", "1048576"), ("STANDIN_HELD", "786432")]);
}
#[test]
fn processes_share_the_memory_of_a_device() {
    let name = format!("standin-shared-{}", std::process::id());
    let file = std::env::temp_dir().join(name);
    right("beside_others", &[SMALL[0], (SHARED, &file.display().to_string())]);
    let _ = std::fs::remove_file(file);
}
#[test]
fn a_lost_device_fails_every_call() {
    right("lost_device", &[("STANDIN_LOSE_AFTER", "3")]);
    right("lost_device", &[("STANDIN_LOSE_AFTER", "3"), ("STANDIN_ORDER", "latest")]);
}
#[test]
fn an_old_driver_does_not_know_newer_images() {
    right("old_driver", &[("STANDIN_DRIVER", "12020")]);
}
#[test]
fn there_may_be_no_device() {
    right("no_device", &[("STANDIN_DEVICES", "0")]);
}
#[test]
fn several_devices_share_nothing() {
    right("two_devices", &[("STANDIN_DEVICES", "2")]);
}
#[test]
fn an_older_device_runs_what_was_compiled_for_it() {
    right("older_device", &[("STANDIN_CAPABILITY", "80")]);
}
#[test]
fn a_setting_with_a_slip_is_refused() {
    if common::standin() {
        for (setting, value) in
            [("STANDIN_ORDER", "late"), ("STANDIN_MEMORY", "8G"), ("STANDIN_ORDER", "random:x")]
        {
            let ended = common::run("nothing", &[(setting, value)]);
            assert!(!ended.success && ended.text.contains(setting), "{}", ended.text);
        }
    }
}

#[test]
fn a_launch_that_does_not_fit_is_refused() {
    let Some(gpu) = Gpu::open() else { return };
    let stream = gpu.stream();
    let kernel = gpu.kernel("streams.cu", "scale_add");
    let mut x = stream.clone_htod(&[1.0f32; 256]).expect("memory");
    let mut refused = |shape: LaunchConfig| {
        // SAFETY: the parameters are the kernel's, and no value is touched.
        let done = unsafe {
            stream.launch_builder(&kernel).arg(&mut x).arg(&1.0f32).arg(&0.0f32).arg(&0).launch(shape)
        };
        code(done)
    };
    // The launch bound is 256 threads.
    assert!(refused(shape(1, 512, 0)).is_some());
    assert!(refused(shape(0, 32, 0)).is_some());
    assert!(refused(shape(1, 32, 49 * 1024)).is_some());
    assert!(
        refused(LaunchConfig { grid_dim: (1, 70_000, 1), block_dim: (32, 1, 1), shared_mem_bytes: 0 })
            .is_some()
    );
    assert_eq!(refused(shape(1, 256, 48 * 1024)), None);
}

#[test]
fn functions_and_occupancy_are_told() {
    let Some(gpu) = Gpu::open() else { return };
    let kernel = gpu.kernel("streams.cu", "scale_add");
    let threads = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK;
    assert_eq!(kernel.get_attribute(threads), Ok(256));
    let blocks = kernel.occupancy_max_active_blocks_per_multiprocessor(256, 0, None).expect("a number");
    assert!((1..=8).contains(&blocks));
    let Err(missing) = gpu
        .context
        .load_module(compile("streams.cu", &source("streams.cu"), "compute_80").expect("it compiles"))
        .expect("a module")
        .load_function("no_such_kernel")
    else {
        panic!("a kernel that is not there")
    };
    assert_eq!(missing.0, Code::CUDA_ERROR_NOT_FOUND);
}

#[test]
fn memory_comes_from_a_pool_with_attributes() {
    let Some(gpu) = Gpu::open() else { return };
    let stream = gpu.stream();
    // SAFETY: numbers of the types that the attributes want, and memory that is freed once.
    unsafe {
        let pool = result::device::get_default_mem_pool(gpu.context.cu_device()).expect("a pool");
        let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        let mut value = 1u64 << 30;
        sys::cuMemPoolSetAttribute(pool, threshold, (&raw mut value).cast()).result().expect("an attribute");
        value = 0;
        sys::cuMemPoolGetAttribute(pool, threshold, (&raw mut value).cast()).result().expect("an attribute");
        assert_eq!(value, 1 << 30);
        let mut at = 0;
        sys::cuMemAllocFromPoolAsync(&mut at, 4096, pool, stream.cu_stream()).result().expect("memory");
        let used = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT;
        sys::cuMemPoolGetAttribute(pool, used, (&raw mut value).cast()).result().expect("an attribute");
        assert!(value >= 4096);
        result::free_async(at, stream.cu_stream()).expect("it was allocated");
    }
}

#[test]
fn codes_have_names_and_sentences() {
    if common::driver() {
        let _gpu = Gpu::device();
        let name = DriverError(Code::CUDA_ERROR_OUT_OF_MEMORY).error_name().expect("a name");
        assert_eq!(name, c"CUDA_ERROR_OUT_OF_MEMORY");
        let sentence: &CStr =
            DriverError(Code::CUDA_ERROR_ILLEGAL_ADDRESS).error_string().expect("a sentence");
        assert_eq!(sentence, c"an illegal memory access was encountered");
    }
}

#[test]
fn the_compilers_log_comes_back() {
    if common::driver() {
        let log = compile(
            "wrong.cu",
            "extern \"C\" __global__ void f(float* x) { x[0] = no_such_name; }",
            "compute_80",
        )
        .err();
        assert!(log.expect("it does not compile").contains("no_such_name"));
    }
}

#[test]
fn a_source_that_only_gxx_takes_is_refused_where_the_real_nvrtc_is_asked() {
    if common::standin() {
        let text = "#include <vector>\nextern \"C\" __global__ void f(float* x) { x[0] = 1.0f; }";
        let asked = std::env::var_os("STANDIN_NVRTC").is_some();
        assert_eq!(compile("vector.cu", text, "compute_80").is_err(), asked);
    }
}

#[test]
fn static_shared_variables_are_refused_with_a_reason() {
    if common::standin() {
        let text = source("streams.cu")
            + "\nextern \"C\" __global__ void f(float* x) { __shared__ float s[32]; s[0] = x[0]; }";
        let log = compile("shared.cu", &text, "compute_80").expect_err("it does not compile");
        assert!(log.contains("use shared_memory<T>()"), "{log}");
    }
}

/// A program that keeps images on the disk may load them under other settings.
#[test]
fn an_image_is_complete_in_itself() {
    if common::standin() {
        let ptx = compile("streams.cu", &source("streams.cu"), "compute_80").expect("it compiles");
        let text = ptx.to_src();
        assert!(text.contains("scale_add(float* x, float a, float b, int n)"), "{text}");
    }
}

#[test]
fn headers_may_be_handed_over_apart() {
    use cudarc::nvrtc::{result as nvrtc, sys as raw};
    if !common::driver() {
        return;
    }
    let gpu = Gpu::device();
    let source = c"#include \"factor.cuh\"\nextern \"C\" __global__ void times(float* x) { x[threadIdx.x] *= FACTOR; }";
    let header = c"#define FACTOR 3.0f\n";
    let mut program = std::ptr::null_mut();
    // SAFETY: the texts live until the program is destroyed; one header with one name.
    let image = unsafe {
        let (texts, names) = ([header.as_ptr()], [c"factor.cuh".as_ptr()]);
        raw::nvrtcCreateProgram(
            &mut program,
            source.as_ptr(),
            c"times.cu".as_ptr(),
            1,
            texts.as_ptr(),
            names.as_ptr(),
        )
        .result()
        .expect("a program");
        nvrtc::compile_program(program, &["--gpu-architecture=compute_80"]).expect("it compiles");
        let image = nvrtc::get_ptx(program).expect("an image");
        nvrtc::destroy_program(program).expect("open");
        CStr::from_ptr(image.as_ptr()).to_str().expect("text").to_owned()
    };
    let module = gpu.context.load_module(cudarc::nvrtc::Ptx::from_src(image)).expect("a module");
    let kernel = module.load_function("times").expect("a kernel");
    let stream = gpu.stream();
    let mut x = stream.clone_htod(&[2.0f32; 32]).expect("memory");
    // SAFETY: the parameter is the kernel's.
    unsafe { stream.launch_builder(&kernel).arg(&mut x).launch(shape(1, 32, 0)) }.expect("a launch");
    assert_eq!(stream.clone_dtoh(&x), Ok(vec![6.0f32; 32]));
}
