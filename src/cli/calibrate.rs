//! The speed of this machine and of its GPUs: measured in a few seconds, and kept for the next time.
//!
//! The rates are kept by processor, threads and build, in `prefgraph/rates.json` in the user's cache folder
//! (`$XDG_CACHE_HOME`, else `~/.cache`). They serve forecasts only: no result depends on them.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant, UNIX_EPOCH},
};

use prefgraph_nn::{
    Cpu, Result,
    cpu::{Gemm, Left, Matrix, Packed, Precision, gemm},
    cuda::Cuda,
    device::{self, Device, Direction, Kind, Queue, View, ViewMut},
    files::{read_regular, write_atomically},
};
use serde::{Deserialize, Serialize};

use super::{Failure, say::say};
use crate::plan::Rates;

/// What rates belong to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Machine {
    processor: String,
    threads: usize,
    build: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Measured {
    machine: Machine,
    flops: f64,
    flops_bf16: f64,
    bytes: f64,
}

/// The share of the product kernel's rate that a whole pass reaches: it spends two thirds of its time there
/// (docs/performance.md).
const SHARE: f64 = 0.67;

/// Most machines that are kept, e.g. of a home folder that many share.
const KEPT: usize = 32;

/// The rates of this machine with so many threads (0 is one a core): the kept ones, or new ones where there are none or `again`
/// is said.
///
/// # Errors
/// If the system gives no threads.
pub(super) fn rates(threads: usize, again: bool) -> Result<Rates, Failure> {
    let cpu = Cpu::new(threads).map_err(Failure::new)?;
    let machine = Machine { processor: processor(), threads: cpu.threads(), build: build() };
    let file = file();
    let all = file.as_deref().map(read).unwrap_or_default();
    if let Some(found) = all.iter().find(|m| m.machine == machine).filter(|_| !again) {
        return Ok(found.rates());
    }
    let measured = measure(&cpu, machine);
    if let Some(file) = file
        && let Err(e) = keep(&file, all, measured.clone())
    {
        say!("note: the rates of this machine cannot be kept in `{}`: {e}", file.display());
    }
    Ok(measured.rates())
}

/// The rates of the GPU of this name, likewise; none of the processor, and none of a GPU that is not here.
///
/// # Errors
/// If the GPU is here and fails.
pub(super) fn gpu_rates(device: &str, again: bool) -> Result<Option<Rates>, Failure> {
    if super::device::memory(device).is_none() {
        return Ok(None);
    }
    let Some(gpu) = super::device::open(device)? else { return Ok(None) };
    let machine = Machine { processor: gpu.info().name.clone(), threads: 0, build: build() };
    let file = file();
    let all = file.as_deref().map(read).unwrap_or_default();
    if let Some(found) = all.iter().find(|m| m.machine == machine).filter(|_| !again) {
        return Ok(Some(found.gpu_rates()));
    }
    let [flops, flops_bf16] = [Precision::F32, Precision::Bf16].map(|precision| gpu_product(&gpu, precision));
    let (flops, flops_bf16) = (flops.map_err(Failure::new)?, flops_bf16.map_err(Failure::new)?);
    let bytes = gpu_copy(&gpu).map_err(Failure::new)?;
    let measured = Measured { machine, flops, flops_bf16, bytes };
    if let Some(file) = file
        && let Err(e) = keep(&file, all, measured.clone())
    {
        say!("note: the rates of {device} cannot be kept in `{}`: {e}", file.display());
    }
    Ok(Some(measured.gpu_rates()))
}

impl Measured {
    /// As they are: which share of them a pass reaches on a GPU, nobody has measured.
    fn gpu_rates(&self) -> Rates {
        Rates { flops: self.flops, flops_bf16: self.flops_bf16, bytes: self.bytes, ..Rates::default() }
    }

    fn rates(&self) -> Rates {
        Rates {
            flops: self.flops * SHARE,
            flops_bf16: self.flops_bf16 * SHARE,
            bytes: self.bytes,
            ..Rates::default()
        }
    }

    fn is_possible(&self) -> bool {
        [self.flops, self.flops_bf16, self.bytes].iter().all(|rate| (1e6..1e18).contains(rate))
    }
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

/// This very program: another one may be compiled otherwise.
fn build() -> String {
    let file = std::env::current_exe().and_then(fs::metadata);
    let stamp = file
        .ok()
        .and_then(|m| Some((m.len(), m.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_secs())));
    let (length, seconds) = stamp.unwrap_or_default();
    format!("{} {length} {seconds}", env!("CARGO_PKG_VERSION"))
}

fn file() -> Option<PathBuf> {
    let stated = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let folder =
        stated.or_else(|| Some(std::env::home_dir()?.join(".cache")).filter(|path| path.is_absolute()));
    Some(folder?.join("prefgraph").join("rates.json"))
}

/// What is kept; nothing where it cannot be read: it is only a cache.
fn read(path: &Path) -> Vec<Measured> {
    let all = read_regular(path).ok().and_then(|text| serde_json::from_slice::<Vec<Measured>>(&text).ok());
    all.unwrap_or_default().into_iter().filter(Measured::is_possible).collect()
}

fn keep(path: &Path, mut all: Vec<Measured>, measured: Measured) -> io::Result<()> {
    let (machine, threads) = (&measured.machine.processor, measured.machine.threads);
    // An older build is gone.
    all.retain(|m| (&m.machine.processor, m.machine.threads) != (machine, threads));
    all.push(measured);
    let surplus = all.len().saturating_sub(KEPT);
    all.drain(..surplus);
    fs::create_dir_all(path.parent().unwrap_or(Path::new("")))?;
    write_atomically(path, &serde_json::to_vec_pretty(&all)?).map_err(io::Error::other)
}

fn measure(cpu: &Cpu, machine: Machine) -> Measured {
    let [flops, flops_bf16] = [Precision::F32, Precision::Bf16].map(|precision| product(cpu, precision));
    Measured { machine, flops, flops_bf16, bytes: copy() }
}

/// Calls a second, of the fastest call: others share the machine.
fn fastest(mut call: impl FnMut()) -> f64 {
    const LEAST: usize = 3;
    const LONG: Duration = Duration::from_millis(300);
    call();
    let (begun, mut best, mut calls) = (Instant::now(), Duration::MAX, 0);
    while calls < LEAST || begun.elapsed() < LONG {
        let start = Instant::now();
        call();
        best = best.min(start.elapsed());
        calls += 1;
    }
    1.0 / best.as_secs_f64().max(1e-9)
}

/// Floating-point operations a second of the product kernel.
fn product(cpu: &Cpu, precision: Precision) -> f64 {
    const M: usize = 512;
    const K: usize = 1024;
    const N: usize = 512;
    let values = |n: usize| (0..n).map(|i| (i * 7919 % 1009) as f32 / 1009.0 - 0.5).collect::<Vec<f32>>();
    let (x, weight, mut out) = (values(M * K), values(K * N), vec![0.0; M * N]);
    let packed = Packed::from_matrix(cpu, precision, &Matrix::of(&weight, K, N));
    let calls = fastest(|| {
        let out = &mut out[..];
        let call = Gemm {
            m: M,
            x: Left::Rows(&x, K),
            weight: &packed,
            extra: None,
            bias: None,
            accumulate: false,
            out,
            out_stride: N,
        };
        gemm(cpu, call);
    });
    calls * (2 * M * K * N) as f64
}

/// Bytes a second that one core reads and writes.
fn copy() -> f64 {
    // More than the caches of a core.
    const BYTES: usize = 64 << 20;
    let (from, mut to) = (vec![1u8; BYTES], vec![0u8; BYTES]);
    fastest(|| std::hint::black_box(&mut to).copy_from_slice(std::hint::black_box(&from)))
        * (2 * BYTES) as f64
}

/// Calls a second of work, and its size: doubled until a call takes so long that asking for it does not count, or until it is as
/// large as what passes do. `prepare` makes the work of a size, `call` does it and waits.
fn growing<W>(
    (mut size, most): (usize, usize),
    prepare: impl Fn(usize) -> Result<W>,
    call: impl Fn(&mut W) -> Result<()>,
) -> Result<(usize, f64)> {
    const LONG: Duration = Duration::from_millis(2);
    loop {
        let mut work = prepare(size)?;
        call(&mut work)?;
        let start = Instant::now();
        call(&mut work)?;
        if start.elapsed() >= LONG || size >= most {
            let mut failed = None;
            let calls = fastest(|| failed = failed.take().or_else(|| call(&mut work).err()));
            return failed.map_or(Ok((size, calls)), Err);
        }
        size *= 2;
    }
}

/// Floating-point operations a second of a GPU's products of square matrices.
fn gpu_product(gpu: &Cuda, precision: Precision) -> Result<f64> {
    let queue = gpu.queue(precision)?;
    let prepare = |side: usize| {
        let values: Vec<f32> = (0..side * side).map(|i| (i * 7919 % 1009) as f32 / 1009.0 - 0.5).collect();
        let matrix = Matrix::of(&values, side, side);
        let weight = gpu.frozen(&matrix, None, Direction::Forward, precision, false)?;
        let [x, out] = [&values, &values].map(|values| queue.upload(values, Kind::Activation));
        Ok((side, weight, x, out))
    };
    let (side, calls) = growing((128, 4096), prepare, |(side, weight, x, out)| {
        queue.gemm(device::Gemm {
            m: *side,
            x: View::new(x, *side).into(),
            weight,
            direction: Direction::Forward,
            extra: None,
            bias: None,
            accumulate: false,
            out: ViewMut::new(out, *side),
        });
        queue.finish()
    })?;
    Ok(calls * 2.0 * (side as f64).powi(3))
}

/// Bytes a second that a GPU reads and writes.
fn gpu_copy(gpu: &Cuda) -> Result<f64> {
    let queue = gpu.queue(Precision::F32)?;
    let prepare = |values: usize| {
        let [from, to] = [(); 2].map(|()| queue.zeros(values, Kind::Exact));
        Ok((values, from, to))
    };
    let (values, calls) = growing((1 << 20, 1 << 28), prepare, |(values, from, to)| {
        queue.copy_to(View::new(from, *values), *values, ViewMut::new(to, *values));
        queue.finish()
    })?;
    Ok(calls * (2 * values * size_of::<f32>()) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(processor: &str, threads: usize, build: &str) -> Measured {
        let machine = Machine { processor: processor.into(), threads, build: build.into() };
        Measured { machine, flops: 1e9, flops_bf16: 2e9, bytes: 3e9 }
    }

    #[test]
    fn rates_are_kept_by_processor_threads_and_build() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/rates.json");
        for m in [measured("x", 2, "1"), measured("x", 4, "1"), measured("y", 2, "1"), measured("x", 2, "2")]
        {
            keep(&path, read(&path), m).unwrap();
        }
        let kept: Vec<Machine> = read(&path).into_iter().map(|m| m.machine).collect();
        let expected =
            [measured("x", 4, "1"), measured("y", 2, "1"), measured("x", 2, "2")].map(|m| m.machine);
        assert_eq!(kept, expected, "an older build of the same machine is gone");
        for broken in ["", "[", "[{\"machine\": 1}]"] {
            fs::write(&path, broken).unwrap();
            assert!(read(&path).is_empty());
        }
        let zero = Measured { flops: 0.0, ..measured("x", 1, "1") };
        fs::write(&path, serde_json::to_vec(&[zero]).unwrap()).unwrap();
        assert!(read(&path).is_empty(), "no forecast divides by it");
    }

    #[test]
    fn a_measurement_gives_possible_rates() {
        let machine = measured("x", 1, "1").machine;
        let found = measure(&Cpu::new(1).unwrap(), machine);
        assert!(found.is_possible() && found.flops > 1e8 && found.bytes > 1e7, "{found:?}");
        assert_eq!(found.rates().flops, found.flops * SHARE);
    }
}
