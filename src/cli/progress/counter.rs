//! Progress of a counted task: a bar, or a line every few seconds.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use prefgraph_ops::words::count;

use super::draws_bars;
use crate::cli::{say::say, system};

/// How far something counted is.
pub(in crate::cli) struct Counter {
    bar: Option<ProgressBar>,
    what: &'static str,
    all: usize,
    began: Instant,
    told: Option<Instant>,
}

impl Counter {
    /// Up to `all`.
    pub fn new(what: &'static str, all: usize) -> Self {
        let bar = draws_bars().then(|| {
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
            say!("{}: {done} of {}{eta}", self.what, count(self.all, "sample"));
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
