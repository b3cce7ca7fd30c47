//! The numbers on display: means over the last steps, as cells of a table.

use std::collections::BTreeMap;

use prefgraph_ops::ports::{Metric, Metrics};

use crate::cli::{recent::RecentValues, system};

/// Steps over which numbers are averaged: a batch is a few pairs at random times, and its loss alone says little.
pub(super) const SMOOTH: usize = 20;
/// Columns of a screen that a line may fill.
const COLUMNS: usize = 100;

/// How a number is shown.
#[derive(Clone, Copy)]
enum Form {
    /// Three digits that count.
    Plain,
    /// Two digits after the point: a share.
    Share,
    /// Two digits and the sign.
    Signed,
}

/// Metrics on the line, in its order: the key, its title, and its form.
const WATCHED: [(&str, &str, Form); 6] = [
    ("loss", "loss", Form::Plain),
    ("implicit_acc", "acc", Form::Share),
    (MARGIN, "margin", Form::Signed),
    ("w_diff", "w_diff", Form::Signed),
    ("l_diff", "l_diff", Form::Signed),
    // The papers' coverage is the share that was *not* found.
    ("coverage", "not found", Form::Share),
];
/// Not a metric, but the difference of two.
const MARGIN: &str = "l_diff - w_diff";
/// Shown where there is no pair to show.
const ALONE: (&str, &str, Form) = ("grad_norm", "grad", Form::Plain);

/// One number with its title.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    title: &'static str,
    text: String,
    /// Characters that it is given at least, so that lines stand below one another.
    width: usize,
}

impl Cell {
    pub fn new(title: &'static str, text: String, width: usize) -> Self {
        Self { title, text, width }
    }
}

/// The watched metrics over the last steps.
#[derive(Default)]
pub(super) struct Numbers {
    windows: BTreeMap<&'static str, RecentValues>,
    seconds: Option<RecentValues>,
    waiting: Option<RecentValues>,
    /// Updates so far, where a step is not one.
    update: Option<u64>,
    /// Is the loss that of whole updates?
    accumulated: bool,
}

impl Numbers {
    /// What a step has measured, how long it took, and how much of that it waited for data.
    pub fn push(&mut self, step: u64, metrics: &Metrics, seconds: f64, waiting: f64) {
        let mean = |name: &str| metrics.get(name).and_then(Metric::mean).filter(|x| x.is_finite());
        // Not every step says so: a log may be of every nth.
        let says_so = ["micro_batch", "update_loss"].iter().any(|name| metrics.get(name).is_some());
        if says_so && !self.accumulated {
            self.accumulated = true;
            self.windows.remove("loss");
        }
        for (key, ..) in WATCHED.into_iter().chain([ALONE]) {
            let value = match key {
                // Under accumulation, the loss and the gradient of whole updates.
                "loss" if self.accumulated => mean("update_loss"),
                "grad_norm" if mean("micro_batch") < mean("micro_batches") => None,
                MARGIN => mean("l_diff").zip(mean("w_diff")).map(|(l, w)| l - w),
                key => mean(key),
            };
            if let Some(value) = value {
                self.windows.entry(key).or_insert_with(|| RecentValues::new(SMOOTH)).push(value);
            }
        }
        self.seconds.get_or_insert_with(|| RecentValues::new(SMOOTH)).push(seconds);
        self.waiting.get_or_insert_with(|| RecentValues::new(SMOOTH)).push(waiting);
        if let Some(update) = mean("update") {
            self.update = Some(update as u64).filter(|update| *update != step + 1);
        }
    }

    fn value(window: Option<&RecentValues>) -> Option<f64> {
        window.and_then(RecentValues::mean).map(|m| m.value)
    }

    /// The mean of the last steps' seconds.
    pub fn pace(&self) -> f64 {
        Self::value(self.seconds.as_ref()).unwrap_or_default()
    }

    /// Updates so far, where a step is not one.
    pub fn update(&self) -> Option<u64> {
        self.update
    }

    /// The metrics that there are.
    pub fn metrics(&self) -> Vec<Cell> {
        let alone = !self.windows.contains_key("w_diff");
        let shown = WATCHED.into_iter().chain(alone.then_some(ALONE));
        shown
            .filter_map(|(key, title, form)| {
                let value = Self::value(self.windows.get(key))?;
                Some(match form {
                    Form::Plain => Cell::new(title, number(value), 6),
                    Form::Share => Cell::new(title, format!("{value:.2}"), 4),
                    Form::Signed => Cell::new(title, signed(value), 7),
                })
            })
            .collect()
    }

    /// How fast it goes, and what it takes.
    pub fn costs(&self) -> Vec<Cell> {
        let share = 100.0 * Self::value(self.waiting.as_ref()).unwrap_or_default() / self.pace().max(1e-9);
        let mut cells = vec![
            Cell::new("a step", system::seconds(self.pace()), 6),
            Cell::new("data", format!("{share:.0} %"), 4),
        ];
        cells.extend(system::peak_memory().map(|peak| Cell::new("memory", system::bytes(peak), 9)));
        cells
    }
}

/// The cells one below the other with those of other lines, and a line of titles for them; single spaces where that is too long.
pub(super) fn table(cells: &[Cell]) -> [String; 2] {
    let widths: Vec<usize> =
        cells.iter().map(|c| c.width.max(c.title.chars().count()).max(c.text.chars().count())).collect();
    let gaps = 2 * cells.len().saturating_sub(1);
    let gap = if widths.iter().sum::<usize>() + gaps > COLUMNS { " " } else { "  " };
    let line = |text: fn(&Cell) -> &str| -> String {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{:>width$}", text(cell)));
        padded.collect::<Vec<_>>().join(gap)
    };
    [line(|c| c.title), line(|c| &c.text)]
}

/// The same on one line by itself, with the titles before the numbers.
pub(super) fn labelled(cells: &[Cell]) -> String {
    cells.iter().map(|c| format!("{} {}", c.title, c.text)).collect::<Vec<_>>().join("  ")
}

/// Two digits and the sign; zero has none.
fn signed(x: f64) -> String {
    if x == 0.0 { "0".into() } else { format!("{x:+.1e}") }
}

/// Three digits that count, however large or small.
fn number(x: f64) -> String {
    let size = x.abs();
    match x {
        _ if x == 0.0 || !x.is_finite() => format!("{x}"),
        _ if (1e-2..1e4).contains(&size) => {
            let digits = 2 - libm::log10(size).floor() as i32;
            format!("{x:.*}", digits.clamp(0, 4) as usize)
        }
        _ => format!("{x:.1e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A step of FocusDPO.
    fn metrics(loss: f64) -> Metrics {
        let mut metrics = Metrics::default();
        metrics.number("loss", loss);
        metrics.per_sample("w_diff", vec![-1.5e-3, -0.5e-3]);
        metrics.per_sample("l_diff", vec![2e-3, 2e-3]);
        metrics.number("implicit_acc", 0.875);
        metrics.per_sample("coverage", vec![0.4, 0.42]);
        metrics.number("grad_norm", 12.5);
        metrics.number("update", 3.0);
        metrics
    }

    #[test]
    fn numbers_have_three_digits() {
        let shown: Vec<String> = [0.0, 0.123456, -12.3456, 1234.56, 1e-5, f64::NAN].map(number).into();
        assert_eq!(shown, ["0", "0.123", "-12.3", "1235", "1.0e-5", "NaN"]);
        assert_eq!([0.0, 1.26e-3, -2.0].map(signed), ["0", "+1.3e-3", "-2.0e0"]);
    }

    #[test]
    fn metrics_are_means_of_the_last_steps_with_the_margin_beside_the_signs_it_is_made_of() {
        let mut numbers = Numbers::default();
        numbers.push(0, &metrics(1.0), 1.0, 0.25);
        numbers.push(1, &metrics(0.5), 2.0, 0.25);
        let text = labelled(&numbers.metrics());
        assert_eq!(
            text,
            "loss 0.750  acc 0.88  margin +3.0e-3  w_diff -1.0e-3  l_diff +2.0e-3  not found 0.41"
        );
        assert!(labelled(&numbers.costs()).starts_with("a step 1.50 s  data 17 %"));
        // Three updates after two steps cannot be, but whoever says so is shown apart from the steps.
        assert_eq!(numbers.update(), Some(3));
        for _ in 0..SMOOTH {
            numbers.push(2, &metrics(0.25), 1.0, 0.0);
        }
        assert!(labelled(&numbers.metrics()).starts_with("loss 0.250"));
        assert_eq!(numbers.update(), None, "a step that is an update is not counted twice");
    }

    #[test]
    fn a_run_without_pairs_shows_its_gradient() {
        let mut alone = Metrics::default();
        alone.number("loss", 0.5);
        alone.number("grad_norm", 2.0);
        let mut numbers = Numbers::default();
        numbers.push(0, &alone, 1.0, 0.0);
        assert_eq!(labelled(&numbers.metrics()), "loss 0.500  grad 2.00");
    }

    #[test]
    fn under_accumulation_the_loss_and_the_gradient_are_those_of_whole_updates() {
        let mut numbers = Numbers::default();
        let mut step = |metrics: &[(&str, f64)]| {
            let mut all = Metrics::default();
            metrics.iter().for_each(|(name, value)| all.number(name, *value));
            numbers.push(0, &all, 1.0, 0.0);
            labelled(&numbers.metrics())
        };
        let first = [("loss", 9.0), ("grad_norm", 8.0), ("micro_batch", 1.0), ("micro_batches", 2.0)];
        assert_eq!(step(&first), "");
        let second = [
            ("loss", 1.0),
            ("grad_norm", 2.0),
            ("micro_batch", 2.0),
            ("micro_batches", 2.0),
            ("update_loss", 5.0),
        ];
        assert_eq!(step(&second), "loss 5.00  grad 2.00");
        // A step that the log leaves out.
        assert_eq!(step(&[("loss", 7.0)]), "loss 5.00  grad 2.00");
    }

    #[test]
    fn titles_stand_above_their_numbers_and_the_line_fits_a_hundred_columns() {
        let mut numbers = Numbers::default();
        numbers.push(199, &metrics(0.4), 0.2134, 0.001);
        for step in ["step 200/200", "step 16000/16000"] {
            let mut cells = vec![Cell::new("", step.into(), step.len())];
            cells.extend(numbers.metrics());
            cells.extend(numbers.costs());
            cells.push(Cell::new("eta", "12 min 34 s".into(), 8));
            let [titles, line] = table(&cells);
            assert_eq!(titles.chars().count(), line.chars().count());
            assert!(line.chars().count() <= COLUMNS, "{} columns: {line}", line.chars().count());
            let end = |text: &str, part: &str| text.find(part).unwrap() + part.len();
            assert_eq!(end(&titles, "w_diff"), end(&line, "-1.0e-3"));
        }
    }
}
