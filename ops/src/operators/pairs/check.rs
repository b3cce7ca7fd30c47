//! Decodes every sample once, before a run: statistics of a data set, and its faults.

use std::{collections::BTreeMap, num::NonZero, path::Path, thread};

use super::{
    geometry::{CELL, kept},
    lines,
    picture::{Foreground, Rgb},
    row::{BadRow, Row},
    sample::{cells_of, mask_of},
    select::{no_samples, selected, with_losers},
    settings::{PairsSettings, Size, WithoutLoser, grid},
    words,
};
use crate::{guard, settings::DataPath, words::count};

/// What [`check`] found. Lines are numbers of lines in the file, from 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Samples that can be used.
    pub good: usize,
    /// Lines and samples that cannot, in the order of the file.
    pub bad: Vec<BadRow>,
    /// Samples that the settings of the checked run leave out.
    pub left_out: usize,
    /// Usable samples by number of references.
    pub references: BTreeMap<usize, usize>,
    /// Lines of usable samples without references.
    pub without_references: Vec<usize>,
    /// Winners by (height, width).
    pub sizes: BTreeMap<(usize, usize), usize>,
    /// Usable samples without a prior.
    pub without_prior: usize,
    /// References without a mask.
    pub without_mask: usize,
    /// Priors by the tenth of the picture that they cover: `[0, 0.1)`, ..., `[0.9, 1]`.
    pub coverage: [usize; 10],
    /// Lines of usable samples with a prior that covers all of the winner.
    pub whole_priors: Vec<usize>,
    /// Lines of samples with a prior that covers next to nothing of the winner: less than two cells of a run's focus grid, or 1 %.
    pub tiny_priors: Vec<usize>,
    /// Lines of usable samples whose winner and loser have the same pixels.
    pub identical: Vec<usize>,
    /// Lines of usable samples without a loser.
    pub without_loser: Vec<usize>,
    /// Lines of usable samples with a reference that has the pixels of the winner.
    pub own_references: Vec<usize>,
    /// Lines of samples with a prior that looks like everything but the subject.
    pub inverted_priors: Vec<usize>,
    /// Lines of samples of whose winner a run cuts off more than a quarter.
    pub cut: Vec<usize>,
    /// Lines of usable samples with a picture that EXIF turns and a mask that it does not.
    pub turned: Vec<usize>,
    /// Groups, by number of references, with fewer usable samples than a batch of the checked run takes.
    pub below_batch: BTreeMap<usize, usize>,
    /// Why a run would refuse the data as a whole, if it would.
    pub refusal: Option<String>,
    /// Are the data looked at as a run would?
    of_run: bool,
}

/// A prior that covers less of a winner is hardly a cell, where no run says how large its cells are.
const TINY: f64 = 0.01;
/// The same where a run does, in cells.
const TINY_CELLS: f64 = 2.0;

/// The least share of a winner that a crop should leave.
const LEAST_KEPT: f64 = 0.75;

fn has_pixels_of(a: &Rgb, b: &Rgb) -> bool {
    (a.height, a.width, &a.rgb) == (b.height, b.width, &b.rgb)
}

/// What one sample adds to a report.
struct Sample {
    size: Size,
    shares: Vec<f64>,
    tiny: bool,
    inverted: bool,
    own_reference: bool,
    cut: bool,
    identical: bool,
    turned: bool,
}

/// How a sample is looked at.
struct Reader {
    max_pixels: usize,
    /// Sizes of winner and reference in the run that is to read it, if there is one.
    sizes: Option<(Size, Size)>,
    /// The share of a winner below which a prior is hardly a cell.
    tiny: f64,
}

impl Reader {
    fn picture(&self, path: &Path) -> Result<Rgb, String> {
        Rgb::open(path, self.max_pixels)
    }

    /// A mask, which must leave foreground where a run would cut it to `size`.
    fn mask(&self, path: &Path, picture: &Rgb, size: Option<Size>) -> Result<Foreground, String> {
        let mask = mask_of(path, picture, self.max_pixels)?;
        if let Some(size) = size {
            cells_of(path, &mask, size, CELL)?;
        }
        Ok(mask)
    }

    fn read(&self, row: &Row) -> Result<Sample, String> {
        let (size, reference_size) = self.sizes.unzip();
        let winner = self.picture(&row.winner)?;
        let loser = self.picture(row.loser())?;
        let (mut turned, mut inverted, mut own_reference) = (false, false, false);
        let mut shares = Vec::with_capacity(row.priors.len());
        for prior in &row.priors {
            let mask = self.mask(prior, &winner, size)?;
            turned |= winner.turned && !mask.turned;
            inverted |= mask.looks_inverted();
            shares.push(mask.share());
        }
        for prior in &row.loser_priors {
            // Training does not read it, so that what a run would cut off does not count.
            let mask = self.mask(prior, &loser, None)?;
            turned |= loser.turned && !mask.turned;
        }
        for reference in &row.references {
            let picture = self.picture(&reference.image)?;
            own_reference |= has_pixels_of(&picture, &winner);
            if let Some(mask) = &reference.mask {
                let mask = self.mask(mask, &picture, reference_size)?;
                turned |= picture.turned && !mask.turned;
            }
        }
        let tiny = shares.iter().any(|share| *share < self.tiny);
        let own = (winner.height, winner.width);
        let cut = size.is_some_and(|size| kept(own, size) < LEAST_KEPT);
        let identical = row.loser.is_some() && has_pixels_of(&loser, &winner);
        Ok(Sample { size: own, shares, tiny, inverted, own_reference, cut, identical, turned })
    }

    /// Every row, in order, on all processors.
    fn read_all<'a>(&self, rows: &'a [Row]) -> Vec<(&'a Row, Result<Sample, String>)> {
        let workers = thread::available_parallelism().map_or(1, NonZero::get);
        let share = rows.len().div_ceil(workers).max(1);
        let guarded = |row: &Row| guard::reason(|| self.read(row));
        let run = |rows: &'a [Row]| rows.iter().map(|row| (row, guarded(row))).collect::<Vec<_>>();
        thread::scope(|scope| {
            let parts: Vec<_> =
                rows.chunks(share).map(|rows| (rows, scope.spawn(move || run(rows)))).collect();
            let lost = |row| (row, Err("internal error, please report it: a thread ended early".to_owned()));
            let done = parts
                .into_iter()
                .map(|(rows, part)| part.join().unwrap_or_else(|_| rows.iter().map(lost).collect()));
            done.flatten().collect()
        })
    }
}

/// Decode every picture and mask of a `pairs.jsonl`, or of a folder that holds one.
///
/// # Errors
/// If the file itself cannot be read, or is of another kind.
pub fn check(path: &Path, max_pixels: usize) -> Result<Report, String> {
    // Whether a run wants losers only its graph knows.
    let without_loser = WithoutLoser::Winner;
    let path = DataPath(path.to_owned());
    let settings = PairsSettings { path, max_pixels, without_loser, ..PairsSettings::default() };
    report(&settings, None)
}

/// Decode what a run with these settings would read, and look at it as that run would.
///
/// # Errors
/// If the settings are refused, whatever the data are, and as [`check`].
pub fn check_settings(settings: &PairsSettings) -> Result<Report, String> {
    settings.check().map_err(|e| e.to_string())?;
    report(settings, Some((settings.size(), settings.reference_size())))
}

fn report(settings: &PairsSettings, sizes: Option<(Size, Size)>) -> Result<Report, String> {
    let (rows, mut bad) = lines::read(settings.path.as_path())?;
    let rows = with_losers(settings, rows, &mut bad);
    let all = rows.len();
    let rows = selected(settings, rows);
    let refusal = rows.is_empty().then(|| no_samples(settings, all, bad.len()));
    let mut report =
        Report { bad, refusal, left_out: all - rows.len(), of_run: sizes.is_some(), ..Report::default() };
    let tiny = sizes.map_or(TINY, |(winner, _)| {
        let (rows, columns) = grid(winner, settings.cell);
        TINY_CELLS / (rows * columns).max(1) as f64
    });
    let reader = Reader { max_pixels: settings.max_pixels, sizes, tiny };
    for (row, result) in reader.read_all(&rows) {
        match result {
            Err(reason) => report.bad.push(BadRow { line: row.line, id: row.id.clone(), reason }),
            Ok(sample) => report.add(row, &sample),
        }
    }
    report.bad.sort_by_key(|b| b.line);
    if sizes.is_some() {
        let small = report.references.iter().filter(|(_, samples)| **samples < settings.batch);
        report.below_batch = small.map(|(k, n)| (*k, *n)).collect();
    }
    if report.good == 0 && report.refusal.is_none() {
        report.refusal = Some("holds no sample that can be used".into());
    }
    Ok(report)
}

impl Report {
    /// Would a run take the data as they are? With `on_bad: skip` a run also takes data with bad samples among them.
    pub fn is_good(&self) -> bool {
        self.bad.is_empty() && self.refusal.is_none()
    }

    /// What a run would accept although it is hardly meant, one sentence each.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        for (found, what) in [
            (
                &self.identical,
                "whose winner and loser have the same pixels: a preference loss learns nothing there",
            ),
            (&self.whole_priors, "with a prior that covers the whole winner: it marks no part of it"),
            (&self.tiny_priors, self.tiny_says()),
            (
                &self.inverted_priors,
                "with a prior that covers the border and not the middle: is it inverted? The subject is white",
            ),
            (
                &self.own_references,
                "with a reference that is the winner itself: copying it is what they teach",
            ),
            (&self.cut, "whose winner loses more than a quarter to the crop at the size of the run"),
            (&self.without_references, "without references: a graph with focus masks refuses that"),
            (
                &self.turned,
                "with a picture that EXIF turns and a mask that it does not turn: was the mask made from the turned picture?",
            ),
        ] {
            if !found.is_empty() {
                let (samples, lines) = (count(found.len(), "sample"), words::lines(found.iter().copied()));
                remarks.push(format!("{samples} {what} ({lines})"));
            }
        }
        if !self.without_loser.is_empty() && !self.of_run {
            let (samples, lines) =
                (count(self.without_loser.len(), "sample"), words::lines(self.without_loser.iter().copied()));
            remarks.push(format!(
                "{samples} without a loser: only a graph with `without_loser: winner` takes them ({lines})"
            ));
        }
        remarks.extend(self.below_batch.iter().map(|(references, samples)| {
            let (samples, references) = (count(*samples, "sample"), count(*references, "reference"));
            format!("a batch is larger than the {samples} with {references}: each such batch repeats samples")
        }));
        remarks
    }

    fn tiny_says(&self) -> &'static str {
        match self.of_run {
            true => "with a prior below two cells of the focus grid: the mask finds next to nothing there",
            false => {
                "with a prior below 1 % of the winner: given a graph, the check compares it with the cells of the focus grid"
            }
        }
    }

    fn add(&mut self, row: &Row, sample: &Sample) {
        self.good += 1;
        *self.references.entry(row.references.len()).or_default() += 1;
        *self.sizes.entry(sample.size).or_default() += 1;
        self.without_prior += usize::from(row.priors.is_empty());
        self.without_mask += row.references.iter().filter(|r| r.mask.is_none()).count();
        for share in &sample.shares {
            self.coverage[((share * 10.0) as usize).min(9)] += 1;
        }
        let mut note = |applies: bool, lines: fn(&mut Self) -> &mut Vec<usize>| {
            if applies {
                lines(self).push(row.line);
            }
        };
        note(row.references.is_empty(), |r| &mut r.without_references);
        note(sample.shares.contains(&1.0), |r| &mut r.whole_priors);
        note(sample.tiny, |r| &mut r.tiny_priors);
        note(row.loser.is_none(), |r| &mut r.without_loser);
        note(sample.inverted, |r| &mut r.inverted_priors);
        note(sample.own_reference, |r| &mut r.own_references);
        note(sample.cut, |r| &mut r.cut);
        note(sample.identical, |r| &mut r.identical);
        note(sample.turned, |r| &mut r.turned);
    }
}
