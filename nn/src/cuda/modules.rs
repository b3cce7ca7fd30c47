//! Kernels, compiled where they run and kept on the disk.
//!
//! A source is compiled by NVRTC for the GPU at hand. Where the GPU is newer than NVRTC, its newest PTX is compiled instead, which
//! the driver translates. Sources are part of the library; while kernels are developed, `PREFGRAPH_KERNELS=<folder>` reads them from
//! a folder instead.

#![allow(unsafe_code, reason = "calls of NVRTC")]

use std::{
    borrow::Cow,
    ffi::{CStr, CString, c_char},
    fs,
    path::{Path, PathBuf},
};

use cudarc::nvrtc::{result, sys};

use super::driver::{GpuInfo, device_error};
use crate::{device::Precision, error::Result, files::read_regular, fnv::fnv1a};

/// Name and text.
type File = (&'static str, &'static str);

/// Kernels that are compiled together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    Pointwise,
    Norm,
    Heads,
    AttentionPlain,
    AttentionForward,
    AttentionBackward,
    AttentionWgmmaForward,
    AttentionWgmmaBackward,
    Optimizer,
    Scores,
    NormRows,
    NormRowsBackward,
    Windows,
    Factors,
}

impl Source {
    /// Name and text of its file.
    fn file(self) -> File {
        match self {
            Self::Pointwise => ("pointwise.cu", include_str!("../../kernels/pointwise.cu")),
            Self::Norm => ("norm.cu", include_str!("../../kernels/norm.cu")),
            Self::Heads => ("heads.cu", include_str!("../../kernels/heads.cu")),
            Self::AttentionPlain => ("attention_plain.cu", include_str!("../../kernels/attention_plain.cu")),
            Self::NormRows => ("norm_rows.cu", include_str!("../../kernels/norm_rows.cu")),
            Self::NormRowsBackward => {
                ("norm_rows_backward.cu", include_str!("../../kernels/norm_rows_backward.cu"))
            }
            Self::Windows => ("windows.cu", include_str!("../../kernels/windows.cu")),
            Self::AttentionForward => {
                ("attention_forward.cu", include_str!("../../kernels/attention_forward.cu"))
            }
            Self::AttentionBackward => {
                ("attention_backward.cu", include_str!("../../kernels/attention_backward.cu"))
            }
            Self::AttentionWgmmaForward => {
                ("attention_wgmma_forward.cu", include_str!("../../kernels/attention_wgmma_forward.cu"))
            }
            Self::AttentionWgmmaBackward => {
                ("attention_wgmma_backward.cu", include_str!("../../kernels/attention_wgmma_backward.cu"))
            }
            Self::Optimizer => ("optimizer.cu", include_str!("../../kernels/optimizer.cu")),
            Self::Factors => ("factors.cu", include_str!("../../kernels/factors.cu")),
            Self::Scores => ("scores.cu", include_str!("../../kernels/scores.cu")),
        }
    }

    /// Does it use what only one generation of GPUs has? Such a source is compiled for the very GPU (`sm_90a`), and for no other.
    fn is_for_one_generation(self) -> bool {
        matches!(self, Self::AttentionWgmmaForward | Self::AttentionWgmmaBackward)
    }
}

const HEADERS: [File; 5] = [
    ("device.cuh", include_str!("../../kernels/device.cuh")),
    ("values.cuh", include_str!("../../kernels/values.cuh")),
    ("sums.cuh", include_str!("../../kernels/sums.cuh")),
    ("tensor.cuh", include_str!("../../kernels/tensor.cuh")),
    ("wgmma.cuh", include_str!("../../kernels/wgmma.cuh")),
];

/// A tool for developing kernels: a folder whose sources are read in the place of those that were built in.
const OTHER_SOURCES: &str = "PREFGRAPH_KERNELS";

/// The text of a file: as built in, or of the folder that replaces it.
fn text_of((name, built_in): File) -> std::io::Result<Cow<'static, str>> {
    match std::env::var_os(OTHER_SOURCES) {
        Some(folder) => fs::read_to_string(Path::new(&folder).join(name)).map(Cow::Owned),
        None => Ok(Cow::Borrowed(built_in)),
    }
}

/// One text of a file and of the headers that it includes, each once, in their places.
fn assemble(name: &str, text: &str, seen: &mut Vec<String>) -> std::io::Result<String> {
    let mut all = format!("#line 1 \"{name}\"\n");
    for (number, line) in text.lines().enumerate() {
        let included = line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"'));
        match HEADERS.iter().find(|(header, _)| Some(*header) == included) {
            Some(header) => {
                if !seen.iter().any(|s| s == header.0) {
                    seen.push(header.0.to_owned());
                    all.push_str(&assemble(header.0, &text_of(*header)?, seen)?);
                }
                all.push_str(&format!("#line {} \"{name}\"\n", number + 2));
            }
            None if line == "#pragma once" => all.push('\n'),
            None => {
                all.push_str(line);
                all.push('\n');
            }
        }
    }
    Ok(all)
}

/// What the driver loads: machine code, or PTX with a zero at its end.
pub(super) type Image = Vec<u8>;

/// Capabilities that some NVRTC knows, for GPUs that are newer.
const KNOWN: [i32; 5] = [120, 100, 90, 89, 80];

/// The image of a source for a GPU.
///
/// # Errors
/// If NVRTC refuses the source: a defect of this library, or an NVRTC that is too old.
pub(super) fn image(source: Source, precision: Precision, gpu: &GpuInfo, cache: &Cache) -> Result<Image> {
    let (ordinal, capability) = (gpu.ordinal, 10 * gpu.capability.0 + gpu.capability.1);
    let name = source.file().0;
    let text = text_of(source.file())
        .and_then(|text| assemble(name, &text, &mut Vec::new()))
        .map_err(|e| device_error(ordinal, format!("{OTHER_SOURCES} has no {name}: {e}")))?;
    let mut version = (0, 0);
    // SAFETY: writes two numbers.
    unsafe { sys::nvrtcVersion(&raw mut version.0, &raw mut version.1) };
    let mut options = vec!["--std=c++17".to_owned(), "-lineinfo".to_owned()];
    if precision == Precision::Bf16 {
        options.push("-DACTIVATION_BF16".to_owned());
    }
    if gpu.capability.0 >= 10 {
        options.push("-DBLACKWELL".to_owned());
    }
    let key = key(&text, &options, version, gpu);
    if let Some(image) = cache.read(&key) {
        return Ok(image);
    }
    let one = source.is_for_one_generation();
    let machine = (format!("sm_{capability}{}", if one { "a" } else { "" }), true);
    let older = KNOWN.iter().filter(|k| **k < capability && !one).map(|k| (format!("compute_{k}"), false));
    let mut refused = String::new();
    for (architecture, machine_code) in std::iter::once(machine).chain(older) {
        let mut options = options.clone();
        options.push(format!("--gpu-architecture={architecture}"));
        match compile(name, &text, &options, machine_code) {
            Ok(image) => {
                cache.write(&key, &image);
                return Ok(image);
            }
            // NVRTC does not know the GPU: an older one's PTX will do.
            Err(log) if log.contains("--gpu-architecture") => refused = log,
            Err(log) => {
                return Err(device_error(
                    ordinal,
                    format!(
                        "NVRTC {}.{} does not compile {name} for {architecture}:\n{log}",
                        version.0, version.1
                    ),
                ));
            }
        }
    }
    Err(device_error(
        ordinal,
        format!("NVRTC {}.{} compiles for no GPU like this one: {refused}", version.0, version.1),
    ))
}

fn compile(name: &str, text: &str, options: &[String], machine_code: bool) -> Result<Image, String> {
    let source = CString::new(text).map_err(|e| e.to_string())?;
    let file = CString::new(name).map_err(|e| e.to_string())?;
    let program = result::create_program(&source, Some(&file)).map_err(|e| format!("{e:?}"))?;
    // SAFETY: the program lives until the end of this function, and the buffers have the lengths that NVRTC asks for.
    unsafe {
        let done = result::compile_program(program, options);
        let image = match done {
            Ok(()) if machine_code => {
                let mut bytes = 0;
                let mut image = Vec::new();
                let mut got = sys::nvrtcGetCUBINSize(program, &raw mut bytes).result();
                if got.is_ok() {
                    image = vec![0u8; bytes];
                    got = sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()).result();
                }
                got.map(|()| image).map_err(|e| format!("{e:?}"))
            }
            Ok(()) => result::get_ptx(program)
                .map(|ptx| ptx.iter().map(|c| c.cast_unsigned()).collect())
                .map_err(|e| format!("{e:?}")),
            Err(error) => Err(log(program).unwrap_or_else(|| format!("{error:?}"))),
        };
        let _ = result::destroy_program(program);
        image
    }
}

/// What the compiler said.
///
/// # Safety
/// The program lives.
unsafe fn log(program: sys::nvrtcProgram) -> Option<String> {
    // SAFETY: by the caller.
    let log: Vec<c_char> = unsafe { result::get_program_log(program) }.ok()?;
    let bytes: Vec<u8> = log.iter().map(|c| c.cast_unsigned()).collect();
    let text = CStr::from_bytes_until_nul(&bytes).ok()?.to_string_lossy().trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// By source, options, compiler and GPU.
fn key(text: &str, options: &[String], version: (i32, i32), gpu: &GpuInfo) -> String {
    let all = format!("{text}\0{}\0{version:?}\0{}\0{:?}", options.join(" "), gpu.name, gpu.capability);
    format!("{:016x}", fnv1a(all.as_bytes()))
}

/// Compiled kernels on the disk. One that cannot be read, or is not what was written, is compiled again; a folder that cannot be
/// written costs a compilation in every process.
#[derive(Clone, Debug, Default)]
pub(super) struct Cache(Option<PathBuf>);

impl Cache {
    /// `$PREFGRAPH_CACHE/kernels`, or else a folder of the user's cache; none where that is no absolute path.
    pub fn of_the_user() -> Self {
        let set = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let folder = set("PREFGRAPH_CACHE")
            .or_else(|| set("XDG_CACHE_HOME").map(|p| p.join("prefgraph")))
            .or_else(|| set("HOME").map(|p| p.join(".cache/prefgraph")));
        Self(folder.filter(|f| f.is_absolute()).map(|f| f.join("kernels")))
    }

    fn file(&self, key: &str) -> Option<PathBuf> {
        self.0.as_ref().map(|folder| folder.join(format!("{key}.kernel")))
    }

    /// An image after its [sum](sum).
    fn read(&self, key: &str) -> Option<Image> {
        let bytes = read_regular(&self.file(key)?).ok()?;
        let (head, image) = bytes.split_first_chunk::<8>()?;
        (u64::from_le_bytes(*head) == sum(key, image)).then(|| image.to_vec())
    }

    fn write(&self, key: &str, image: &[u8]) {
        let Some(file) = self.file(key) else { return };
        // Written beside and renamed: another process may read at the same time. Failing costs time only.
        let _ = write_beside(&file, sum(key, image), image);
    }
}

/// Of an image and of the key that it belongs to: a file under another's name is no image of that one.
fn sum(key: &str, image: &[u8]) -> u64 {
    fnv1a(&[key.as_bytes(), image].concat())
}

fn write_beside(file: &Path, sum: u64, image: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut new = tempfile::NamedTempFile::new_in(folder)?;
    std::io::Write::write_all(&mut new, &sum.to_le_bytes())?;
    std::io::Write::write_all(&mut new, image)?;
    new.persist(file)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_stand_once_in_the_place_of_their_includes() {
        let text =
            assemble("x.cu", "#include \"sums.cuh\"\n#include \"values.cuh\"\nint x;\n", &mut Vec::new())
                .unwrap();
        for header in ["device.cuh", "values.cuh", "sums.cuh"] {
            assert_eq!(text.matches(&format!("#line 1 \"{header}\"")).count(), 1, "{header}");
        }
        assert!(text.ends_with("#line 3 \"x.cu\"\nint x;\n"), "{text}");
        assert!(!text.contains("#include \"values.cuh\""));
    }

    #[test]
    fn a_damaged_kernel_of_the_cache_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache(Some(folder.path().join("kernels")));
        assert_eq!(cache.read("k"), None);
        cache.write("k", b"image");
        assert_eq!(cache.read("k").as_deref(), Some(&b"image"[..]));
        let file = cache.file("k").unwrap();
        let mut bytes = fs::read(&file).unwrap();
        bytes[10] ^= 1;
        fs::write(&file, bytes).unwrap();
        assert_eq!(cache.read("k"), None);
        // Whole, under another's name.
        cache.write("k", b"image");
        fs::rename(&file, cache.file("other").unwrap()).unwrap();
        assert_eq!(cache.read("other"), None);
    }
}
