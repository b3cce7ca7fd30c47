//! What the tests share: a device, its kernels, and programs that run as processes of their own.
//!
//! Nothing but `standin` and the programs know of the stand-in: the other tests hold on a device too.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(unsafe_code, reason = "kernels are launched and the driver is asked for names")]

pub mod attention;
pub mod products;

use std::{
    collections::HashMap,
    env,
    io::Write,
    process::Command,
    sync::{Arc, Mutex, Once},
};

#[allow(unused_imports, reason = "each test file uses a part of it")]
pub use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DriverError, LaunchConfig, PushKernelArg,
    sys,
};
use cudarc::nvrtc::{CompileError, CompileOptions, Ptx, compile_ptx_with_opts};
pub use half::bf16;

/// Each includes the one before it.
const HEADERS: [(&str, &str); 3] = [
    ("device.cuh", include_str!("../../../nn/kernels/device.cuh")),
    ("values.cuh", include_str!("../../../nn/kernels/values.cuh")),
    ("wgmma.cuh", include_str!("../../../nn/kernels/wgmma.cuh")),
];
const SOURCES: [(&str, &str); 5] = [
    ("attention.cu", include_str!("../kernels/attention.cu")),
    ("broken.cu", include_str!("../kernels/broken.cu")),
    ("correct.cu", include_str!("../kernels/correct.cu")),
    ("streams.cu", include_str!("../kernels/streams.cu")),
    ("wgmma.cu", include_str!("../kernels/wgmma.cu")),
];

/// Says once why tests are skipped. Not by `eprintln`, which the test runner keeps to itself.
fn skip(why: &str) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        let path = env::args().next().unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or(&path);
        // Who has closed stderr does not want to know.
        let _ = writeln!(std::io::stderr(), "{name}: skipped: {why}");
    });
}

/// Whether there is a driver, or its stand-in. Says on stderr what is skipped where there is none.
pub fn driver() -> bool {
    // SAFETY: loads libraries by name, as the first real call would.
    let present = unsafe {
        sys::is_culib_present()
            && cudarc::nvrtc::sys::is_culib_present()
            && cudarc::cublaslt::sys::is_culib_present()
    };
    if !present {
        skip("no CUDA driver and no stand-in (scripts/standin.sh runs a command with it)");
    }
    present
}

/// Whether the driver is the stand-in.
pub fn standin() -> bool {
    if !driver() {
        return false;
    }
    // SAFETY: asks the driver's library for a name.
    let ours =
        unsafe { sys::culib().get::<unsafe extern "C" fn(i32) -> u32>(b"standin_take_findings").is_ok() };
    if !ours {
        skip("the driver is not the stand-in");
    }
    ours
}

/// One translation unit: headers in the place of their includes.
pub fn source(file: &str) -> String {
    changed_source(file, &|_, text| text)
}

/// The same of changed texts; `change` gets each file with its name.
pub fn changed_source(file: &str, change: &dyn Fn(&str, String) -> String) -> String {
    let text = SOURCES.iter().find(|(name, _)| *name == file).expect("a kernel file").1;
    assemble(file, text, change)
}

fn assemble(file: &str, text: &str, change: &dyn Fn(&str, String) -> String) -> String {
    let text = change(file, text.replace("#pragma once\n", "\n"));
    let include = |header: &str| format!("#include \"{header}\"\n");
    let found = HEADERS.iter().find_map(|(header, body)| {
        let (before, after) = text.split_once(&include(header))?;
        Some((assemble(header, body, change), before, after))
    });
    match found {
        Some((header, before, after)) => {
            let line = before.lines().count() + 2;
            format!("{header}\n{before}\n#line {line} \"{file}\"\n{after}")
        }
        None => format!("#line 1 \"{file}\"\n{text}"),
    }
}

/// The compiled text, or what the compiler said.
pub fn compile(file: &str, text: &str, arch: &str) -> Result<Ptx, String> {
    let options = CompileOptions {
        name: Some(file.into()),
        options: vec![format!("--gpu-architecture={arch}"), "--std=c++17".into(), "-lineinfo".into()],
        ..Default::default()
    };
    compile_ptx_with_opts(text, options).map_err(|error| match error {
        CompileError::CompileError { log, .. } => log.to_string_lossy().into_owned(),
        other => format!("{other:?}"),
    })
}

pub struct Gpu {
    pub context: Arc<CudaContext>,
    modules: Mutex<HashMap<&'static str, Arc<CudaModule>>>,
}

impl Gpu {
    /// `None` without a driver.
    pub fn open() -> Option<Gpu> {
        driver().then(Gpu::device)
    }

    /// Device 0, whose streams are ordered by nothing but what the caller says.
    pub fn device() -> Gpu {
        let context = CudaContext::new(0).expect("device 0");
        // SAFETY: events are placed by whoever uses several streams.
        unsafe { context.disable_event_tracking() };
        Gpu { context, modules: Mutex::default() }
    }

    pub fn stream(&self) -> Arc<CudaStream> {
        self.context.new_stream().expect("a stream")
    }

    pub fn kernel(&self, file: &'static str, name: &str) -> CudaFunction {
        let mut modules = self.modules.lock().expect("no test panicked here");
        let module = modules.entry(file).or_insert_with(|| {
            let (major, minor) = self.context.compute_capability().expect("a capability");
            let ptx = compile(file, &source(file), &format!("compute_{major}{minor}"))
                .unwrap_or_else(|log| panic!("{file}: {log}"));
            self.context.load_module(ptx).expect("a module")
        });
        module.load_function(name).expect("a kernel")
    }
}

/// A launch of `grid` blocks of `block` threads, with bytes of shared memory.
pub fn shape(grid: u32, block: u32, shared: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (block, 1, 1), shared_mem_bytes: shared }
}

/// Numbers in -1..1, the same everywhere.
pub fn noise(count: usize, seed: u32) -> Vec<bf16> {
    let mut state = seed.wrapping_mul(747_796_405) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            bf16::from_f32((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
        })
        .collect()
}

pub fn wide(values: &[bf16]) -> Vec<f64> {
    values.iter().map(|value| f64::from(value.to_f32())).collect()
}

/// Largest difference of two lists, relative to the largest reference.
pub fn difference(values: impl IntoIterator<Item = f64>, reference: &[f64]) -> f64 {
    let largest = reference.iter().fold(1e-30f64, |most, value| most.max(value.abs()));
    let values: Vec<f64> = values.into_iter().collect();
    assert_eq!(values.len(), reference.len());
    let apart = values.iter().zip(reference).map(|(value, wanted)| (value - wanted).abs());
    apart.fold(0.0f64, |most, apart| if apart.is_finite() { most.max(apart) } else { f64::INFINITY })
        / largest
}

/// The test that runs a program in a process of its own; each test file has one.
const CHILD: &str = "program_of_another_test";
const PROGRAM: &str = "STANDIN_TEST_PROGRAM";

/// How a program ended.
pub struct Ended {
    pub success: bool,
    /// What it wrote to both outputs.
    pub text: String,
}

/// Runs a program of this test file in a new process with these settings of the stand-in and no others.
pub fn run(program: &str, settings: &[(&str, &str)]) -> Ended {
    let mut command = Command::new(env::current_exe().expect("a path"));
    command.args([CHILD, "--exact", "--ignored", "--nocapture", "--test-threads=1"]).env(PROGRAM, program);
    let kept = ["STANDIN_CACHE", "STANDIN_NVRTC"];
    for (name, _) in env::vars().filter(|(name, _)| name.starts_with("STANDIN_")) {
        if !kept.contains(&name.as_str()) && name != PROGRAM {
            command.env_remove(name);
        }
    }
    command.envs(settings.iter().copied());
    let done = command.output().expect("the test itself starts");
    let text = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    Ended { success: done.status.success(), text }
}

/// The body of the test that runs programs: the one that the parent names.
pub fn child(programs: &[(&str, fn())]) {
    let Ok(wanted) = env::var(PROGRAM) else { return };
    let program = programs.iter().find(|(name, _)| *name == wanted).expect("a program");
    program.1();
}
