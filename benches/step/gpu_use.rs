//! How busy a GPU is, as the driver counts: `nvidia-smi` tells in how much of its last sample period a kernel ran.
//!
//! A sample period is a sixth of a second to a second, so that a figure needs seconds of steps. Where there is no `nvidia-smi`,
//! nothing is told.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// What came before is in the first samples.
const SETTLING: Duration = Duration::from_secs(1);
/// The fewest samples that make a figure.
const FEWEST: usize = 10;

/// A GPU that is watched.
pub struct GpuUse {
    process: Child,
    samples: JoinHandle<Vec<f64>>,
}

impl GpuUse {
    /// Watch the GPU of this number from now on.
    pub fn watch(ordinal: usize) -> Option<Self> {
        let mut process = Command::new("nvidia-smi")
            .arg(format!("--id={ordinal}"))
            .args(["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=100"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let lines = BufReader::new(process.stdout.take()?).lines();
        let began = Instant::now();
        let samples = std::thread::spawn(move || {
            let timed = lines.map_while(Result::ok).map(|line| (began.elapsed(), line));
            timed.filter(|(at, _)| *at >= SETTLING).filter_map(|(_, line)| line.trim().parse().ok()).collect()
        });
        Some(Self { process, samples })
    }

    /// The share of the time in which no kernel ran; nothing where it was watched too briefly.
    pub fn idle(mut self) -> Option<f64> {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let samples = self.samples.join().ok()?;
        let mean = samples.iter().sum::<f64>() / samples.len().max(1) as f64;
        (samples.len() >= FEWEST).then_some(1.0 - mean / 100.0)
    }
}
