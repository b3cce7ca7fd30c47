//! `log`: the metrics of a step, joined into one record.

use super::due::Due;
use crate::{
    operator::{Ctx, InShapes, OpError, Operator, OutShapes},
    part::Part,
    ports::{Effect, Effects, EffectsShape, Metrics},
    settings,
};

settings! {
    /// Settings of [`Log`].
    pub struct LogSettings {
        /// Record every so many steps, counted from the first; 0 means only at the end of the run. In between, what only this node reads is not computed.
        pub every: u64 = 1,
        /// Record at this many steps in a row, up to and including each of those. A held-out set that is read batch by batch needs as many as it has batches.
        pub over: u64 = 1,
        /// Steps of the whole run: the last `over` of them are always recorded. 0 means unknown.
        pub steps: u64 = 0,
        /// Written before every name, with a dot: `held_out` makes `held_out.w_diff` of `w_diff`.
        pub prefix: String = String::new(),
    }
}

/// All metrics of a step as one record.
pub struct Log(LogSettings);

impl Log {
    /// The steps at which it records.
    fn rows(&self) -> Due {
        let LogSettings { every, over, steps, .. } = self.0;
        Due { every, over, steps }
    }

    /// The metrics of all wires under the names that they are recorded by.
    fn joined(&self, metrics: Vec<Metrics>) -> Metrics {
        let prefix = if self.0.prefix.is_empty() { String::new() } else { format!("{}.", self.0.prefix) };
        let mut all = Metrics::default();
        for (name, metric) in metrics.into_iter().flat_map(|m| m.0) {
            all.push_unique(&format!("{prefix}{name}"), metric);
        }
        all
    }
}

impl Operator for Log {
    const NAME: &'static str = "log";
    const DOC: &'static str = "Join metrics, in the order of the wires, into the step's line of metrics.jsonl. A name that \
                               occurs again gets a number.";
    const IN: [&'static str; 1] = ["metrics"];
    const OUT: [&'static str; 1] = ["record"];
    type Settings = LogSettings;
    type In = (Vec<Metrics>,);
    type Out = (Effects,);
    type Saved = ();
    const DIFFERENTIABLE: bool = false;

    fn part(&self) -> Part {
        Part::Record { prefix: self.0.prefix.clone() }
    }

    fn new(s: LogSettings) -> Result<Self, OpError> {
        let log = Self(s);
        log.rows().check("recorded")?;
        Ok(log)
    }

    fn due(&self, step: u64) -> bool {
        self.rows().at(step)
    }

    fn shapes(&self, (metrics,): InShapes<Self>, _: usize) -> Result<OutShapes<Self>, OpError> {
        Ok((EffectsShape { bytes: metrics.len() * 1024 },))
    }

    fn notes(&self, _: &InShapes<Self>) -> Vec<String> {
        let LogSettings { every, over, steps, .. } = self.0;
        let row = if over == 1 { "step".into() } else { format!("{over} steps") };
        match every {
            1 => Vec::new(),
            0 => vec![format!("the last {row} of {steps}")],
            _ => vec![format!(
                "the last {row} of every {every}, and of the run; in other steps its inputs are not computed"
            )],
        }
    }

    fn forward(&self, ctx: &Ctx<'_>, (metrics,): Self::In) -> Result<(Self::Out, ()), OpError> {
        if !self.due(ctx.step) {
            return Ok(((Effects::default(),), ()));
        }
        Ok(((Effects(vec![Effect::Record(self.joined(metrics))]),), ()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operators::testing::Bench;

    fn log(settings: LogSettings) -> Log {
        Log::new(settings).unwrap()
    }

    fn names(op: &Log, step: u64, metrics: Vec<Metrics>) -> Vec<String> {
        let ((effects,), ()) = op.forward(&Bench::new().at(step), (metrics,)).unwrap();
        let records = effects.0.into_iter().flat_map(|effect| match effect {
            Effect::Record(all) => all.0,
            other => panic!("{other:?} is no record"),
        });
        records.map(|(name, _)| name).collect()
    }

    #[test]
    fn metrics_are_joined_in_order_and_none_is_lost() {
        let (mut a, mut b) = (Metrics::default(), Metrics::default());
        a.number("loss", 1.0);
        b.per_sample("coverage", vec![0.5]);
        b.number("loss", 2.0);
        let metrics = vec![a, b];
        let plain = log(LogSettings::default());
        assert_eq!(names(&plain, 0, metrics.clone()), ["loss", "coverage", "loss_2"]);
        let prefixed = log(LogSettings { prefix: "held_out".into(), ..Default::default() });
        assert_eq!(names(&prefixed, 0, metrics), ["held_out.loss", "held_out.coverage", "held_out.loss_2"]);
    }

    #[test]
    fn it_is_due_at_the_last_steps_of_every_so_many_and_of_the_run() {
        let due = |every, over, steps| -> Vec<u64> {
            let op = log(LogSettings { every, over, steps, ..Default::default() });
            let due: Vec<u64> = (0..12).filter(|step| op.due(*step)).collect();
            let mut metrics = Metrics::default();
            metrics.number("loss", 1.0);
            let recorded = |step: &u64| !names(&op, *step, vec![metrics.clone()]).is_empty();
            assert_eq!((0..12).filter(recorded).collect::<Vec<_>>(), due);
            due
        };
        assert_eq!(due(1, 1, 0), (0..12).collect::<Vec<_>>());
        assert_eq!(due(5, 1, 0), [4, 9]);
        assert_eq!(due(5, 2, 0), [3, 4, 8, 9]);
        assert_eq!(due(5, 2, 12), [3, 4, 8, 9, 10, 11]);
        assert_eq!(due(5, 2, 10), [3, 4, 8, 9]);
        assert_eq!(due(0, 3, 8), [5, 6, 7]);
        assert_eq!(due(50, 4, 2), [0, 1], "a run shorter than the window is measured all the way");
    }

    #[test]
    fn settings_that_record_nothing_or_all_the_time_are_refused() {
        for settings in [
            LogSettings { over: 0, ..Default::default() },
            LogSettings { every: 0, ..Default::default() },
            LogSettings { every: 5, over: 6, ..Default::default() },
        ] {
            assert!(Log::new(settings.clone()).is_err(), "{settings:?}");
        }
    }
}
