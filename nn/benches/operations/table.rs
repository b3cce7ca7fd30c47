//! Times, rates, and the share of what the device can do at most.

use std::time::Instant;

use prefgraph_nn::{
    device::{Direction, Gemm, Kind, Matrix, Precision, Queue, View, ViewMut},
    error::Result,
};

use crate::{cases::numbers::numbers, place::Place};

/// Runs of which the median is taken, after two that are not counted.
const RUNS: usize = 5;
/// A run repeats an operation until it lasts as long, so that what starts and ends it does not count.
const SECONDS_OF_A_RUN: f64 = 5e-3;
const MOST_REPEATS: usize = 200;

/// What an operation has to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Bytes read and written, each once.
    pub bytes: usize,
    /// Multiplications and additions.
    pub flops: usize,
}

/// A device at work, and what it can do at most.
pub struct Table<D: Place> {
    pub device: D,
    pub queue: D::Queue,
    pub precision: Precision,
    small: bool,
    /// Of a large copy, in bytes a second.
    bandwidth: f64,
    /// Of a large product, in operations a second.
    peak: f64,
}

impl<D: Place> Table<D> {
    /// Measures bandwidth and peak, and prints the head of the table.
    pub fn begin(device: &D, precision: Precision, small: bool) -> Result<Self> {
        let queue = device.queue(precision)?;
        let mut table = Self {
            device: device.clone(),
            queue,
            precision,
            small,
            bandwidth: f64::INFINITY,
            peak: f64::INFINITY,
        };
        table.bandwidth = table.measured_bandwidth()?;
        table.peak = table.measured_peak()?;
        println!(
            "{} in {precision:?}: a large copy {:.1} GB/s, a large product {:.2} TFLOP/s",
            device.title(),
            table.bandwidth / 1e9,
            table.peak / 1e12
        );
        println!(
            "{:<34} {:<26} {:>12} {:>10} {:>14} {:>7}",
            "operation", "shape", "time", "GB/s", "TFLOP/s", "roof"
        );
        Ok(table)
    }

    fn measured_bandwidth(&self) -> Result<f64> {
        let len = if self.small { 1 << 16 } else { D::COPIED / 4 };
        let (x, mut y) = (self.queue.zeros(len, Kind::Exact), self.queue.zeros(len, Kind::Exact));
        let time = self.time(|queue| queue.copy_to(View::new(&x, len), len, ViewMut::new(&mut y, len)))?;
        Ok((2 * 4 * len) as f64 / time)
    }

    fn measured_peak(&self) -> Result<f64> {
        let side = if self.small { 64 } else { D::PEAK_SIDE };
        let weight = self.frozen(side, side, Direction::Forward)?;
        let x = self.activations(side * side, 2);
        let mut out = self.queue.take(side * side, Kind::Activation);
        let time = self.time(|queue| {
            queue.gemm(Gemm {
                m: side,
                x: View::new(&x, side).into(),
                weight: &weight,
                direction: Direction::Forward,
                extra: None,
                bias: None,
                accumulate: false,
                out: ViewMut::new(&mut out, side),
            });
        })?;
        Ok((2 * side * side * side) as f64 / time)
    }

    /// A frozen matrix `[N, K]`.
    pub fn frozen(&self, n: usize, k: usize, direction: Direction) -> Result<D::Matrix> {
        self.device.frozen(&Matrix::of(&numbers(n * k, 1), n, k), None, direction, self.precision, false)
    }

    /// Activations with the numbers of a seed.
    pub fn activations(&self, len: usize, seed: u64) -> D::Buffer {
        self.queue.upload(&numbers(len, seed), Kind::Activation)
    }

    /// f32 values with the numbers of a seed.
    pub fn exact(&self, len: usize, seed: u64) -> D::Buffer {
        self.queue.upload(&numbers(len, seed), Kind::Exact)
    }

    /// Bytes of so many activations and f32 values.
    pub fn bytes(&self, activations: usize, exact: usize) -> usize {
        activations * D::bytes(Kind::Activation, self.precision)
            + exact * D::bytes(Kind::Exact, self.precision)
    }

    /// Seconds of one call: the median of several runs.
    fn time(&self, mut call: impl FnMut(&D::Queue)) -> Result<f64> {
        let mut run = |repeats: usize| -> Result<f64> {
            let begun = Instant::now();
            for _ in 0..repeats {
                call(&self.queue);
            }
            self.queue.finish()?;
            Ok(begun.elapsed().as_secs_f64() / repeats as f64)
        };
        // The first one compiles kernels.
        run(1)?;
        let once = run(1)?;
        let repeats =
            if self.small { 1 } else { ((SECONDS_OF_A_RUN / once) as usize).clamp(1, MOST_REPEATS) };
        let mut times = (0..RUNS).map(|_| run(repeats)).collect::<Result<Vec<f64>>>()?;
        times.sort_by(f64::total_cmp);
        Ok(times[RUNS / 2])
    }

    /// Times an operation and prints its row.
    pub fn row(&self, name: &str, shape: &str, work: Work, call: impl FnMut(&D::Queue)) -> Result<()> {
        let time = self.time(call)?;
        let roof = (work.bytes as f64 / self.bandwidth).max(work.flops as f64 / self.peak);
        let rate = |amount: usize, unit: f64| match amount {
            0 => "-".to_owned(),
            amount => format!("{:.2}", amount as f64 / time / unit),
        };
        // Of small shapes the share would mean nothing.
        let share = if self.small { "-".to_owned() } else { format!("{:.0} %", 100.0 * roof / time) };
        println!(
            "{name:<34} {shape:<26} {:>9.4} ms {:>10} {:>14} {share:>7}",
            1e3 * time,
            rate(work.bytes, 1e9),
            rate(work.flops, 1e12),
        );
        Ok(())
    }
}
