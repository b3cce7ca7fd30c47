//! Notes on a data set before the first step, without reading a picture.

use super::{OnBad, Pairs, Row, apart, picture::size_text, words::lines};
use crate::words::count;

/// Do winner and loser name one file?
fn same_file(row: &Row) -> bool {
    row.loser.as_ref() == Some(&row.winner)
}

impl Pairs {
    /// See [`Operator::notes`](crate::Operator::notes).
    pub(super) fn described(&self) -> Vec<String> {
        let (s, size, reference) = (&self.settings, self.settings.size(), self.settings.reference_size());
        let mut notes = vec![format!(
            "{}, {} of {} an epoch, pictures of {} pixels, references of {} (width x height)",
            count(self.rows.len(), "sample"),
            count(self.order.epoch(), "batch"),
            s.batch,
            size_text(size.0, size.1),
            size_text(reference.0, reference.1)
        )];
        let rows = |samples: &[usize]| samples.iter().map(|i| self.rows[*i].line).collect::<Vec<_>>();
        for group in self.order.groups() {
            let samples = count(group.samples.len(), "sample");
            notes.push(match group.references {
                0 => format!("{samples} without references: {}", lines(rows(&group.samples).into_iter())),
                n => format!("{samples} with {}", count(n, "reference")),
            });
        }
        let without = self.rows.iter().filter(|r| r.priors.is_empty()).count();
        if without > 0 {
            notes.push(format!(
                "{} without a prior: under a focus mask all of their pictures counts",
                count(without, "sample")
            ));
        }
        let alone = self.rows.iter().filter(|r| r.loser.is_none()).count();
        if alone > 0 {
            notes.push(format!("{} without a loser: the winner stands in its place", count(alone, "sample")));
        }
        if self.left_out > 0 {
            let samples = count(self.left_out, "sample");
            notes.push(format!("{samples} left out by `reference_counts` or `first`"));
        }
        let trained = s.apart_from.as_ref();
        notes.extend(trained.and_then(|trained| apart::note(s.path.as_path(), trained.as_path())));
        notes.extend(trained.and_then(|trained| apart::seen_subjects(&self.rows, trained.as_path())));
        notes.extend(self.warnings().into_iter().map(|w| format!("warning: {w}")));
        notes
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.settings.on_bad == OnBad::Skip && !self.bad.is_empty() {
            let numbers = lines(self.bad.iter().map(|b| b.line));
            let what = count(self.bad.len(), "bad line");
            warnings
                .push(format!("{what} left out by `on_bad: skip` ({numbers}); the first: {}", self.bad[0]));
        }
        let same: Vec<usize> = self.rows.iter().filter(|r| same_file(r)).map(|r| r.line).collect();
        if !same.is_empty() {
            warnings.push(format!(
                "{} whose winner and loser are one file ({}): a preference loss learns nothing from them",
                count(same.len(), "sample"),
                lines(same.into_iter())
            ));
        }
        for group in self.order.groups() {
            let (samples, batch) = (group.samples.len(), self.settings.batch);
            if samples < batch {
                warnings.push(format!(
                    "a batch of {batch} is larger than the {} with {}: each such batch repeats samples",
                    count(samples, "sample"),
                    count(group.references, "reference")
                ));
            }
        }
        warnings
    }
}
