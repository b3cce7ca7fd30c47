//! How far a run is: a bar on a terminal, a line every few steps elsewhere.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use prefgraph_ops::ports::{Metric, Metrics};

use super::{say::say, system};

/// Metrics that people watch: key in the record, and its name on the line.
const WATCHED: [(&str, &str); 6] = [
    ("loss", "loss"),
    ("logit", "logit"),
    ("margin", "margin"),
    ("implicit_acc", "acc"),
    ("coverage", "coverage"),
    ("grad_norm", "grad"),
];

/// The progress of a run.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    steps: u64,
    every: u64,
    /// Smoothed seconds a step, and those of them that were spent waiting for data.
    pace: Option<(f64, f64)>,
}

impl Progress {
    /// From step `start` to `steps`; `quiet` where standard output has the same numbers on the same terminal.
    pub fn new(start: u64, steps: u64, every: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
            let template = "{bar:24} {pos}/{len}  {msg}  eta {eta}";
            bar.set_style(
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar.set_position(start);
            bar.reset_eta();
            bar
        });
        Self { bar, steps, every: every.max(1), pace: None }
    }

    /// A sentence for people, above the bar if there is one.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say!("{text}")),
            None => say!("{text}"),
        }
    }

    /// A step has finished.
    pub fn step(&mut self, step: u64, metrics: &Metrics, seconds: f64, data_seconds: f64) {
        const OLD: f64 = 0.8;
        let (all, data) = self.pace.unwrap_or((seconds, data_seconds));
        let pace = (OLD * all + (1.0 - OLD) * seconds, OLD * data + (1.0 - OLD) * data_seconds);
        self.pace = Some(pace);
        let line = line(metrics, pace);
        match &self.bar {
            Some(bar) => {
                bar.set_message(line);
                bar.set_position(step + 1);
            }
            None if (step + 1).is_multiple_of(self.every) || step + 1 == self.steps => {
                let left = pace.0 * self.steps.saturating_sub(step + 1) as f64;
                say!("step {}/{}  {line}  eta {}", step + 1, self.steps, system::seconds(left));
            }
            None => {}
        }
    }

    /// The bar stays where it is.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

/// The progress of something that is counted: a bar, or a line every few seconds.
pub(super) struct Counter {
    bar: Option<ProgressBar>,
    what: &'static str,
    all: usize,
    began: Instant,
    told: Option<Instant>,
}

impl Counter {
    /// Up to `all`.
    pub fn new(what: &'static str, all: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(all as u64), ProgressDrawTarget::stderr());
            let template = "{msg} {bar:24} {pos}/{len}  eta {eta}";
            bar.set_style(
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar.set_message(what);
            bar
        });
        Self { bar, what, all, began: Instant::now(), told: None }
    }

    /// So many are done.
    pub fn at(&mut self, done: usize) {
        const EVERY: Duration = Duration::from_secs(5);
        if let Some(bar) = &self.bar {
            bar.set_position(done as u64);
        } else if self.told.is_none_or(|told| told.elapsed() >= EVERY) || done == self.all {
            let left = self.began.elapsed().as_secs_f64() / done.max(1) as f64 * (self.all - done) as f64;
            let eta = if done == 0 { String::new() } else { format!("  eta {}", system::seconds(left)) };
            say!("{}: {done} of {} samples{eta}", self.what, self.all);
            self.told = Some(Instant::now());
        }
    }

    /// The bar stays where it is.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

fn line(metrics: &Metrics, (seconds, data): (f64, f64)) -> String {
    let mut parts = Vec::new();
    for (key, name) in WATCHED {
        if let Some(value) = metrics.get(key).and_then(Metric::mean) {
            parts.push(format!("{name} {}", number(value)));
        }
    }
    parts.push(format!("{}/step (data {})", system::seconds(seconds), system::seconds(data)));
    parts.extend(system::peak_memory().map(|peak| memory(peak, system::mapped_memory().unwrap_or(0))));
    parts.join("  ")
}

/// The most memory that was held, and how much of it is no burden, if that is a good part.
fn memory(peak: u64, mapped: u64) -> String {
    match system::bytes(peak) {
        peak_text if mapped > peak / 4 => format!("{peak_text} ({} of mapped files)", system::bytes(mapped)),
        peak_text => peak_text,
    }
}

/// Four significant digits, however large or small.
fn number(x: f64) -> String {
    let size = x.abs();
    match x {
        _ if x == 0.0 || !x.is_finite() => format!("{x}"),
        _ if (1e-3..1e4).contains(&size) => {
            let digits = 3 - libm::log10(size).floor() as i32;
            format!("{x:.*}", digits.clamp(0, 6) as usize)
        }
        _ => format!("{x:.2e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_four_digits() {
        let shown: Vec<String> = [0.0, 0.123456, -12.3456, 1234.56, 1e-5, f64::NAN].map(number).into();
        assert_eq!(shown, ["0", "0.1235", "-12.35", "1235", "1.00e-5", "NaN"]);
    }

    #[test]
    fn pages_of_mapped_files_are_told_apart_where_they_are_many() {
        let gib = 1 << 30;
        assert_eq!(memory(20 * gib, 13 * gib), "20.0 GiB (13.0 GiB of mapped files)");
        assert_eq!(memory(20 * gib, gib), "20.0 GiB");
    }

    #[test]
    fn the_line_shows_what_there_is() {
        let mut metrics = Metrics::default();
        metrics.per_sample("logit", vec![1.0, 2.0]);
        metrics.number("loss", 0.5);
        let text = line(&metrics, (1.5, 0.02));
        assert!(text.starts_with("loss 0.5000  logit 1.500  1.50 s/step (data 20.0 ms)"), "{text}");
    }
}
