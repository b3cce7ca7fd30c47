//! The loss of an update that spans several steps.

use std::collections::VecDeque;

use prefgraph_ops::ports::{Metric, Metrics};

/// Losses that are remembered while no step has said how many make an update.
const REMEMBERED: usize = 1 << 16;

/// The loss of an update of several micro-batches: the mean of theirs.
#[derive(Clone, Debug, Default)]
pub(super) struct Updates {
    /// Steps and their losses, the newest last.
    losses: VecDeque<(u64, f64)>,
    /// What a step has said last: which micro-batch it was, and of how many. Not every step need say it, since a log may be of every nth.
    said: Option<Said>,
}

#[derive(Clone, Copy, Debug)]
struct Said {
    step: u64,
    batch: u64,
    of: u64,
}

/// Is it this metric, with or without the prefix of a log?
fn is_named(found: &str, name: &str) -> bool {
    found.strip_suffix(name).is_some_and(|prefix| prefix.is_empty() || prefix.ends_with('.'))
}

impl Updates {
    /// Count a step; returns the loss of the update if the step completes one of several micro-batches.
    pub fn step(&mut self, step: u64, metrics: &Metrics) -> Option<f64> {
        let number = |name: &str| {
            metrics.0.iter().find(|(found, _)| is_named(found, name)).and_then(|(_, value)| value.mean())
        };
        let loss = metrics.get("loss").and_then(Metric::mean);
        self.add(step, loss, number)
    }

    /// Count a step from before the run was resumed, from its line of metrics.jsonl.
    pub fn recall(&mut self, line: &serde_json::Value) {
        let fields = line.as_object();
        let number = |name: &str| {
            fields?.iter().find(|(found, _)| is_named(found, name)).and_then(|(_, value)| value.as_f64())
        };
        if let Some(step) = line.get("step").and_then(serde_json::Value::as_u64) {
            let loss = line.get("loss").and_then(serde_json::Value::as_f64);
            self.add(step, loss, number);
        }
    }

    fn add(&mut self, step: u64, loss: Option<f64>, number: impl Fn(&str) -> Option<f64>) -> Option<f64> {
        match (number("micro_batch"), number("micro_batches"), number("update")) {
            (Some(batch), Some(of), _) => {
                self.said = Some(Said { step, batch: batch as u64, of: of as u64 });
            }
            // A step that is an update.
            (None, _, Some(_)) => self.said = None,
            _ => {}
        }
        self.losses.push_back((step, loss?));
        let most = self.said.map_or(REMEMBERED, |said| said.of.max(said.batch) as usize);
        while self.losses.len() > most {
            self.losses.pop_front();
        }
        let said = self.said.filter(|said| said.of > 0)?;
        let later = step.checked_sub(said.step)?;
        // Resumed with fewer of them, an update may have more micro-batches than the next ones will.
        let (ends, count) = match said.batch {
            batch if later == 0 => (batch >= said.of, batch.max(said.of)),
            batch if batch >= said.of => (later.is_multiple_of(said.of), said.of),
            batch => ((batch + later).is_multiple_of(said.of), said.of),
        };
        let own = self.losses.iter().skip(self.losses.len().checked_sub(count as usize)?);
        // If a line of metrics.jsonl was lost, the mean is unknown.
        let all = own.clone().next()?.0 + count == step + 1;
        (ends && all).then(|| own.fold(0.0, |sum, (_, loss)| sum + loss) / count as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What seven steps of updates of three give, where every `every`th step says which micro-batch it is.
    fn updates(every: u64, name: &str) -> Vec<Option<f64>> {
        let mut updates = Updates::default();
        let step = |step: u64| {
            let mut metrics = Metrics::default();
            metrics.number("loss", (step * step) as f64);
            if (step + 1).is_multiple_of(every) {
                metrics.number(name, (step % 3 + 1) as f64);
                metrics.number(&format!("{name}es"), 3.0);
            }
            updates.step(step, &metrics)
        };
        (0..7).map(step).collect()
    }

    #[test]
    fn an_update_has_the_mean_of_its_own_steps_however_seldom_they_say_which_they_are() {
        let expected = [None, None, Some(5.0 / 3.0), None, None, Some(50.0 / 3.0), None];
        for every in 1..=3 {
            assert_eq!(updates(every, "micro_batch"), expected, "every {every}");
            assert_eq!(updates(every, "train.micro_batch"), expected, "every {every}, with a prefix");
        }
        // Nothing is known before the fourth step.
        assert_eq!(updates(4, "micro_batch")[..4], [None; 4]);
        assert_eq!(updates(4, "micro_batch")[4..], expected[4..]);
    }

    #[test]
    fn another_number_of_micro_batches_counts_from_the_step_that_says_so() {
        let mut updates = Updates::default();
        let mut step = |step: u64, said: &[(&str, f64)]| {
            let mut metrics = Metrics::default();
            metrics.number("loss", step as f64);
            said.iter().for_each(|(name, value)| metrics.number(name, *value));
            updates.step(step, &metrics)
        };
        let mut micro =
            |at, batch, of| step(at, &[("micro_batch", batch), ("micro_batches", of), ("update", 0.0)]);
        for (at, batch) in [(0, 1.0), (1, 2.0), (2, 3.0)] {
            assert_eq!(micro(at, batch, 4.0), None);
        }
        // Resumed with two of them: this update has four.
        assert_eq!(micro(3, 4.0, 2.0), Some(1.5));
        assert_eq!((micro(4, 1.0, 2.0), micro(5, 2.0, 2.0)), (None, Some(4.5)));
        // And then with one.
        assert_eq!((step(6, &[("update", 4.0)]), step(7, &[]), step(8, &[])), (None, None, None));
    }

    #[test]
    fn an_update_of_which_a_line_is_lost_has_no_mean() {
        let line = |step: u64| serde_json::json!({"step": step, "loss": 1.0, "micro_batch": step + 1, "micro_batches": 3});
        for (kept, known) in [(&[0, 1][..], true), (&[0], false), (&[1], false)] {
            let mut updates = Updates::default();
            kept.iter().for_each(|step| updates.recall(&line(*step)));
            let mut metrics = Metrics::default();
            [("loss", 4.0), ("micro_batch", 3.0), ("micro_batches", 3.0)]
                .into_iter()
                .for_each(|(name, value)| metrics.number(name, value));
            assert_eq!(updates.step(2, &metrics), known.then_some(2.0), "{kept:?}");
        }
    }
}
