//! Decoding everything once, before a run: what a data set holds, and what is wrong with it.

use std::{collections::BTreeMap, num::NonZero, path::Path, thread};

use super::{
    geometry::same_shape,
    picture::{Foreground, Rgb},
    row::{self, BadRow, Row},
};

/// What [`check`] found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Samples that can be used.
    pub good: usize,
    /// Lines and samples that cannot, in the order of the file.
    pub bad: Vec<BadRow>,
    /// Usable samples by number of references.
    pub references: BTreeMap<usize, usize>,
    /// Winners by (height, width).
    pub sizes: BTreeMap<(usize, usize), usize>,
    /// Usable samples without a prior.
    pub without_prior: usize,
    /// References without a mask.
    pub without_mask: usize,
    /// Priors by the tenth of the picture that they cover: `[0, 0.1)`, ..., `[0.9, 1]`.
    pub coverage: [usize; 10],
}

/// What one sample adds to a report.
struct Sample {
    size: (usize, usize),
    shares: Vec<f64>,
}

fn mask_of(path: &Path, picture: &Rgb) -> Result<f64, String> {
    let mask = Foreground::open(path)?;
    let (found, expected) = ((mask.height, mask.width), (picture.height, picture.width));
    if !same_shape(found, expected) {
        return Err(format!(
            "{}: is {}x{}, its picture {}x{}: a mask may be of another resolution, but not of another shape",
            path.display(),
            found.0,
            found.1,
            expected.0,
            expected.1
        ));
    }
    let share = mask.share();
    if share == 0.0 { Err(format!("{}: has no foreground", path.display())) } else { Ok(share) }
}

fn sample(row: &Row) -> Result<Sample, String> {
    let winner = Rgb::open(&row.winner)?;
    let loser = Rgb::open(&row.loser)?;
    let shares = row.priors.iter().map(|p| mask_of(p, &winner)).collect::<Result<_, _>>()?;
    for prior in &row.loser_priors {
        mask_of(prior, &loser)?;
    }
    for reference in &row.references {
        let picture = Rgb::open(&reference.image)?;
        if let Some(mask) = &reference.mask {
            mask_of(mask, &picture)?;
        }
    }
    Ok(Sample { size: (winner.height, winner.width), shares })
}

/// Decode every picture and mask of a `pairs.jsonl`.
///
/// # Errors
/// If the file itself cannot be read.
pub fn check(path: &Path) -> Result<Report, String> {
    let (rows, bad) = row::read(path)?;
    let workers = thread::available_parallelism().map_or(1, NonZero::get);
    let share = rows.len().div_ceil(workers).max(1);
    let results: Vec<(&Row, Result<Sample, String>)> = thread::scope(|scope| {
        let run = |rows: &'_ [Row]| rows.iter().map(sample).collect::<Vec<_>>();
        let parts: Vec<_> = rows.chunks(share).map(|rows| (rows, scope.spawn(move || run(rows)))).collect();
        parts
            .into_iter()
            .flat_map(|(rows, part)| {
                let done = part.join().unwrap_or_else(|_| {
                    rows.iter().map(|_| Err("a decoder failed on a sample beside it".into())).collect()
                });
                rows.iter().zip(done)
            })
            .collect()
    });
    let mut report = Report { bad, ..Report::default() };
    for (row, result) in results {
        match result {
            Err(reason) => report.bad.push(BadRow { line: row.line, id: row.id.clone(), reason }),
            Ok(sample) => {
                report.good += 1;
                *report.references.entry(row.references.len()).or_default() += 1;
                *report.sizes.entry(sample.size).or_default() += 1;
                report.without_prior += usize::from(row.priors.is_empty());
                report.without_mask += row.references.iter().filter(|r| r.mask.is_none()).count();
                for share in sample.shares {
                    report.coverage[((share * 10.0) as usize).min(9)] += 1;
                }
            }
        }
    }
    report.bad.sort_by_key(|b| b.line);
    Ok(report)
}
