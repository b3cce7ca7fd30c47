//! From a unit to a library: g++ with `host/emu.h`, and a cache on the disk.

use std::{
    collections::hash_map::DefaultHasher,
    fs::{self, File},
    hash::{Hash, Hasher},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use super::scan;
use crate::{image::Unit, settings::settings};

/// Why a unit gives no library.
pub struct Failure {
    pub log: String,
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure { log: format!("standin: {error}") }
    }
}

/// `off`: a product and a sum are two roundings unless the source says `fmaf`. A device fuses them; kernels that must give the
/// same bits everywhere may not depend on it.
const GXX: [&str; 12] = [
    "-std=c++20",
    "-O3",
    "-g1",
    "-march=native",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fPIC",
    "-fvisibility=hidden",
    "-ftls-model=local-dynamic",
    "-mtls-dialect=gnu2",
    "-Wall",
    "-Wno-unknown-pragmas",
];
/// A frame that is most of a thread's stack (`host/emu/runner.h`) would be memory that spills on a device: refused.
const GXX_WARNINGS: [&str; 4] = [
    "-Wno-unused-function",
    "-Wno-unused-but-set-variable",
    "-Wframe-larger-than=32768",
    "-Werror=frame-larger-than=32768",
];
/// g++ calls before each access; the callbacks are in `host/emu/checks.h`, and nothing of the sanitizer itself is linked.
const GXX_CHECKED: [&str; 3] = ["-DEMU_CHECK", "-fsanitize=thread,alignment", "-O1"];

fn host_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("host")
}

/// What besides the unit decides what g++ makes: this file, the headers, g++ itself, the processor.
fn surroundings() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let mut headers = vec![host_folder().join("emu.h")];
        let parts = fs::read_dir(host_folder().join("emu")).into_iter().flatten().flatten();
        headers.extend(parts.map(|entry| entry.path()));
        headers.sort();
        let mut text: String = headers.iter().filter_map(|header| fs::read_to_string(header).ok()).collect();
        text += include_str!("compile.rs");
        let version = Command::new("g++").arg("-dumpfullversion").output();
        text += &version.map(|done| String::from_utf8_lossy(&done.stdout).into_owned()).unwrap_or_default();
        let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        text += processor.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
        text
    })
}

/// The options that g++ understands too: what is defined, and where headers are.
fn shared_options(options: &[String]) -> impl Iterator<Item = String> + '_ {
    const SAME: [(&str, &str); 4] =
        [("-D", "-D"), ("-I", "-I"), ("--define-macro=", "-D"), ("--include-path=", "-I")];
    options.iter().filter_map(|option| {
        SAME.iter().find_map(|(theirs, ours)| Some(format!("{ours}{}", option.strip_prefix(theirs)?)))
    })
}

/// The library of a unit.
pub fn compile(unit: &Unit) -> Result<PathBuf, Failure> {
    let checked = settings().check;
    let mut hasher = DefaultHasher::new();
    (unit, checked, surroundings()).hash(&mut hasher);
    let stem = settings().cache.join(format!("{:016x}", hasher.finish()));
    let library = stem.with_extension("so");
    if library.exists() {
        return Ok(library);
    }
    fs::create_dir_all(&settings().cache)?;
    let _one_at_a_time = Lock::take(&stem.with_extension("lock"))?;
    if library.exists() {
        return Ok(library);
    }
    let folder = stem.with_extension("d");
    fs::create_dir_all(&folder)?;
    for (name, text) in &unit.headers {
        let header = folder.join(name);
        fs::create_dir_all(header.parent().unwrap_or(&folder))?;
        fs::write(header, text)?;
    }
    build(unit, &folder, checked)?;
    fs::rename(folder.join("kernels.so"), &library)?;
    Ok(library)
}

fn build(unit: &Unit, folder: &Path, checked: bool) -> Result<(), Failure> {
    let [source, object, output] = ["kernels.cpp", "kernels.o", "kernels.so"].map(|file| folder.join(file));
    let named = format!("#line 1 \"{}\"\n{}\n", unit.name, unit.source);
    fs::write(&source, &named)?;
    let gxx = || {
        let mut gxx = Command::new("g++");
        gxx.args(GXX).args(GXX_WARNINGS).args(if checked { &GXX_CHECKED[..] } else { &[] });
        gxx.args(shared_options(&unit.options)).arg("-I").arg(folder).arg("-I").arg(host_folder());
        // What NVRTC knows without a header.
        gxx.args(["-include", "emu.h"]);
        gxx
    };
    let marks = [
        format!("-D__global__={}", scan::GLOBAL),
        format!("-D__launch_bounds__(...)={}(__VA_ARGS__)", scan::BOUNDS),
    ];
    let preprocessed = run(gxx().args(["-E", "-P"]).args(marks).arg(&source))?;
    let kernels = scan::kernels(&preprocessed);
    let mut text = format!(
        "{named}#line 1 \"table of kernels\"\n\
         extern \"C\" __attribute__((visibility(\"default\"))) const emu::Kernel emu_kernels[] = {{\n"
    );
    for (name, bound) in &kernels {
        text += &format!("  EMU_KERNEL({name}, ({bound})),\n");
    }
    text += "  {nullptr, nullptr, nullptr, 0, 0, nullptr}};\n";
    fs::write(&source, text)?;
    run(gxx().arg("-c").arg("-o").arg(&object).arg(&source))?;
    // Linked apart, without the sanitizer: its library is not needed and may not be there.
    run(Command::new("g++").arg("-shared").arg("-o").arg(&output).arg(&object))?;
    Ok(())
}

fn run(command: &mut Command) -> Result<String, Failure> {
    let done =
        command.output().map_err(|error| Failure { log: format!("standin: g++ does not start: {error}") })?;
    if done.status.success() {
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    } else {
        Err(Failure { log: String::from_utf8_lossy(&done.stderr).into_owned() })
    }
}

/// A file that one process holds at a time: tests start many, which need the same kernels.
struct Lock(#[allow(dead_code, reason = "held open")] File);

impl Lock {
    fn take(path: &Path) -> std::io::Result<Lock> {
        let file = File::create(path)?;
        // SAFETY: a call on an open file.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } == 0 {
            Ok(Lock(file))
        } else {
            Err(std::io::Error::last_os_error())
        }
    }
}
