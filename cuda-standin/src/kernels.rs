//! Kernels: compiled for the host by g++ and loaded; the runner of host/emu.h.

use std::{
    collections::hash_map::DefaultHasher,
    ffi::{CStr, CString, c_char, c_int, c_void},
    fs,
    hash::{Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, OnceLock, mpsc},
};

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Dim3(pub u32, pub u32, pub u32);

#[repr(C)]
pub struct Who {
    pub block: u32,
    pub thread: u32,
    pub epoch: u32,
    pub warp_epoch: u32,
}

pub type Access =
    unsafe extern "C" fn(*const c_void, u32, c_int, *const Who, *const c_void, usize, *const c_void) -> c_int;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Launch {
    pub grid: Dim3,
    pub block: Dim3,
    pub shared_bytes: u32,
    pub first_block: u32,
    pub blocks: u32,
    pub seed: u32,
    pub args: *mut *mut c_void,
    pub access: Option<Access>,
    pub message: *mut c_char,
}

#[repr(C)]
pub struct Kernel {
    name: *const c_char,
    run: unsafe extern "C" fn(*const Launch) -> c_int,
    call: *const c_void,
    pub parameters: u32,
    pub max_threads: u32,
    sizes: *const u32,
}
// SAFETY: read-only tables of a library that is never closed.
unsafe impl Send for Kernel {}
unsafe impl Sync for Kernel {}

impl Kernel {
    pub fn name(&self) -> &str {
        unsafe { CStr::from_ptr(self.name) }.to_str().unwrap_or("?")
    }
    pub fn sizes(&self) -> &[u32] {
        unsafe { std::slice::from_raw_parts(self.sizes, self.parameters as usize) }
    }
}

fn host_folder() -> PathBuf {
    std::env::var_os("STANDIN_HOST")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("host"), PathBuf::from)
}

/// The kernels in a source text: name and launch bound.
pub fn entries(source: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for piece in source.split("__global__").skip(1) {
        let mut rest = piece.trim_start();
        let mut bound = "1024".to_owned();
        let name = loop {
            if let Some(after) = rest.strip_prefix("void") {
                rest = after.trim_start();
            } else if let Some(after) = rest.strip_prefix("__launch_bounds__(") {
                let end = after.find(')').unwrap_or(0);
                bound = after[..end].split(',').next().unwrap_or("1024").trim().to_owned();
                rest = after[end + 1..].trim_start();
            } else {
                break rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or("");
            }
        };
        found.push((name.to_owned(), bound));
    }
    found
}

/// The library of a source, compiled where it isn't yet. `Err`: what the compiler said.
pub fn compile(source: &str, defines: &[String], checked: bool) -> Result<PathBuf, String> {
    let emu = fs::read_to_string(host_folder().join("emu.h")).map_err(|e| format!("emu.h: {e}"))?;
    let mut hasher = DefaultHasher::new();
    (source, defines, checked, &emu).hash(&mut hasher);
    let folder = std::env::var_os("STANDIN_CACHE")
        .map_or_else(|| std::env::temp_dir().join("standin-kernels"), PathBuf::from);
    fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let library = folder.join(format!("{:016x}.so", hasher.finish()));
    if library.exists() {
        return Ok(library);
    }
    let names = entries(source);
    let table: String = names.iter().map(|(name, bound)| format!("EMU_KERNEL({name}, {bound}), ")).collect();
    let text = format!(
        "{source}\nextern \"C\" __attribute__((visibility(\"default\"))) const emu::Kernel emu_kernels[] = {{{table}{{nullptr, nullptr, nullptr, 0, 0, nullptr}}}};\n"
    );
    let stem = folder.join(format!("{:016x}.{}", hasher.finish(), std::process::id()));
    let (input, object, output) =
        (stem.with_extension("cpp"), stem.with_extension("o"), stem.with_extension("so"));
    fs::write(&input, text).map_err(|e| e.to_string())?;
    let mut gxx = Command::new("g++");
    gxx.args([
        "-std=c++20",
        "-O3",
        "-g1",
        "-march=native",
        "-ffp-contract=off",
        "-fPIC",
        "-fvisibility=hidden",
        "-ftls-model=local-dynamic",
    ]);
    gxx.args(["-mtls-dialect=gnu2", "-Wno-unknown-pragmas", "-Wall", "-Wno-unused-function", "-c"]);
    if checked {
        gxx.args(["-DEMU_CHECK", "-fsanitize=thread", "-O1"]);
    }
    gxx.args(defines).arg("-I").arg(host_folder()).arg("-o").arg(&object).arg(&input);
    for mut step in [gxx, {
        let mut ld = Command::new("g++");
        ld.arg("-shared").arg("-o").arg(&output).arg(&object);
        ld
    }] {
        let done = step.output().map_err(|e| format!("g++: {e}"))?;
        if !done.status.success() {
            return Err(String::from_utf8_lossy(&done.stderr).into_owned());
        }
    }
    fs::rename(&output, &library).map_err(|e| e.to_string())?;
    Ok(library)
}

/// All kernels of a library; it stays loaded.
pub fn load(library: &Path) -> Result<Vec<&'static Kernel>, String> {
    let name = CString::new(library.to_string_lossy().as_bytes()).map_err(|e| e.to_string())?;
    unsafe {
        let handle = libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
        if handle.is_null() {
            return Err(CStr::from_ptr(libc::dlerror()).to_string_lossy().into_owned());
        }
        let mut at = libc::dlsym(handle, c"emu_kernels".as_ptr()).cast::<Kernel>();
        let mut all = Vec::new();
        while !at.is_null() && !(*at).name.is_null() {
            all.push(&*at);
            at = at.add(1);
        }
        Ok(all)
    }
}

/// "file:line" of an address in a loaded library.
pub fn line_of(pc: usize) -> String {
    unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        if libc::dladdr(pc as *const c_void, &mut info) == 0 {
            return "?".into();
        }
        let file = CStr::from_ptr(info.dli_fname).to_string_lossy().into_owned();
        let offset = format!("{:#x}", pc - info.dli_fbase as usize - 1);
        let said = Command::new("addr2line")
            .args(["-i", "-s", "-e", &file, &offset])
            .output()
            .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
            .unwrap_or_default();
        said.lines().map(|l| l.split(" (").next().unwrap_or(l)).collect::<Vec<_>>().join(" < ")
    }
}

struct Share(&'static Kernel, Launch);
// SAFETY: the launch's pointers outlive the run, which waits for all shares.
unsafe impl Send for Share {}

type Answer = (bool, String);

fn run_share(kernel: &Kernel, mut launch: Launch) -> Answer {
    let mut message = [0 as c_char; 256];
    launch.message = message.as_mut_ptr();
    // SAFETY: the runner of the same source tree.
    let failed = unsafe { (kernel.run)(&launch) } != 0;
    (failed, unsafe { CStr::from_ptr(message.as_ptr()) }.to_string_lossy().into_owned())
}

/// Runs all blocks of a launch on up to `threads` OS threads. `Err`: why it stopped.
pub fn run(kernel: &'static Kernel, launch: Launch, threads: usize) -> Result<(), String> {
    type Helper = (mpsc::Sender<Share>, Mutex<mpsc::Receiver<Answer>>);
    static HELPERS: OnceLock<Vec<Helper>> = OnceLock::new();
    let total = launch.grid.0 * launch.grid.1 * launch.grid.2;
    let parts = (threads as u32).min(total.div_ceil(4)).max(1);
    let helpers = HELPERS.get_or_init(|| {
        (1..threads)
            .map(|_| {
                let (send, work) = mpsc::channel::<Share>();
                let (answer, back) = mpsc::channel();
                std::thread::spawn(move || {
                    for Share(kernel, launch) in work {
                        if answer.send(run_share(kernel, launch)).is_err() {
                            break;
                        }
                    }
                });
                (send, Mutex::new(back))
            })
            .collect()
    });
    let part = |i: u32| {
        let (from, to) = (
            u64::from(total) * u64::from(i) / u64::from(parts),
            u64::from(total) * u64::from(i + 1) / u64::from(parts),
        );
        Launch { first_block: from as u32, blocks: (to - from) as u32, ..launch }
    };
    for i in 1..parts {
        helpers[i as usize - 1].0.send(Share(kernel, part(i))).expect("helper");
    }
    let mut answers = vec![run_share(kernel, part(0))];
    for i in 1..parts {
        answers.push(helpers[i as usize - 1].1.lock().expect("helper").recv().expect("helper"));
    }
    answers.into_iter().find(|a| a.0).map_or(Ok(()), |a| Err(a.1))
}
