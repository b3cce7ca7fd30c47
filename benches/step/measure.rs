//! What a run of steps takes: seconds, memory, and how much of the time a GPU had nothing to do.

use std::time::{Duration, Instant};

use prefgraph::{RunError, Runner, run::TaskTime};
use prefgraph_nn::{cuda::Cuda, error::Result};

use crate::{gpu_use::GpuUse, graph::PASSES};

/// How many steps are timed.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Steps before.
    pub warmup: usize,
    /// The fewest that are timed.
    pub steps: usize,
    /// For how long at least.
    pub time: Duration,
}

/// What was measured.
#[derive(Debug)]
pub struct Measured {
    /// Of each step, in order of time.
    pub seconds: Vec<f64>,
    /// Of the last step.
    pub loss: f32,
    /// Share of the time in which the GPU ran no kernel, by the driver's own count.
    pub idle: Option<f64>,
    /// Share of the time in which no node was at work that uses the network: then a GPU can only be idle.
    pub without_pass: f64,
    /// Of the last step: each task, its lane, when it began after the step was asked for, and how long it took, in milliseconds.
    pub tasks: Vec<(String, usize, f64, f64)>,
}

impl Measured {
    /// The median of the steps, in seconds.
    pub fn median(&self) -> f64 {
        self.seconds[self.seconds.len() / 2]
    }
}

/// Run steps. `began` is when the runner was made, and `gpu` the number of the GPU that is watched.
pub fn measure(
    runner: &mut Runner,
    began: Instant,
    pace: Pace,
    gpu: Option<usize>,
) -> std::result::Result<Measured, RunError> {
    for _ in 0..pace.warmup {
        runner.step()?;
    }
    let watched = gpu.and_then(GpuUse::watch);
    let from = began.elapsed().as_secs_f64();
    let (mut seconds, mut loss, mut times) = (Vec::new(), f32::NAN, Vec::new());
    while seconds.len() < pace.steps.max(1) || began.elapsed().as_secs_f64() - from < pace.time.as_secs_f64()
    {
        let started = Instant::now();
        let output = runner.step()?;
        seconds.push(started.elapsed().as_secs_f64());
        loss = output.loss.unwrap_or(f32::NAN);
        times.extend(output.times);
    }
    let to = began.elapsed().as_secs_f64();
    let idle = watched.and_then(GpuUse::idle);
    // What has run ahead is told with its own step.
    let asked = began.elapsed().as_secs_f64();
    let last = runner.step()?.times;
    let milliseconds = |seconds: f64| (1e5 * seconds).round() / 1e2;
    let task = |t: &TaskTime| {
        let name = format!("{}, {}", runner.graph()[t.task.node()].id, t.task.direction());
        (name, t.lane, milliseconds(t.start - asked), milliseconds(t.seconds))
    };
    let tasks = last.iter().map(task).collect();
    times.extend(last);
    let passes: Vec<TaskTime> =
        times.into_iter().filter(|time| PASSES.contains(&&*runner.graph()[time.task.node()].id)).collect();
    seconds.sort_by(f64::total_cmp);
    Ok(Measured { seconds, loss, idle, without_pass: 1.0 - covered(&passes, from, to) / (to - from), tasks })
}

/// Seconds between two times in which at least one task ran.
fn covered(tasks: &[TaskTime], from: f64, to: f64) -> f64 {
    let mut spans: Vec<(f64, f64)> =
        tasks.iter().map(|t| (t.start.max(from), (t.start + t.seconds).min(to))).collect();
    spans.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut end = from;
    spans.into_iter().fold(0.0, |sum, (start, stop)| {
        let fresh = (stop - start.max(end)).max(0.0);
        end = end.max(stop);
        sum + fresh
    })
}

/// The most bytes that were held: of the GPU if there is one, else of this process.
pub fn peak_bytes(gpu: Option<&Cuda>) -> Result<u64> {
    if let Some(gpu) = gpu {
        return gpu.peak_memory();
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    Ok(line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok()).map_or(0, |kb| kb * 1024))
}
