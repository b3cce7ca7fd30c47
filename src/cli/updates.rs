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
        self.add(step, loss, number("micro_batch").zip(number("micro_batches")))
    }

    /// Count a step from before the run was resumed, from its line of metrics.jsonl.
    pub fn recall(&mut self, line: &serde_json::Value) {
        let fields = line.as_object();
        let number = |name: &str| {
            fields?.iter().find(|(found, _)| is_named(found, name)).and_then(|(_, value)| value.as_f64())
        };
        if let Some(step) = line.get("step").and_then(serde_json::Value::as_u64) {
            let loss = line.get("loss").and_then(serde_json::Value::as_f64);
            self.add(step, loss, number("micro_batch").zip(number("micro_batches")));
        }
    }

    fn add(&mut self, step: u64, loss: Option<f64>, said: Option<(f64, f64)>) -> Option<f64> {
        if let Some((batch, of)) = said {
            self.said = Some(Said { step, batch: batch as u64, of: of as u64 });
        }
        self.losses.push_back((step, loss?));
        let most = self.said.map_or(REMEMBERED, |said| said.of as usize);
        while self.losses.len() > most {
            self.losses.pop_front();
        }
        let said = self.said.filter(|said| said.of > 0)?;
        let batch = said.batch + step.checked_sub(said.step)?;
        // If a line of metrics.jsonl was lost, the mean is unknown.
        let all = self.losses.len() as u64 == said.of && self.losses.front()?.0 + said.of == step + 1;
        let sum = self.losses.iter().fold(0.0, |sum, (_, loss)| sum + loss);
        (all && batch.is_multiple_of(said.of)).then(|| sum / said.of as f64)
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
