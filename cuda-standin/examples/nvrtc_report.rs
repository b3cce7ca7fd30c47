//! Registers and spills of kernels: `nvrtc_report LIMITS FILE.cu...`, with the real NVRTC, which needs no driver.
//!
//! Compiles each file for each of `ARCHITECTURES`, or for `ONE_GENERATION` where it needs what no other has, in both precisions of
//! activations, and prints a line for each kernel. Ends with 1 where a file does not compile, a kernel spills, products of warpgroups
//! wait for each other, or a kernel is above its limit. `LIMITS` has a line for each kernel, `NAME REGISTERS`, and comments after `#`; it
//! need not be there. `scripts/nvrtc-check.sh` gets NVRTC and runs this.
#![allow(
    unsafe_code,
    clippy::print_stdout,
    reason = "NVRTC is called as a C library; a report goes to stdout"
)]

use std::{
    collections::BTreeMap,
    env,
    ffi::{CStr, CString},
    fs,
    path::Path,
    process::ExitCode,
};

use cudarc::nvrtc::{result, sys};

const ARCHITECTURES: [&str; 3] = ["sm_80", "sm_90", "sm_100"];
/// For files that include `WGMMA`.
const ONE_GENERATION: [&str; 1] = ["sm_90a"];
const WGMMA: &str = "#include \"wgmma.cuh\"\n";
/// What the assembler says where it puts a wait behind each product of a warpgroup.
const SERIALIZED: &str = "wgmma.mma_async instructions are serialized";
/// Every file is compiled once for each precision of activations, as the project does.
const PRECISIONS: [(&str, Option<&str>); 2] = [("f32", None), ("bf16", Some("-DACTIVATION_BF16"))];
const INCLUDE: &str = "#include \"device.cuh\"\n";

/// What the assembler says of one kernel.
#[derive(Debug, Default, PartialEq)]
struct Usage {
    kernel: String,
    registers: u32,
    spilled_bytes: u32,
}

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let (Some(limits), files) = (arguments.next(), arguments.collect::<Vec<_>>()) else {
        eprintln!("usage: nvrtc_report LIMITS FILE.cu...");
        return ExitCode::from(2);
    };
    // SAFETY: loads a library by name.
    if !unsafe { sys::is_culib_present() } {
        eprintln!("nvrtc_report: there is no libnvrtc on the library path.");
        return ExitCode::from(77);
    }
    let limits = match fs::read_to_string(&limits) {
        Ok(text) => read_limits(&text),
        Err(_) => {
            println!("there are no limits: no {limits}");
            BTreeMap::new()
        }
    };
    let mut good = true;
    let mut seen = Vec::new();
    for file in &files {
        let wgmma = fs::read_to_string(file).is_ok_and(|text| text.contains(WGMMA));
        let architectures = if wgmma { &ONE_GENERATION[..] } else { &ARCHITECTURES[..] };
        for (arch, (precision, define)) in architectures.iter().flat_map(|a| PRECISIONS.map(|p| (a, p))) {
            match compile(Path::new(file), arch, define) {
                Ok(kernels) => {
                    for kernel in kernels {
                        good &= judge(&kernel, (arch, precision), &limits);
                        seen.push(kernel.kernel);
                    }
                }
                Err(log) => {
                    eprintln!("{file}, {arch}, {precision}: does not compile\n{log}");
                    good = false;
                }
            }
        }
    }
    for absent in limits.keys().filter(|kernel| !seen.contains(kernel)) {
        println!("{absent:28} has a limit and is not there");
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Writes a kernel's line; whether it is within its limit and spills nothing.
fn judge(usage: &Usage, (arch, precision): (&str, &str), limits: &BTreeMap<String, u32>) -> bool {
    let Usage { kernel, registers, spilled_bytes } = usage;
    let limit = limits.get(kernel);
    let (over, spills) = (limit.is_some_and(|limit| registers > limit), *spilled_bytes > 0);
    let told = match limit {
        Some(limit) => format!("of {limit} registers"),
        None => "registers (no limit)".to_owned(),
    };
    let fault = match (over, spills) {
        (false, false) => "",
        (true, false) => "  ABOVE ITS LIMIT",
        (false, true) => "  SPILLS",
        (true, true) => "  ABOVE ITS LIMIT, SPILLS",
    };
    println!("{kernel:28} {arch:7} {precision:5} {registers:4} {told}, {spilled_bytes} bytes spilled{fault}");
    !over && !spills
}

fn read_limits(text: &str) -> BTreeMap<String, u32> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or("").trim());
    let limit = |line: &str| {
        let (name, registers) = line.split_once(char::is_whitespace)?;
        Some((name.to_owned(), registers.trim().parse().ok()?))
    };
    lines
        .filter(|line| !line.is_empty())
        .filter_map(|line| {
            let read = limit(line);
            if read.is_none() {
                eprintln!("a line of the limits is not `NAME REGISTERS`: {line}");
            }
            read
        })
        .collect()
}

/// A file with its header in the place of the include, as the project hands it over.
fn translation_unit(file: &Path) -> std::io::Result<String> {
    let text = fs::read_to_string(file)?;
    let Some((before, after)) = text.split_once(INCLUDE) else { return Ok(text) };
    let beside = file.with_file_name("device.cuh");
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../nn/kernels/device.cuh");
    let header = fs::read_to_string(if beside.exists() { beside } else { shared })?;
    Ok(format!(
        "{before}{}\n#line {} \"{}\"\n{after}",
        header.replace("#pragma once\n", "\n"),
        before.lines().count() + 2,
        file.display()
    ))
}

/// What the assembler says of each kernel of a file; `Err`: what the compiler says.
fn compile(file: &Path, arch: &str, define: Option<&str>) -> Result<Vec<Usage>, String> {
    let text = translation_unit(file).map_err(|error| error.to_string())?;
    let source = CString::new(text).map_err(|error| error.to_string())?;
    let name = CString::new(file.to_string_lossy().as_bytes()).map_err(|error| error.to_string())?;
    let program = result::create_program(&source, Some(&name)).map_err(|error| format!("{error:?}"))?;
    let mut options =
        vec![format!("--gpu-architecture={arch}"), "--std=c++17".to_owned(), "--ptxas-options=-v".to_owned()];
    options.extend(define.map(str::to_owned));
    // As the project does for GPUs from compute capability 10 on.
    options.extend((arch == "sm_100").then(|| "-DBLACKWELL".to_owned()));
    // SAFETY: the program is open until the end of this function, and its log ends with a zero.
    let (done, log) = unsafe {
        let done = result::compile_program(program, &options);
        let log = result::get_program_log(program).map_err(|error| format!("{error:?}"))?;
        let log = CStr::from_ptr(log.as_ptr()).to_string_lossy().into_owned();
        result::destroy_program(program).map_err(|error| format!("{error:?}"))?;
        (done, log)
    };
    match done {
        Ok(()) if log.contains(SERIALIZED) => Err(log),
        Ok(()) => Ok(read_log(&log)),
        Err(_) => Err(log),
    }
}

/// Reads `ptxas -v`: a line with the kernel, then one with its spills, then one with its registers.
fn read_log(log: &str) -> Vec<Usage> {
    let mut found: Vec<Usage> = Vec::new();
    let number_before = |line: &str, words: &str| -> Option<u32> {
        line.split_once(words)?.0.trim_end().rsplit([' ', ',']).next()?.parse().ok()
    };
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let kernel = rest.split('\'').next().unwrap_or("?").to_owned();
            found.push(Usage { kernel, ..Usage::default() });
        }
        if let Some(last) = found.last_mut() {
            if let Some(stores) = number_before(line, "bytes spill stores") {
                last.spilled_bytes = stores + number_before(line, "bytes spill loads").unwrap_or(0);
            }
            if let Some((_, rest)) = line.split_once("Used ") {
                last.registers = rest.split(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0);
            }
        }
    }
    found
}
