//! Progress of a run: a bar and a line of numbers on a terminal, a growing table elsewhere.
//!
//! ```text
//!  numbers   what is shown of a step: means over the last steps
//!  counter   the progress of something that is counted
//! ```

mod counter;
mod numbers;

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use prefgraph_ops::ports::Metrics;

use self::numbers::{Cell, Numbers, SMOOTH, labelled, table};
use super::{say::say, system};

pub(super) use self::counter::Counter;

/// Lines from one line of titles to the next.
const TITLES_EVERY: u64 = 25;
/// What stands above the steps: what all other numbers are.
const TITLE: &str = "means of 20";
const _: () = assert!(SMOOTH == 20);
/// Mapped pages below this are not worth a word.
const MUCH: u64 = 1 << 28;

/// Is standard error a terminal that can be drawn on? Elsewhere lines follow one another.
pub(super) fn draws_bars() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// The progress of a run.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    steps: u64,
    every: u64,
    numbers: Numbers,
    /// Below the last titles.
    lines: u64,
    titles: String,
    told_mapped: bool,
}

impl Progress {
    /// From step `start` to `steps`; a line every so many steps where there is no terminal.
    pub fn new(start: u64, steps: u64, every: u64) -> Self {
        let bar = draws_bars().then(|| {
            let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
            let template = "{bar:24} {pos}/{len}  {prefix}  eta {eta}\n{wide_msg}";
            bar.set_style(
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar.set_position(start);
            bar.reset_eta();
            bar
        });
        Self {
            bar,
            steps,
            every: every.max(1),
            numbers: Numbers::default(),
            lines: 0,
            titles: String::new(),
            told_mapped: false,
        }
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
        self.numbers.push(step, metrics, seconds, data_seconds);
        self.mapped();
        let done = step + 1;
        match &self.bar {
            Some(bar) => {
                let update = self.numbers.update().map(|u| format!("update {u}  ")).unwrap_or_default();
                bar.set_prefix(format!("{update}{}", labelled(&self.numbers.costs())));
                bar.set_message(labelled(&self.numbers.metrics()));
                bar.set_position(done);
            }
            None if done.is_multiple_of(self.every) || done == self.steps => {
                let [titles, line] = table(&self.cells(done));
                // A metric may come later than others, such as the loss of the first whole update.
                let same = titles.split_whitespace().eq(self.titles.split_whitespace());
                if self.lines.is_multiple_of(TITLES_EVERY) || !same {
                    say!("{titles}");
                    (self.lines, self.titles) = (0, titles);
                }
                say!("{line}");
                self.lines += 1;
            }
            None => {}
        }
    }

    /// A line of the table.
    fn cells(&self, done: u64) -> Vec<Cell> {
        let width = "step /".len() + 2 * self.steps.to_string().len();
        let mut cells = vec![Cell::new(TITLE, format!("step {done}/{}", self.steps), width)];
        cells.extend(self.numbers.update().map(|u| Cell::new("update", u.to_string(), 6)));
        cells.extend(self.numbers.metrics());
        cells.extend(self.numbers.costs());
        let left = self.numbers.pace() * self.steps.saturating_sub(done) as f64;
        let left = if left > 0.0 { system::seconds(left) } else { "0 s".into() };
        cells.push(Cell::new("eta", left, 8));
        cells
    }

    /// Say once that a good part of the memory is no burden, if that is so.
    fn mapped(&mut self) {
        let (Some(peak), mapped) = (system::peak_memory(), system::mapped_memory().unwrap_or(0)) else {
            return;
        };
        if !self.told_mapped && is_much(peak, mapped) {
            self.told_mapped = true;
            self.say(&format!(
                "note: {} of the memory shown are pages of mapped files, which the system takes back when it needs them",
                system::bytes(mapped)
            ));
        }
    }

    /// The bar stays where it is.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

/// Are mapped pages a good part of the memory that is held?
fn is_much(peak: u64, mapped: u64) -> bool {
    mapped > (peak / 4).max(MUCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_mapped_files_are_told_apart_where_they_are_many() {
        let gib = 1 << 30;
        assert!(is_much(20 * gib, 13 * gib) && !is_much(20 * gib, gib) && !is_much(gib / 40, gib / 50));
    }

    #[test]
    fn updates_are_shown_apart_from_steps_where_they_differ() {
        let mut progress = Progress::new(0, 16, 1);
        let mut metrics = Metrics::default();
        metrics.number("loss", 0.5);
        metrics.number("update", 1.0);
        progress.numbers.push(0, &metrics, 1.0, 0.0);
        assert!(!table(&progress.cells(1))[0].contains("update"));
        progress.numbers.push(7, &metrics, 1.0, 0.0);
        let [titles, line] = table(&progress.cells(8));
        assert!(titles.contains("update") && line.starts_with("  step 8/16       1"), "{titles}\n{line}");
    }
}
